"""Gradients of the guide for one continuous latent, against quadrature."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error
from scalar_pairs import double
from torch import Tensor

from pyrovae.objectives import ELBO, ScoreFunction, StickingTheLanding

GUIDES = {"LogNormal": double(0.2, -0.7), "Exponential": double(0.3, 0.0)[:1], "Gumbel": double(0.5, -0.3)}
PRIORS = {"LogNormal": double(0.0, 0.0), "Exponential": double(0.0, 0.0)[:1], "Gumbel": double(0.0, 0.0)}
OBSERVED = double(1.0)


def family_at(family: str, a: Tensor) -> dist.TorchDistribution:
    if family == "Exponential":
        return dist.Exponential(torch.exp(-a[..., 0]))
    return getattr(dist, family)(a[..., 0], a[..., 1].exp())


def log_joint(family: str, z: Tensor) -> Tensor:
    return family_at(family, PRIORS[family]).log_prob(z) + dist.Normal(z.sin(), 0.5).log_prob(OBSERVED)


def nodes(family: str) -> tuple[Tensor, Tensor]:
    """Returns standard noise e, and the weights of the trapezoidal rule for an expectation over it."""
    if family == "Exponential":
        log_e = torch.linspace(-40, 4, 20_001, dtype=torch.float64)
        return log_e.exp(), torch.exp(log_e - log_e.exp()) * (log_e[1] - log_e[0])
    low, high, standard = (-9, 9, dist.Normal) if family == "LogNormal" else (-5, 40, dist.Gumbel)
    e = torch.linspace(low, high, 20_001, dtype=torch.float64)
    return e, standard(double(0.0), double(1.0)).log_prob(e).exp() * (e[1] - e[0])


def moved(family: str, e: Tensor, a: Tensor) -> Tensor:
    """Returns the draw that the noise e gives."""
    if family == "Exponential":
        return a[..., 0].exp() * e
    z = a[..., 0] + a[..., 1].exp() * e
    return z.exp() if family == "LogNormal" else z


def gradient_by_quadrature(family: str) -> Tensor:
    """Returns the gradient of minus the ELBO, integrated over z on a grid that does not move with the parameters."""
    e, weight = nodes(family)
    a = GUIDES[family].clone().requires_grad_()
    z = moved(family, e, GUIDES[family])
    ratio = (family_at(family, a).log_prob(z) - family_at(family, GUIDES[family]).log_prob(z)).exp()
    elbo = (weight * ratio * (log_joint(family, z) - family_at(family, a).log_prob(z))).sum()
    return torch.autograd.grad(-elbo, a)[0]


def variance_by_quadrature(family: str, objective) -> Tensor:
    """Returns the variance of one draw's gradient, for each parameter."""
    e, weight = nodes(family)
    a = GUIDES[family].expand(len(e), -1).clone().requires_grad_()
    z = moved(family, e, a)
    if isinstance(objective, ScoreFunction):
        held = z.detach()
        log_q = family_at(family, a).log_prob(held)
        form = (log_joint(family, held) - log_q).detach() * log_q
    else:
        own = a.detach() if isinstance(objective, StickingTheLanding) else a
        form = log_joint(family, z) - family_at(family, own).log_prob(z)
    (draws,) = torch.autograd.grad(-form.sum(), a)
    mean = (weight[:, None] * draws).sum(0)
    return (weight[:, None] * (draws - mean).square()).sum(0)


def independent_gradients(objective, family: str, num: int = 40_000) -> Tensor:
    """Returns gradients `(num, parameters)`: each copy of the datum has parameters of its own."""
    a = GUIDES[family].expand(num, -1).clone().requires_grad_()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", family_at(family, PRIORS[family]))
            pyro.sample("x", dist.Normal(z.sin(), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family_at(family, a))

    objective.loss_and_grads(model, guide, OBSERVED.expand(num))
    return a.grad


@pytest.mark.usefixtures("pairs_unchecked")
@pytest.mark.parametrize("family", GUIDES)
@pytest.mark.parametrize("objective", [
    ELBO(1), ELBO(4), StickingTheLanding(1), ScoreFunction(1), ScoreFunction(4, baseline="leave_one_out"),
], ids=str)  # fmt: skip
def test_on_a_latent_that_is_no_gaussian_the_gradient_is_that_by_quadrature(objective, family):
    draws = independent_gradients(objective, family)
    mean, error = mean_and_error(draws)
    assert_within_standard_errors(mean, gradient_by_quadrature(family), error)
    if objective.num_particles == 1:
        squares, error = mean_and_error((draws - mean).square())
        assert_within_standard_errors(squares, variance_by_quadrature(family, objective), error)
