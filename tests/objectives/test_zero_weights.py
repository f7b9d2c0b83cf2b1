"""Weights of 0: bounds and gradients that are defined, and path derivatives that are not."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact.expectations import log_mean_weight
from helpers import assert_within_standard_errors, mean_and_error, unit_quadrature
from scalar_pairs import double, gradients, gradients_of_each

import pyrovae as pv
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    OVIS,
    PIWAE,
    VIMCO,
    DReG,
    GDReG,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)

EVERY = [
    ELBO(4),
    StickingTheLanding(4),
    ScoreFunction(4),
    ScoreFunction(4, baseline="leave_one_out"),
    IWAE(4),
    DReG(4),
    GDReG(4),
    Renyi(4, alpha=0.5),
    Renyi(4, alpha=-1.0),
    MIWAE(2, num_batches=2),
    PIWAE(2, num_batches=2),
    CIWAE(4),
    CIWAE(4, elbo_weight=0.0),
    VIMCO(4),
    OVIS(4),
    OVIS(4, gamma=0.5),
    ReweightedWakeSleep(4),
    ThermodynamicVO(4),
    ThermodynamicVO(4, num_partitions=5),
]


@pytest.mark.parametrize("objective", EVERY, ids=str)
@pytest.mark.parametrize("num_zero", [0, 1, 3, 4])
def test_every_bound_and_coefficient_is_defined_where_weights_are_0(objective, num_zero):
    log_weights = double([[0.3], [-0.7], [1.1], [0.2]])
    log_weights[:num_zero] = -math.inf
    bound = objective.bound(log_weights)
    assert not bound.isnan().any()
    coefficients = objective.coefficients(log_weights, double(1.0)).finite()
    for part in (coefficients.model, coefficients.path, coefficients.score):
        assert part is None or part.isfinite().all()
    if num_zero == 4:
        assert bound.item() == -math.inf
        assert coefficients.model.abs().max() <= 1 / 4 + 1e-12 if objective.takes_points else True
    if isinstance(objective, IWAE) and 0 < num_zero < 4:
        left = log_weights[num_zero:]
        assert bound.item() == pytest.approx((left.logsumexp(0) - math.log(4)).item(), abs=1e-12)
        torch.testing.assert_close(coefficients.model[num_zero:], left.softmax(0))
        assert coefficients.model[:num_zero].abs().max() == 0


def edge(scale: float = 0.0):
    """Returns a pair with x ~ Uniform(low z, z), in which a draw below x has weight 0."""

    def model(x):
        low = pyro.param("low", double(0.05))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(double(0.0), 1.0))
            pyro.sample("x", dist.Uniform(low * z, z), obs=x)

    def guide(x):
        logit = pyro.param("logit", double(0.5))
        with pyro.plate("data", len(x), dim=-1):
            base = dist.Normal(logit, double(1.0))
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.SigmoidTransform()]))

    return model, guide


@pytest.mark.parametrize("objective", [VIMCO(4), OVIS(4), ReweightedWakeSleep(4)], ids=str)
@pytest.mark.parametrize("x", [0.97, 5.0], ids=["few weights are not 0", "all are 0"])
def test_loss_and_gradient_of_a_pair_are_defined_where_weights_are_0(objective, x):
    data = torch.full((400,), x, dtype=torch.float64)
    found = gradients(objective, edge(), data)
    assert found.isfinite().all()
    assert objective.loss(*edge(), data) == math.inf
    assert (found.abs().max() > 0) == (x < 1)


PATHS = [objective for objective in EVERY if objective.coefficients(torch.zeros(4, 1), 1.0).path is not None]


@pytest.mark.parametrize("objective", PATHS, ids=str)
def test_a_path_derivative_is_refused_where_weights_fall_to_0(objective):
    """The derivative through the draws misses the draws that cross the edge.

    IWAE's gradient would be 1.56 where differences of its loss have 0.015, and drives the guide out of the support.
    """
    with pytest.raises(pv.InputError, match=r"goes through the draws|ELBO is then -inf"):
        objective.loss(*edge(), torch.full((400,), 0.9, dtype=torch.float64))

    def beyond(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("a", double(0.5)), 0.6))

    with pytest.raises(pv.InputError, match="must draw what the prior can give"):
        objective.loss(exponential, beyond, torch.full((400,), 0.2, dtype=torch.float64))


def exponential(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Exponential(double(1.0)))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def test_vimcos_gradient_is_that_of_its_loss_where_weights_fall_to_0():
    """The loss by quadrature: a draw below 0 has weight 0, here e^-200, and 32 of them a chance of 1e-22."""
    count, num, x = 32, 20_000, 0.2

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("a", double(0.5).repeat(len(x))), 0.6))

    nodes, masses = (8 * part for part in unit_quadrature())
    nodes = torch.cat((nodes, double([-1.0])))

    def loss(a: float) -> torch.Tensor:
        q = dist.Normal(double(a), 0.6)
        log_w = dist.Exponential(double(1.0), validate_args=False).log_prob(nodes) - q.log_prob(nodes)
        log_w += dist.Normal(nodes, 0.7).log_prob(double(x))
        chances = torch.cat((masses * q.log_prob(nodes[:-1]).exp(), q.cdf(double([0.0]))))
        return -log_mean_weight(torch.cat((log_w[:-1], double([-200.0]))), chances, count)

    found = gradients_of_each(VIMCO(count), (exponential, guide), torch.full((num,), x, dtype=torch.float64))
    mean, error = mean_and_error(found)
    assert_within_standard_errors(mean, (loss(0.5 + 1e-4) - loss(0.5 - 1e-4)) / 2e-4, error)
