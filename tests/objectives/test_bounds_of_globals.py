"""Bounds of programs with a global latent, against their exact values by quadrature and the exact evidence."""

from functools import partial

import pyro
import pytest
import torch
from exact import hierarchical
from exact.expectations import log_mean_exp
from exact.hierarchical import OF_Z, PRIOR_MEAN, PRIOR_SD, Copies, Hierarchy, normal
from helpers import assert_within_standard_errors, mean_and_error
from scalar_pairs import assert_one_bound, gradients

from pyrovae.objectives import ELBO, IWAE, VIMCO, DReG, Renyi, ReweightedWakeSleep
from pyrovae.programs import run_pair

NUM = 4
X = hierarchical.data(NUM)


def bounds(objective, pair: Hierarchy, *args, repeats: int, **kwargs) -> torch.Tensor:
    """Draws minus the loss `repeats` times."""
    objective.loss(pair.model, pair.guide, *args, **kwargs)  # checks the pair
    with pyro.validation_enabled(False):
        found = [-objective.loss(pair.model, pair.guide, *args, **kwargs) for _ in range(repeats)]
    return torch.tensor(found, dtype=torch.float64)


def narrow(pair: Hierarchy) -> Hierarchy:
    """Lets theta hardly vary, for little noise, and q(z | x, theta) be wide, so that K moves the bound by much."""
    return Hierarchy({**pair.parameters, "log_sd": -4.0, "log_scale": -0.4})


def test_the_exact_values_are_in_order():
    """K moves the local part alone: with the exact q(z | x, theta) it moves nothing, and theta's gap is left."""
    pair = Hierarchy()
    values = [pair.bound(X, count).item() for count in (1, 2, 8, 64)]
    assert values == sorted(values)
    evidence = pair.log_evidence(X).item()
    assert values[0] == pytest.approx(pair.elbo(X).item(), abs=1e-10)
    assert values[-1] < evidence
    exact = pair.with_exact_local_guide()
    assert exact.bound(X, 64).item() == pytest.approx(exact.elbo(X).item(), abs=1e-9)
    assert values[-1] < exact.elbo(X).item() < evidence


@pytest.mark.parametrize(("objective", "count"), [
    (ELBO(1), 1),
    (ELBO(8), 1),
    (IWAE(2), 2),
    (IWAE(8), 8),
    (IWAE(8, chunk_size=3), 8),
], ids=str)  # fmt: skip
def test_a_bound_is_that_by_quadrature_and_lies_between_elbo_and_evidence(objective, count):
    """Its logsumexp is over each datum's particles, at one theta for all of them."""
    pair, num, repeats = narrow(Hierarchy()), 4, 20 if objective.chunk_size else 40
    mean, error = mean_and_error(
        bounds(objective, Copies(pair.parameters, num=num), X.repeat(num), repeats=repeats) / num
    )
    truth = pair.bound(X, count).item()
    assert_within_standard_errors(mean, truth, error)
    assert pair.elbo(X) <= truth + 1e-10 < pair.log_evidence(X)
    if count == 8 and not objective.chunk_size:  # or the test could not tell one K from another
        assert truth - pair.bound(X, 1).item() > 10 * error


@pytest.mark.parametrize("objective", [DReG(8), VIMCO(8), ReweightedWakeSleep(8), Renyi(8, alpha=0.0)], ids=str)
def test_other_estimators_have_the_bound_of_iwae_on_the_same_draws(objective):
    pair = narrow(Hierarchy())
    assert_one_bound(objective, IWAE(8), pair.model, pair.guide, X)


@pytest.mark.parametrize("objective", [ELBO(3), IWAE(3), DReG(3), VIMCO(3), ReweightedWakeSleep(3)], ids=str)
def test_the_loss_is_that_by_hand_at_its_draws(objective):
    """Theta's own densities stand outside, once and whole."""
    pair, at = Hierarchy(), Hierarchy().tensors()
    objective.loss(pair.model, pair.guide, X)  # the checks of the pair are done
    torch.manual_seed(7)
    loss = objective.loss(pair.model, pair.guide, X)
    torch.manual_seed(7)
    draws = run_pair(pair.model, pair.guide, X, num_particles=3).draws()
    theta, z = draws["theta"], draws["z"]
    noise = (z - at["on_x"] * X - at["on_theta"] * theta - at["bias"]) / at["log_scale"].exp()
    log_p, log_q = pair.densities(noise, theta, X)
    log_w = log_p - log_q
    local = log_w.mean(0) if isinstance(objective, ELBO) else log_mean_exp(log_w)
    outer = normal(theta, PRIOR_MEAN, PRIOR_SD) - normal(theta, at["mu"], at["log_sd"].exp())
    assert loss == pytest.approx(-(outer + local.sum()).item(), abs=1e-10)


@pytest.mark.parametrize(("objective", "count"), [(ELBO(1), 1), (IWAE(8), 8)], ids=str)
@pytest.mark.parametrize("way", ["the plate draws", "the caller draws"])
def test_a_bound_is_unbiased_under_subsampling(objective, count, way):
    """N / B stands outside the logsumexp and outside theta's own densities."""
    pair, size = narrow(Hierarchy()), 2
    truth = pair.bound(X, count).item()
    if way == "the plate draws":
        found = bounds(objective, pair, X, repeats=100, subsample_size=size)
    else:
        parts = [X[torch.randperm(NUM)[:size]] for _ in range(100)]
        objective.loss(pair.model, pair.guide, parts[0], NUM)  # checks the pair
        with pyro.validation_enabled(False):
            found = -torch.tensor([objective.loss(pair.model, pair.guide, x, NUM) for x in parts]).double()
    assert_within_standard_errors(*mean_and_error(found)[:1], truth, mean_and_error(found)[1])
    assert found.std() > 0.5  # the data differ, and so do subsamples


def test_both_programs_and_second_runs_see_one_subsample():
    """At the exact q(z | x, theta) all weights of a datum are equal, and no slope is left along the path of z."""
    pair = Hierarchy().with_exact_local_guide()
    programs = [partial(program, subsample_size=2) for program in (pair.model, pair.guide)]
    sampled = run_pair(*programs, X, num_particles=5).terms().log_weights
    torch.testing.assert_close(sampled, sampled[:1].expand(5, 2), rtol=0, atol=1e-10)
    for _ in range(5):
        found = gradients(DReG(4), programs, X)[0]
        of_z = torch.stack([found[sorted(pair.parameters).index(name)] for name in OF_Z])
        torch.testing.assert_close(of_z, torch.zeros(4).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_joint_puts_theta_and_z_under_one_logsumexp(count):
    """For one datum the exact value is a quadrature in two dimensions."""
    pair, x = Hierarchy(), X[:1]
    found = bounds(IWAE(count, joint=True), pair, x, repeats=300)
    truth = pair.joint_bound(x, count)
    assert_within_standard_errors(mean_and_error(found)[0], truth, mean_and_error(found)[1])
    assert truth < pair.log_evidence(x)
    if count == 16:
        assert truth - pair.bound(x, count) > 7 * mean_and_error(found)[1]


def test_joint_tends_to_the_evidence_of_few_data():
    x = X[:3]
    pair = Hierarchy().with_exact_global_guide(x)
    truth = pair.log_evidence(x)
    # With more particles than a few the gap is soon below its error.
    runs = {1: 150, 3: 150, 10_000: 20}
    gaps = [truth - bounds(IWAE(count, joint=True), pair, x, repeats=num).mean() for count, num in runs.items()]
    assert gaps[0] > gaps[1] > gaps[2]
    found = bounds(IWAE(100_000, joint=True), pair, x, repeats=10)
    assert_within_standard_errors(mean_and_error(found)[0], truth, mean_and_error(found)[1] + 1e-3)
