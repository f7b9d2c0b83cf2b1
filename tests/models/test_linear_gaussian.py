"""The closed forms of `LinearGaussianVAE`, checked against formulas that it does not use."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error
from pyro import poutine
from scipy import integrate, stats

import pyrovae as pv


def test_log_px_is_the_integral_of_the_joint_over_one_latent_dimension():
    vae = linear_gaussian(0, data_dim=3, latent_dim=1)
    x = draw(vae, 1)

    def joint(z):
        z = torch.tensor([[z]], dtype=torch.float64)
        return (vae.prior.log_prob(z) + vae.decode(z).log_prob(x)).exp().item()

    integral, _ = integrate.quad(joint, -15, 15, epsabs=1e-14, epsrel=1e-12, points=[vae.posterior(x).mean.item()])
    assert vae.log_px(x).item() == pytest.approx(math.log(integral), abs=1e-9)


def test_log_px_agrees_with_scipy_where_the_marginal_is_written_out():
    vae = linear_gaussian(1)
    x = draw(vae, 7)
    weight, scale = vae.weight.detach().numpy(), vae.scale.item()
    mean = weight @ vae.prior_mean.detach().numpy() + vae.bias.detach().numpy()
    expected = stats.multivariate_normal(mean, weight @ weight.T + scale**2 * np.eye(5)).logpdf(x.numpy())
    assert vae.log_px(x).tolist() == pytest.approx(expected.tolist(), abs=1e-10)


def test_posterior_satisfies_bayes_rule():
    vae = linear_gaussian(2)
    x, z = draw(vae, 6), torch.randn(6, 2, dtype=torch.float64)
    bayes = vae.prior.log_prob(z) + vae.decode(z).log_prob(x) - vae.log_px(x)
    torch.testing.assert_close(vae.posterior(x).log_prob(z), bayes, atol=1e-10, rtol=0)


def test_elbo_is_log_px_minus_the_kl_to_the_posterior_for_any_guide():
    vae = linear_gaussian(3)
    with torch.no_grad():
        vae.guide_weight.add_(0.1)
        vae.guide_bias.sub_(0.3)
        vae.guide_log_scale.add_(torch.tensor([0.2, -0.4]))
    x = draw(vae, 6)
    q = vae.encode(x)
    dense = dist.MultivariateNormal(q.mean, scale_tril=vae.guide_log_scale.exp().diag())
    gap = torch.distributions.kl_divergence(dense, vae.posterior(x))
    torch.testing.assert_close(vae.elbo(x), vae.log_px(x) - gap, atol=1e-10, rtol=0)


def test_elbo_is_the_mean_of_the_log_weights():
    vae = linear_gaussian(4)
    x = draw(vae, 3)
    with torch.no_grad():
        estimate, error = mean_and_error(pv.log_weights(vae.model, vae.guide, x, num_particles=20_000))
    assert_within_standard_errors(estimate, vae.elbo(x), error)


def test_the_guide_starts_at_the_best_diagonal_gaussian():
    vae = linear_gaussian(5)
    x = draw(vae, 4)
    guide = [vae.guide_weight, vae.guide_bias, vae.guide_log_scale]
    for gradient in torch.autograd.grad(vae.elbo(x).sum(), guide):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-10, rtol=0)


def test_a_frozen_parameter_stays_frozen_and_out_of_the_trace():
    vae = linear_gaussian(7)
    vae.weight.requires_grad_(False)
    x = draw(vae, 3)
    sites = poutine.trace(vae.model).get_trace(x).nodes
    assert {name.split(".")[-1] for name, site in sites.items() if site["type"] == "param"} == {
        "bias", "prior_mean", "log_scale",
    }  # fmt: skip
    pv.objectives.IWAE(2).loss_and_grads(vae.model, vae.guide, x)
    assert not vae.weight.requires_grad
    assert vae.weight.grad is None
    assert vae.prior_mean.grad is not None


def test_draws_from_the_model_have_the_closed_form_moments():
    vae = linear_gaussian(6)
    x = draw(vae, 20_000)
    mean, error = mean_and_error(x)
    truth = (vae.weight @ vae.prior_mean + vae.bias).detach()
    assert_within_standard_errors(mean, truth, error)
    squares, error = mean_and_error((x - truth).square())
    variance = (vae.weight.square().sum(1) + vae.scale**2).detach()
    assert_within_standard_errors(squares, variance, error)


@pytest.mark.parametrize(
    ("weight", "bias", "scale", "field"),
    [
        (torch.ones(3), torch.ones(3), 1.0, "weight"),
        (torch.ones(3, 2), torch.ones(2), 1.0, "bias"),
        (torch.ones(3, 2), torch.ones(3), 0.0, "scale"),
    ],
)
def test_wrong_sizes_are_refused(weight, bias, scale, field):
    with pytest.raises(pv.InputError, match=f"^{field} must"):
        pv.LinearGaussianVAE(weight, bias, scale)
