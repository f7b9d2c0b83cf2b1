"""Posteriors of real vectors: their densities, and the gaps to log p(x) that their families have in closed form."""

import math

import pyro
import pytest
import torch
from helpers import (
    draw,
    linear_gaussian,
    perturbed,
    suite_seed,
)
from torch import nn

import pyrovae as pv
from pyrovae.models import posteriors


@pytest.mark.parametrize("name", ["diagonal", "full_covariance", "flow", "mixture"])
def test_a_posteriors_density_integrates_to_one_over_the_plane(name, float64):
    posterior = perturbed(posteriors.POSTERIORS[name](2))
    with torch.no_grad():
        q = posterior(0.4 * torch.randn(posterior.output_shape))
        axis = torch.linspace(-9, 9, 201)
        grid = torch.cartesian_prod(axis, axis)
        mass = q.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=2e-3)


def test_full_covariance_has_the_covariance_of_its_outputs(float64):
    posterior = posteriors.FullCovariance(3)
    outputs = torch.randn(5, *posterior.output_shape)
    q = posterior(outputs)
    factor = outputs[:, 1:].tril(-1) + torch.diag_embed((0.5 * outputs[:, 1:].diagonal(dim1=-2, dim2=-1)).exp())
    torch.testing.assert_close(q.covariance_matrix, factor @ factor.mT)
    torch.testing.assert_close(q.mean, outputs[:, 0])


class LinearPair(nn.Module):
    """The model of a `LinearGaussianVAE`, with one of our posteriors on a linear encoder as its guide."""

    def __init__(self, vae, posterior):
        super().__init__()
        self.vae, self.posterior = vae, posterior
        self.encoder = nn.Linear(len(vae.bias), math.prod(posterior.output_shape)).double()
        for parameter in vae.parameters():
            parameter.requires_grad_(False)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.vae.decode(pyro.sample("z", self.vae.prior)), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        pyro.module("posterior", self.posterior)
        with pyro.plate("data", len(x), dim=-1):
            self.posterior.sample(self.posterior(self.encoder(x).unflatten(-1, self.posterior.output_shape)))


def exact_full(vae, pair):
    """Sets the encoder to the posterior's mean and Cholesky factor."""
    slope, at_zero, precision = vae._posterior_parts()
    factor = torch.linalg.cholesky(precision.inverse())
    raw = factor.tril(-1) + torch.diag_embed(2 * factor.diagonal().log())
    with torch.no_grad():
        pair.encoder.weight.zero_()
        pair.encoder.weight[: vae.latent_dim] = slope
        pair.encoder.bias.copy_(torch.cat((at_zero, raw.flatten())))


def test_full_covariance_reaches_log_px_exactly_and_diagonal_misses_by_its_closed_form():
    vae = linear_gaussian(1, data_dim=4, latent_dim=3)
    x = draw(vae, 50)
    exact = vae.log_px(x).mean().item()
    pair = LinearPair(vae, posteriors.FullCovariance(3).double())
    exact_full(vae, pair)
    weights = pv.log_weights(pair.model, pair.guide, x, num_particles=3)
    torch.testing.assert_close(weights, vae.log_px(x).expand(3, -1), atol=1e-10, rtol=0)
    # The best diagonal Gaussian has the variances 1 / P_jj. Its KL to the posterior does not depend on x.
    precision = vae.posterior(x[:1]).precision_matrix[0]
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    assert exact - vae.elbo(x).mean().item() == pytest.approx(gap)
    assert gap > 0.1


@pytest.mark.parametrize("name", ["diagonal", "full_covariance", "flow"])
def test_trained_posteriors_reach_the_gaps_that_their_families_have(name):
    weight = torch.tensor([[1.0, 0.8], [0.3, 1.0]], dtype=torch.float64)
    vae = pv.LinearGaussianVAE(weight, torch.zeros(2, dtype=torch.float64), 0.6)
    torch.manual_seed(suite_seed(0))
    x, pair = draw(vae, 100), LinearPair(vae, posteriors.POSTERIORS[name](2).double())
    settings = {"epochs": 100, "batch_size": 50, "lr": 0.05, "schedule": "cosine", "compile": False}
    pv.fit(pair, x, objective="elbo", num_particles=8, **settings, seed=suite_seed())
    precision = vae.posterior(x[:1]).precision_matrix[0]
    family = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    assert family > 0.15
    elbo = pv.importance_bound(pair.model, pair.guide, x, num_particles=1, num_repeats=200)
    gap, error = vae.log_px(x).mean().item() - elbo.mean, 5 * elbo.monte_carlo_error
    if name == "diagonal":
        assert gap == pytest.approx(family, abs=0.03 + error)
    else:
        assert abs(gap) < {"full_covariance": 0.02, "flow": 0.05}[name] + error
