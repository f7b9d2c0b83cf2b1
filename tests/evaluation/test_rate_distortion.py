"""The rate-distortion curve of a linear Gaussian model, which has a closed form, and its errors."""

import math

import pyro
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
    settings = {"num_distributions": 32, "num_chains": 200, "num_leapfrog": 4}
    curve = pv.annealed_rate_distortion(vae, x, lowest_beta=lowest_beta, **settings)
    assert curve.betas[-1] == lowest_beta
    for k in (6, 15, 31):
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
    settings = {"num_distributions": 24, "num_chains": 50, "num_leapfrog": 4}
    curve = pv.annealed_rate_distortion(vae, draw(vae, 30), **settings)
    assert (curve.mean_rate[::6].diff() > 0).all()
    assert (curve.mean_distortion[::6].diff() < 0).all()
    assert (curve.betas.diff() < 0).all()
    assert "rate and distortion at 24 betas, nats per datum; at beta = 1 rate " in repr(curve)
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


def one_normal(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_normal(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def no_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))


def no_shared_guide(x):
    pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))


SHORT = {"num_distributions": 16, "num_chains": 30, "num_leapfrog": 3, "progress": False}


def test_where_the_chains_end_at_another_beta_is_not_called_log_px():
    """At x = 0 log int N(z; 0, 1) N(0; z, 1)^2 dz = -log(2 pi sqrt 3) = -2.387, and log p(x) = -1.266."""
    x = torch.zeros(1).double()
    torch.manual_seed(suite_seed(3))
    end = pv.annealed_rate_distortion(one_normal, no_guide, x, lowest_beta=0.5, **SHORT).end
    assert_within_standard_errors(end.value, torch.tensor([-math.log(2 * math.pi * 3**0.5)]), end.standard_error)
    assert repr(end).startswith("log int p(z) p(x|z)^2 dz of 1 data: mean -2.")
    assert refusal(lambda: end.log_px) == ("log_px must be of chains that end at p(x|z), got log int p(z) p(x|z)^2 dz")
    end = pv.annealed_rate_distortion(one_normal, no_guide, x, **SHORT).end
    assert_within_standard_errors(end.log_px, torch.tensor([-math.log(2 * math.pi**0.5)]), end.standard_error)
    assert repr(end).startswith("log p(x) of 1 data: mean -1.2")


@pytest.mark.parametrize("lowest_beta", [1.0, 0.5])
def test_the_numbers_of_data_that_share_latents_are_those_of_all_together(lowest_beta):
    """At x = 0 the posterior at beta is N(0, 1 / (1 + N / beta)), and D = N / 2 (log 2 pi + its variance)."""
    x = torch.zeros(20).double()
    torch.manual_seed(suite_seed(4))
    settings = {**SHORT, "num_chains": 200, "lowest_beta": lowest_beta}
    curve = pv.annealed_rate_distortion(shared_normal, no_shared_guide, x, **settings)
    expected = 10 * (math.log(2 * math.pi) + 1 / (1 + 20 / lowest_beta))
    assert curve.rate.shape == (16, 1)
    assert_within_standard_errors(curve.distortion[-1], torch.tensor([expected]), curve.distortion_error[-1])
    assert "at 16 betas, nats of all data together; " in repr(curve)
    assert ("joint evidence" in repr(curve.end)) == (lowest_beta == 1)
