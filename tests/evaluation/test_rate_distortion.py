"""The rate-distortion curve of a linear Gaussian model, which has a closed form, and its errors."""

import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, refusal, suite_seed

import pyrovae as pv


def closed_form(vae, x, beta):
    """Rate and distortion of q proportional to p(z) p(x|z)^(1/beta), each `(batch,)`."""
    weight, bias, scale = (part.detach() for part in (vae.weight, vae.bias, vae.scale))
    precision = torch.eye(vae.latent_dim).double() + weight.T @ weight / (beta * scale**2)
    prior_mean = vae.prior_mean.detach()
    mean = torch.linalg.solve(precision, ((x - bias) @ weight / (beta * scale**2) + prior_mean).T).T
    q = dist.MultivariateNormal(mean, precision_matrix=precision)
    p = dist.MultivariateNormal(prior_mean, torch.eye(vae.latent_dim).double())
    rate = torch.distributions.kl_divergence(q, p)
    covariance = torch.linalg.inv(precision)
    fit = dist.Normal(mean @ weight.T + bias, scale).log_prob(x).sum(-1)
    return rate, -(fit - 0.5 * (weight @ covariance @ weight.T).trace() / scale**2)


@pytest.fixture
def vae():
    return linear_gaussian(0, pinned=True)


@pytest.mark.parametrize("lowest_beta", [1.0, 0.5])
def test_the_curve_is_that_of_the_closed_form(vae, lowest_beta):
    """Of one datum 25 times, so that z-scores can be seen to have mean square 1."""
    x = draw(vae, 1).expand(25, -1)
    torch.manual_seed(suite_seed(1))
    settings = {"num_distributions": 120, "num_chains": 100, "num_leapfrog": 4}
    curve = pv.annealed_rate_distortion(vae, x, lowest_beta=lowest_beta, **settings)
    assert curve.betas[-1] == lowest_beta
    for k in (20, 60, 119):
        exact = closed_form(vae, x, curve.betas[k])
        for found, error, truth in zip(
            (curve.rate[k], curve.distortion[k]), (curve.rate_error[k], curve.distortion_error[k]), exact, strict=True
        ):
            z = (found - truth) / error
            mean, of_mean = mean_and_error(z)
            assert_within_standard_errors(mean, 0.0, of_mean)
            assert 0.4 < z.square().mean() < 2.5
    if lowest_beta == 1:
        torch.testing.assert_close(-(curve.rate[-1] + curve.distortion[-1]), curve.end.value)
        assert_within_standard_errors(curve.end.value, vae.log_px(x).detach(), curve.end.standard_error, most=6)


def test_more_nats_of_rate_buy_less_distortion(vae):
    torch.manual_seed(suite_seed(2))
    settings = {"num_distributions": 60, "num_chains": 50, "num_leapfrog": 4}
    curve = pv.annealed_rate_distortion(vae, draw(vae, 30), **settings)
    assert (curve.mean_rate[::15].diff() > 0).all()
    assert (curve.mean_distortion[::15].diff() < 0).all()
    assert (curve.betas.diff() < 0).all()
    assert "rate and distortion at 60 betas, nats per datum; at beta = 1 rate " in repr(curve)
    assert "at beta = 1: " in curve.verdict
    axes = curve.plot(4, pv.plots.figure_row(1)[1][0])
    assert len(axes.texts) == 4
    assert list(axes.lines[-1].get_xdata()) == curve.mean_rate.tolist()
    assert axes.texts[-1].get_text() == r"$\beta$ = 1"


def test_what_has_no_curve_is_refused(vae):
    x = draw(vae, 2)
    assert refusal(pv.annealed_rate_distortion, vae, x, lowest_beta=0).startswith("lowest_beta must be a finite number")
    codes = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5), posterior="bernoulli")
    assert "is discrete" in refusal(pv.annealed_rate_distortion, codes, torch.zeros(3, 2), num_distributions=3)
