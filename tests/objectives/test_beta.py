"""Under a beta on the latents every estimator has the mean of the total derivative, or refuses the beta."""

from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import mean_and_error, suite_seed
from scalar_pairs import OnLatents, assert_one_mean, double, gradients_of_each

import pyrovae as pv
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    OVIS,
    PIWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    GDReG,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)


def weighed(beta: float, num: int = 1):
    """Returns z ~ N(shift, 1), x ~ N(z, 0.7) and q = N(slope x, exp(log_scale)), under beta on the latent.

    Each of `num` data has its own copy of the parameters, or one is that of all.
    """

    def model(x):
        shift = pyro.param("shift", double(0.4).repeat(num))
        with pyro.plate("data", len(x), dim=-1), OnLatents(beta):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(x):
        slope, log_scale = (
            pyro.param(name, double(at).repeat(num)) for name, at in (("slope", 0.3), ("log_scale", -0.3))
        )
        with pyro.plate("data", len(x), dim=-1), OnLatents(beta):
            pyro.sample("z", dist.Normal(slope * x, log_scale.exp()))

    return model, guide


NUM = 10_000


def total_derivative(objective, beta: float) -> torch.Tensor:
    """Returns the gradients of -bound of `NUM` copies of one datum, `(NUM, parameters)`."""
    pyro.clear_param_store()
    return gradients_of_each(objective, weighed(beta, NUM), torch.full((NUM,), 1.5, dtype=torch.float64))


@cache
def expected_derivative(plain, beta: float) -> torch.Tensor:
    """Returns those of an estimator that several others are compared with, from draws of their own."""
    return total_derivative(plain, beta)


@pytest.mark.parametrize("beta", [0.5, 4.0])
@pytest.mark.parametrize(
    ("objective", "plain"),
    [
        (StickingTheLanding(3), ELBO(3)),
        (AnalyticKLELBO(3), ELBO(3)),
        (ScoreFunction(3), ELBO(3)),
        (ScoreFunction(3, baseline="leave_one_out"), ELBO(3)),
        (DReG(8), IWAE(8)),
        (GDReG(8), IWAE(8)),
        (VIMCO(8), IWAE(8)),
        (OVIS(8), IWAE(8)),
        (Renyi(8, alpha=0.0), IWAE(8)),
        (CIWAE(8, elbo_weight=0.0), IWAE(8)),
        (CIWAE(8, elbo_weight=1.0), ELBO(8)),
        (MIWAE(8, num_batches=1), IWAE(8)),
        (PIWAE(8, num_batches=1), IWAE(8)),
    ],
    ids=str,
)
def test_under_beta_too_every_estimator_has_the_mean_of_the_total_derivative(objective, plain, beta):
    """DReG without beta in its coefficient would have (-0.269, -0.277) where IWAE has (2.527, 1.020)."""
    found, expected = total_derivative(objective, beta), expected_derivative(plain, beta)
    assert found.shape == (NUM, 3)
    assert_one_mean(found, expected, f"beta {beta}")
    assert mean_and_error(expected)[1].max() < 0.05 * expected.mean(0).abs().max(), "else nothing is compared"


@pytest.mark.parametrize("beta", [0.5, 4.0])
@pytest.mark.parametrize("objective", [Renyi(8, alpha=0.5), CIWAE(8), MIWAE(4, num_batches=2)], ids=str)
def test_under_beta_a_bound_of_its_own_has_the_gradient_of_its_value(objective, beta):
    """The gradient is compared with differences of the loss on the same draws."""
    pair, x = weighed(beta), torch.linspace(-1, 2, 50, dtype=torch.float64)
    torch.manual_seed(7)
    (found,) = gradients_on_one_seed(objective, pair, x)
    for column, name in enumerate(sorted(["log_scale", "shift", "slope"])):
        parameter, losses = pyro.param(name).unconstrained(), []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step
                torch.manual_seed(7)
                losses.append(objective.loss(*pair, x))
                parameter -= step
        assert found[column] == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-5)


def gradients_on_one_seed(objective, pair, x) -> torch.Tensor:
    objective.loss(*pair, x)
    parameters = [value.unconstrained() for _, value in sorted(pyro.get_param_store().items())]
    for parameter in parameters:
        parameter.grad = None
    torch.manual_seed(7)
    objective.loss_and_grads(*pair, x)
    return torch.stack([parameter.grad for parameter in parameters]).unsqueeze(0)


@pytest.mark.parametrize("objective", [ELBO(3), StickingTheLanding(3), IWAE(3), DReG(3), CIWAE(3)], ids=str)
def test_beta_weighs_the_latent_terms_of_the_weights(objective):
    vae = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5), beta=3.0).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.manual_seed(suite_seed(1))
    terms = pv.programs.run_pair(vae.model, vae.guide, x, num_particles=3).terms()
    expected = objective.bound(terms.log_likelihood + 3.0 * (terms.log_prior - terms.log_posterior)).sum()
    torch.manual_seed(suite_seed(1))
    assert -objective.loss(vae.model, vae.guide, x) == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("objective", [ReweightedWakeSleep(3), ThermodynamicVO(3)], ids=str)
def test_an_objective_that_has_no_beta_refuses_one(objective):
    vae = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5), beta=3.0)
    with pytest.raises(pv.InputError, match="is not defined for a beta on the latents, got 3"):
        pv.fit(vae, torch.randn(5, 2), epochs=1, objective=objective)
