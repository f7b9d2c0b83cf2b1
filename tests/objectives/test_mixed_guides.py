"""Guides that mix sites with and without `rsample`: each estimator's mean gradient against enumeration x quadrature."""

import math
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, discrete_pair, mean_and_error, refusal, suite_seed
from mixed_pairs import GUIDES, STATES, Grid, X, parameters, programs
from pyro.infer import SVI
from scalar_pairs import double
from torch import Tensor

from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    OVIS,
    PIWAE,
    VIMCO,
    Coefficients,
    DReG,
    GDReG,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)

ORDERS = ("c to z", "z to c")
# Each with the bound that its gradient is of, and the number of nodes at which the quadrature is exact to 1e-8: two
# where the gradient is that of the bound node by node, and many where it is equal in the mean alone.
EXACT, SMOOTH = 2, 24
ESTIMATORS = {
    ELBO(1): (ELBO(1), EXACT),
    ELBO(2): (ELBO(2), EXACT),
    StickingTheLanding(1): (ELBO(1), SMOOTH),
    StickingTheLanding(2): (ELBO(2), SMOOTH),
    IWAE(1): (IWAE(1), EXACT),
    IWAE(2): (IWAE(2), EXACT),
    IWAE(3): (IWAE(3), EXACT),
    DReG(1): (IWAE(1), SMOOTH),
    DReG(2): (IWAE(2), SMOOTH),
    GDReG(2): (IWAE(2), SMOOTH),
    MIWAE(2, num_batches=2): (MIWAE(2, num_batches=2), EXACT),
    CIWAE(2, elbo_weight=0.3): (CIWAE(2, elbo_weight=0.3), EXACT),
    Renyi(2, alpha=0.4): (Renyi(2, alpha=0.4), EXACT),
    Renyi(2, alpha=-1.0): (Renyi(2, alpha=-1.0), EXACT),
    Renyi(2, alpha=1.0): (ELBO(2), EXACT),
    VIMCO(2): (IWAE(2), SMOOTH),
    OVIS(2): (IWAE(2), SMOOTH),
    ScoreFunction(1): (ELBO(1), SMOOTH),
    ScoreFunction(2, baseline="leave_one_out"): (ELBO(2), SMOOTH),
    ThermodynamicVO(2, num_partitions=1): (ELBO(2), SMOOTH),
}


def assert_exact(grid: Grid, objective, bound, most: float = 3e-8) -> None:
    for found, exact in zip(grid.mean_gradient(objective), grid.exact(bound.bound), strict=True):
        assert exact.norm() > 1e-3
        torch.testing.assert_close(found, exact, atol=most, rtol=0)


@pytest.mark.parametrize("objective", ESTIMATORS, ids=str)
def test_every_estimator_takes_a_guide_of_both_kinds(objective):
    """The pair is checked here, and not in the tests below, where thousands of data make that most of the time."""
    assert math.isfinite(objective.loss(*programs("z to c", parameters(12, 1), parameters(8, 2)), X.expand(3)))


@pytest.mark.usefixtures("pairs_unchecked")
@pytest.mark.parametrize(("order", "beta"), [("c to z", 1.0), ("z to c", 1.0), ("z to c", 0.5)])
@pytest.mark.parametrize("objective", ESTIMATORS, ids=str)
def test_the_mean_gradient_is_the_exact_one(objective, order, beta):
    if beta != 1 and not objective.takes_beta:
        pytest.skip("not defined for a beta")
    bound, num_nodes = ESTIMATORS[objective]
    assert_exact(Grid(order, objective.num_draws, num_nodes, beta), objective, bound)


@pytest.mark.usefixtures("pairs_unchecked")
@pytest.mark.parametrize(("objective", "bound", "num_nodes", "most"), [
    (IWAE(2), IWAE(2), EXACT, 1e-10), (ELBO(2), ELBO(2), EXACT, 1e-10), (StickingTheLanding(1), ELBO(1), 24, 1e-8),
    (DReG(2), IWAE(2), 8, 3e-4),
], ids=str)  # fmt: skip
def test_with_two_sites_of_each_kind_in_turn_the_mean_gradient_is_the_exact_one(objective, bound, num_nodes, most):
    grid = Grid("z to b to u to c", objective.num_draws, num_nodes, size=0.5)
    assert_exact(grid, objective, bound, most)
    if most > 1e-6:
        assert of_moving_draws(grid, objective).norm() > 20 * most  # what a term at held draws lacks


def of_moving_draws(grid: Grid, objective) -> Tensor:
    """Returns the part of the exact gradient that a term of the discrete sites would lack if it held the draws."""
    a = grid.a.clone().requires_grad_()
    _, log_q, log_w, chance = grid.by_hand(a, grid.t)
    *_, held, _, _ = (None, *grid.by_hand(a, grid.t, held=True)[1:])
    log_w = log_w.detach()[grid.index]
    factor = objective.without_rsample(log_w, torch.ones(()))
    if objective.coefficients(log_w, torch.ones(())).is_total:
        factor = factor - objective.coefficients(log_w, torch.ones(())).model
    moved = sum(log_q[name] - held[name] for name in STATES if name in log_q)[grid.index]
    (gradient,) = torch.autograd.grad(-(grid.mass(chance.detach()) * (factor * moved).sum(0)).sum(), a)
    return gradient


@pytest.mark.parametrize("objective", [IWAE(2), DReG(2)], ids=str)
def test_the_term_of_a_discrete_site_goes_through_the_draws_before_it_alone(objective):
    assert of_moving_draws(Grid("z to c", 2, 16), objective).norm() > 0.02
    assert of_moving_draws(Grid("c to z", 2, 16), objective).norm() == 0


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "objective", [PIWAE(1, num_batches=2), PIWAE(2, num_batches=1), PIWAE(2, num_batches=2)], ids=str
)
def test_piwae_trains_the_guide_under_its_own_bound(objective, order, beta):
    grid = Grid(order, objective.num_draws, EXACT, beta)
    of_guide, of_model = grid.mean_gradient(objective)
    own = MIWAE(objective.num_particles, num_batches=objective.num_batches)
    torch.testing.assert_close(of_guide, grid.exact(own.bound)[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(of_model, grid.exact(IWAE(objective.num_draws).bound)[1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_wake_sleep_moves_the_guide_by_the_mean_weighted_score(order):
    grid = Grid(order, 2, EXACT)  # held draws: exact at every node
    of_guide, of_model = grid.mean_gradient(ReweightedWakeSleep(2))
    a = grid.a.clone().requires_grad_()
    _, log_q, log_w, chance = grid.by_hand(a, grid.t, held=True)
    weights = log_w.detach()[grid.index].softmax(0)
    mean = (grid.mass(chance.detach()) * (weights * sum(log_q.values())[grid.index]).sum(0)).sum()
    torch.testing.assert_close(of_guide, torch.autograd.grad(-mean, a)[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(of_model, grid.exact(IWAE(2).bound)[1], atol=1e-10, rtol=0)


def gradients(objective, order: str, num: int = 500, **settings) -> tuple[Tensor, Tensor]:
    """Returns an objective's gradient on one seed, in the parameters of the guide and of the model."""
    a, t = (parameters(size, seed).requires_grad_() for size, seed in ((12, 1), (8, 2)))
    model, guide = programs(order, a, t, **settings)
    torch.manual_seed(suite_seed(3))
    return torch.autograd.grad(objective.differentiable_loss(model, guide, X.expand(num)), (a, t))


def test_without_any_rsample_every_gradient_is_a_score_functions():
    for found, expected in zip(gradients(IWAE(3), "c and b"), gradients(VIMCO(3), "c and b"), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    for objective in (IWAE(2), DReG(2), ELBO(2), StickingTheLanding(2), CIWAE(2), PIWAE(2)):
        assert_exact(Grid("c and b", 2, 1), objective, objective, 1e-10)


def at_the_posterior(factor: Tensor):
    """Returns a pair of c and z that depend on each other, whose guide is the posterior at `factor` = 1."""
    means, prior = double(-1.0, 0.5, 2.0), double(0.2, 0.5, 0.3)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(prior))
            z = pyro.sample("z", dist.Normal(means[c], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        logits = prior.log() + dist.Normal(means, double(2.0).sqrt()).log_prob(x[:, None])
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=factor * logits))
            pyro.sample("z", dist.Normal(factor * (means[c] + x) / 2, 0.5**0.5))

    return model, guide


@pytest.mark.parametrize("objective", [DReG(3), StickingTheLanding(2)], ids=str)
def test_at_the_exact_posterior_the_path_derivatives_have_no_noise(objective):
    factor = double(1.0).requires_grad_()
    x = double(0.3, -2.0, 1.4)
    for one, has_noise in ((objective, False), (objective.reference(3), True)):
        loss = one.differentiable_loss(*at_the_posterior(factor), x)
        (gradient,) = torch.autograd.grad(loss, factor)
        assert (gradient.abs() > 1e-3) == has_noise
        assert has_noise or gradient.abs() < 1e-10


# Doors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [ELBO(3), StickingTheLanding(3), IWAE(3), DReG(3), PIWAE(1, num_batches=3)], ids=str
)
@pytest.mark.parametrize("order", ["c to z", "z to b to u to c"])
def test_the_gradient_in_chunks_is_that_of_the_whole_on_the_chunks_draws(objective, order):
    a, t = (parameters(size, seed).requires_grad_() for size, seed in ((12, 1), (8, 2)))
    x, chunked = X.expand(5), replace(objective, chunk_size=2)
    model, guide = programs(order, a, t)
    runs: list[dict[str, Tensor]] = []

    def recorded(x):
        trace = pyro.poutine.trace(guide).get_trace(x)
        runs.append({name: trace.nodes[name]["value"].detach() for name in GUIDES[order]})

    chunked.loss(model, recorded, x)
    runs.clear()
    torch.manual_seed(suite_seed(4))
    in_chunks = torch.autograd.grad(chunked.differentiable_loss(model, recorded, x), (a, t))
    values = {name: torch.cat([run[name] for run in runs[2:4]]) for name in GUIDES[order]}  # after a look at the pair
    draws: dict[str, Tensor] = {}
    for name, site in GUIDES[order].items():
        fn = site(a.detach(), values)
        draws[name] = values[name] if name in STATES else (values[name] - fn.loc) / fn.scale
    loss = objective.differentiable_loss(*programs(order, a, t, draws=draws), x)
    for found, expected in zip(in_chunks, torch.autograd.grad(loss, (a, t)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("objective", [ELBO(2), DReG(2)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_steps_of_svi_have_the_exact_gradient_in_the_mean(objective, order):
    pyro.param("a", parameters(12, 1))
    num = 10_000

    def free(program):
        return lambda x: program(pyro.param("a"))(x)

    model = free(lambda a: programs(order, a, parameters(8, 2))[0])
    guide = free(lambda a: programs(order, a, parameters(8, 2))[1])
    found = []
    for seed in range(10):
        torch.manual_seed(suite_seed(seed))
        before = pyro.param("a").detach().clone()
        SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), objective).step(X.expand(num))
        found.append((before - pyro.param("a").detach()) / (1e-3 * num))
        pyro.get_param_store()["a"] = before
    mean, error = mean_and_error(torch.stack(found))
    exact = Grid(order, 2, 24).exact(objective.bound)[0]
    assert_within_standard_errors(mean, exact, error)


# Refusals -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Naive(IWAE):
    """Has a path derivative of a kind of its own, and says nothing about sites without `rsample`."""

    def coefficients(self, log_weights, beta):
        weights = log_weights.softmax(0)
        return Coefficients(weights, path=weights)


def test_a_path_derivative_of_another_kind_is_refused_with_the_sites_name():
    model, guide = programs("z to c", parameters(12, 1), parameters(8, 2))
    said = refusal(Naive(2).loss, model, guide, X.expand(3))
    assert said.startswith('Naive needs a reparameterised guide, and site "c" has no rsample: use elbo, iwae, dreg, ')
    assert Naive(2).loss(*at_points(), X.expand(3)) > 0


def at_points():
    """Returns a pair with one continuous latent."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(double(0.0), 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(double(0.1), 1.0))

    return model, guide


def test_on_bits_alone_the_estimators_are_those_of_score_functions_but_for_a_term_of_mean_0():
    """As docs/estimators.md says of `dreg` and others: gradients at the same draws."""
    x = 3 * torch.randn(4, 3)

    def gradient(objective):
        pyro.clear_param_store()
        pair = discrete_pair()
        torch.manual_seed(suite_seed(2))
        objective.loss_and_grads(pair.model, pair.guide, x)
        return pyro.get_param_store()._params["logits"].grad.clone()

    scores = gradient(DReG(3)) - gradient(VIMCO(3))
    leave_one_out = gradient(ScoreFunction(3, baseline="leave_one_out"))
    torch.testing.assert_close(gradient(IWAE(3)), gradient(VIMCO(3)))
    torch.testing.assert_close(gradient(StickingTheLanding(3)), leave_one_out)
    torch.testing.assert_close(gradient(ELBO(3)), leave_one_out - scores, rtol=1e-4, atol=1e-4)
