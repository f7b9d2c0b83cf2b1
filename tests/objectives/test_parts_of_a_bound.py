"""What counts in a bound with a global theta, and how often: several data plates, observations and factors outside."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import hierarchical
from exact.hierarchical import LATENT_SD, NOISE_SD, Hierarchy, Plate, normal
from helpers import assert_within_standard_errors, mean_and_error
from scalar_pairs import assert_one_bound, gradients
from torch import Tensor

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, DReG

PAIR = Hierarchy({**hierarchical.OFF, "log_sd": -2.5, "log_scale": -0.8})
X = hierarchical.data(7)
FIRST, SECOND = X[:4], X[4:]
EARLIER = torch.tensor(1.7, dtype=torch.float64)  # an observation of theta itself


def mean_of(objective, model, guide, *args, repeats: int = 80) -> tuple[Tensor, Tensor]:
    objective.loss(model, guide, *args)  # checks the pair
    with pyro.validation_enabled(False):
        losses = [-objective.loss(model, guide, *args) for _ in range(repeats)]
    return mean_and_error(torch.tensor(losses, dtype=torch.float64))


# Several data plates --------------------------------------------------------------------------------------------------


class TwoPlates:
    """The hierarchy with its data in two plates, of which each may be subsampled."""

    def __init__(self, *sizes: int | None) -> None:
        self.sizes = sizes

    def parts(self, x: Tensor):
        yield from zip(("a", "b"), (x[:4], x[4:]), self.sizes, strict=True)

    def model(self, x):
        theta = pyro.sample("theta", dist.Normal(torch.tensor(0.5, dtype=torch.float64), 1.5))
        mean = theta + PAIR.param("shift")
        for name, part, size in self.parts(x):
            with pyro.plate(name, len(part), subsample_size=size, dim=-1) as index:
                z = pyro.sample(f"z_{name}", dist.Normal(mean, LATENT_SD))
                pyro.sample(f"x_{name}", dist.Normal(z, NOISE_SD), obs=part[index])

    def guide(self, x):
        theta = PAIR.draw_theta()
        for name, part, size in self.parts(x):
            with pyro.plate(name, len(part), subsample_size=size, dim=-1) as index:
                mean = PAIR.param("on_x") * part[index] + PAIR.param("on_theta") * theta + PAIR.param("bias")
                pyro.sample(f"z_{name}", dist.Normal(mean, PAIR.param("log_scale").exp()))


@pytest.mark.parametrize(("objective", "count"), [(ELBO(2), 1), (IWAE(4), 4)], ids=str)
@pytest.mark.parametrize("sizes", [(None, None), (1, None), (2, 1)], ids=str)
def test_each_data_plate_counts_by_its_own_share(sizes, objective, count):
    programs = TwoPlates(*sizes)
    mean, error = mean_of(objective, programs.model, programs.guide, X)
    assert_within_standard_errors(mean, PAIR.bound(X, count), error)
    if isinstance(objective, IWAE):
        assert_one_bound(DReG(count), objective, programs.model, programs.guide, X)


def test_gradients_of_two_plates_are_those_of_one():
    whole = gradients(DReG(4), (PAIR.model, PAIR.guide), X, num=40)
    pyro.clear_param_store()
    parts = gradients(DReG(4), (TwoPlates(2, None).model, TwoPlates(2, None).guide), X, num=40)
    (mean, error), (other, other_error) = mean_and_error(whole), mean_and_error(parts)
    assert_within_standard_errors(mean, other, (error**2 + other_error**2).sqrt())


# Sites outside --------------------------------------------------------------------------------------------------------


def with_an_earlier_observation(x):
    theta = pyro.sample("theta", dist.Normal(torch.tensor(0.5, dtype=torch.float64), 1.5))
    pyro.sample("earlier", dist.Normal(theta, 0.5), obs=EARLIER)
    of_each_datum(theta, x)


def with_a_factor(x):
    theta = pyro.sample("theta", dist.Normal(torch.tensor(0.5, dtype=torch.float64), 1.5))
    pyro.factor("earlier", dist.Normal(theta, 0.5).log_prob(EARLIER))
    of_each_datum(theta, x)


def of_each_datum(theta, x):
    with Plate(x, None, None):
        z = pyro.sample("z", dist.Normal(theta + PAIR.param("shift"), LATENT_SD))
        pyro.sample("x", dist.Normal(z, NOISE_SD), obs=x)


def expected_earlier() -> Tensor:
    """E_q[log N(earlier; theta, 0.5)]."""
    at = PAIR.tensors()
    return normal(EARLIER, at["mu"], 0.5) - (2 * at["log_sd"]).exp() / (2 * 0.25)


@pytest.mark.parametrize(("objective", "count"), [(ELBO(2), 1), (IWAE(8), 8)], ids=str)
@pytest.mark.parametrize("model", [with_an_earlier_observation, with_a_factor])
def test_what_stands_outside_the_plate_counts_once_and_in_no_logsumexp(model, objective, count):
    mean, error = mean_of(objective, model, PAIR.guide, X)
    assert_within_standard_errors(mean, PAIR.bound(X, count) + expected_earlier(), error)
    if isinstance(objective, IWAE):
        assert_one_bound(DReG(count), objective, model, PAIR.guide, X)


def test_an_observation_outside_is_part_of_the_joint_evidence():
    """It is a density of theta's too: log p(earlier, x), by Bayes' rule from the posterior of theta given x."""
    near = Hierarchy().with_exact_local_guide().with_exact_global_guide(X)
    mean, sd = near.parameters["mu"], math.exp(near.parameters["log_sd"])
    truth = near.log_evidence(X) + normal(EARLIER, mean, math.hypot(sd, 0.5))
    precision = sd**-2 + 0.5**-2
    both = {"mu": (mean / sd**2 + EARLIER.item() / 0.5**2) / precision, "log_sd": 0.1 - math.log(precision) / 2}
    near = Hierarchy({**near.parameters, **both})  # a little wide
    result = pv.log_marginal(with_an_earlier_observation, near.guide, X, num_samples=4_000)
    assert result.log_px.shape == (1,)
    assert_within_standard_errors(result.log_px[0], truth, result.standard_error[0])
    assert result.standard_error.item() < 0.05


# Scales ---------------------------------------------------------------------------------------------------------------


def test_a_scale_of_everything_multiplies_the_bound():
    for scale in (0.1, 3.0):
        model, guide = (pyro.poutine.scale(program, scale) for program in (PAIR.model, PAIR.guide))
        mean, error = mean_of(IWAE(4), model, guide, X, repeats=80)
        assert_within_standard_errors(mean, scale * PAIR.bound(X, 4), error)
