"""Gradients where q(z | x, theta) and p(x, z | theta) both depend on a global theta, against quadrature.

In log p theta is a parameter of the model, in q(z | x, theta) one of the guide. Its own guide gets the gradient of the
whole bound, along its path or by its score, whatever estimator the local part has.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from exact import hierarchical, hierarchical_gradients
from exact.hierarchical import OF_THETA, Copies, Hierarchy
from helpers import assert_within_standard_errors, mean_and_error, suite_seed
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from scalar_pairs import gradients, gradients_of_each
from torch import Tensor

from pyrovae.objectives import (
    ELBO,
    IWAE,
    MIWAE,
    OVIS,
    VIMCO,
    DReG,
    GDReG,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)

X = hierarchical.data(30)[:10]
NAMES = sorted(hierarchical.OFF)
NARROW = Hierarchy({**hierarchical.OFF, "log_sd": -4.0})  # little noise from theta itself
FAR_FROM_THETA = Hierarchy({**NARROW.parameters, "on_theta": 0.9, "bias": -0.5})
WITHOUT_PATH = Hierarchy({**hierarchical.OFF, "mu": 2.0, "log_sd": -0.5}, NonreparameterizedNormal)
TRUTHS = {
    "ELBO": hierarchical_gradients.of_elbo,
    "IWAE": hierarchical_gradients.of_bound,
    "wake-phi": hierarchical_gradients.of_wake_phi,
    "wake-phi for theta": hierarchical_gradients.of_wake_phi_for_theta,
    "thermodynamic": hierarchical_gradients.of_thermodynamic,
    "theta as a leaf": hierarchical_gradients.of_theta_as_leaf,
}


@cache
def truth(of: str, pair: Hierarchy = NARROW, num: int = len(X)) -> Tensor:
    """Returns the gradient of the loss in every parameter, in the order of their names."""
    found = TRUTHS[of](pair, X[:num])
    return torch.stack([found[name] for name in NAMES])


def mean_gradient(objective, pair: Hierarchy, x: Tensor, num: int = 300) -> tuple[Tensor, Tensor]:
    """Returns the mean over copies of the gradient in every parameter, and its standard error."""
    copies = Copies(pair.parameters, num=num)
    return mean_and_error(gradients_of_each(objective, (copies.model, copies.guide), x.repeat(num)))


@pytest.mark.parametrize(("objective", "of"), [
    (ELBO(2), "ELBO"),
    (StickingTheLanding(2), "ELBO"),
    (ScoreFunction(2, baseline="leave_one_out"), "ELBO"),
    (IWAE(2), "IWAE"),
    (DReG(2), "IWAE"),
    (GDReG(2), "IWAE"),
    (VIMCO(2), "IWAE"),
    (OVIS(2), "IWAE"),
    (MIWAE(1, num_batches=2), "ELBO"),
    (ReweightedWakeSleep(2), "wake-phi"),
    (ThermodynamicVO(2, num_partitions=2, first=hierarchical_gradients.FIRST), "thermodynamic"),
], ids=str)  # fmt: skip
def test_the_mean_gradient_is_that_by_quadrature(objective, of):
    mean, error = mean_gradient(objective, NARROW, X)
    assert_within_standard_errors(mean, truth(of), error, note=f"parameters {NAMES}")


def test_theta_is_no_leaf_of_the_path():
    """Taken for one, its guide would get the gradient of no bound, many standard errors away."""
    mean, error = mean_gradient(DReG(2), NARROW, X)
    assert_within_standard_errors(mean, truth("IWAE"), error, note=f"parameters {NAMES}")
    apart = ((truth("theta as a leaf") - truth("IWAE")).abs() / error)[NAMES.index("mu")]
    assert apart > 9, apart


def test_wake_phi_is_not_for_theta():
    """It is no gradient of a bound, and q(z | x, theta) gives theta's guide the bound's."""
    mean, error = mean_gradient(ReweightedWakeSleep(2), FAR_FROM_THETA, X, num=3_000)
    right, wrong = truth("wake-phi", FAR_FROM_THETA), truth("wake-phi for theta", FAR_FROM_THETA)
    assert_within_standard_errors(mean, right, error, note=f"parameters {NAMES}")
    apart = ((wrong - right).abs() / error)[NAMES.index("mu")]
    assert apart > 8, apart


def test_a_theta_without_a_path_gets_the_score_of_the_whole_bound():
    programs = WITHOUT_PATH.model, WITHOUT_PATH.guide
    mean, error = mean_and_error(gradients(IWAE(2), programs, X[:2], num=400))
    expected = truth("IWAE", WITHOUT_PATH, 2)
    assert_within_standard_errors(mean, expected, error, note=f"parameters {NAMES}")
    at = NAMES.index("mu")
    assert expected[at].abs() > 5 * error[at]


@pytest.mark.parametrize("objective", [DReG(2), ReweightedWakeSleep(2)], ids=str)
def test_the_local_part_keeps_its_own_estimator_beside_a_theta_without_a_path(objective):
    """On the same draws theta's guide gets what IWAE gives it, and all else what it gets where theta has a path."""
    with_path = Hierarchy(WITHOUT_PATH.parameters)
    found, of_theta, of_others = (
        on_one_seed(one, pair)
        for one, pair in ((objective, WITHOUT_PATH), (IWAE(2), WITHOUT_PATH), (objective, with_path))
    )
    expected = torch.stack([(of_theta if name in OF_THETA else of_others)[NAMES.index(name)] for name in NAMES])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    differ = (found - torch.where(expected == of_theta, of_others, of_theta)).abs() > 1e-3
    assert differ[[NAMES.index(name) for name in ("mu", "on_x")]].all()


def on_one_seed(objective, pair: Hierarchy) -> Tensor:
    objective.loss(pair.model, pair.guide, X)  # checks the pair
    torch.manual_seed(suite_seed(1))
    return gradients(objective, (pair.model, pair.guide), X)[0]


@pytest.mark.parametrize("objective", [ELBO(3), IWAE(3)], ids=str)
def test_chunks_of_particles_count_the_globals_once(objective):
    """Where theta and z hardly vary, one run's gradient is that of another."""
    still = Hierarchy({**hierarchical.OFF, "log_sd": -14.0, "log_scale": -14.0})
    whole, parts = (
        gradients(one, (still.model, still.guide), X)[0] for one in (objective, replace(objective, chunk_size=2))
    )
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3)


def test_the_gradients_of_the_bounds_differ():
    """Or one truth would serve for another."""
    for one, other in (("ELBO", "IWAE"), ("wake-phi", "IWAE"), ("thermodynamic", "ELBO")):
        assert (truth(one) - truth(other)).abs().max() > 0.3
