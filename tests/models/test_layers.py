"""Posteriors and priors of several layers: their weights by the chain rule, their draws, their sites."""

import pyro
import pyro.distributions as dist
import torch
from helpers import (
    assert_within_standard_errors,
    refusal,
    small_vae,
    suite_seed,
)

import pyrovae as pv
from pyrovae.models import posteriors, priors


def layered(seed=3, **settings):
    torch.manual_seed(suite_seed(seed))
    dims, hidden = (3, 2), ((5,),)
    settings = {"posterior": posteriors.Layered(dims, hidden, "tanh"), **settings}
    return pv.VAE((4,), latent_dim=3, hidden=(6,), likelihood=pv.Gaussian(0.5), **settings)


def test_two_layers_weigh_as_their_chain_rule_says(float64):
    vae = layered().double()
    x = torch.randn(5, 4)
    torch.manual_seed(suite_seed(1))
    weights = pv.log_weights(vae.model, vae.guide, x, num_particles=2)
    torch.manual_seed(suite_seed(1))
    with pyro.plate("num_particles", 2, dim=-2):
        sites = pyro.poutine.trace(vae.guide).get_trace(x).nodes
    z1, z2 = sites["z1"]["value"], sites["z2"]["value"]

    def normal(outputs, z):
        loc, log_variance = outputs.unbind(-2)
        return dist.Normal(loc, (0.5 * log_variance).exp()).log_prob(z).sum(-1)

    log_q = normal(vae.encoder(x), z1) + normal(vae.posterior_family.nets[0](z1), z2)
    log_p = normal(vae.prior_family.nets[0](z2), z1) + dist.Normal(0.0, 1.0).log_prob(z2).sum(-1)
    torch.testing.assert_close(weights, log_p + vae.decode(z1).log_prob(x) - log_q)
    assert vae.sample(7).shape == vae.reconstruct(torch.randn(7, 4)).shape == (7, 4)
    assert (z1.shape, z2.shape) == ((2, 5, 3), (2, 5, 2))


def test_draws_of_two_layers_are_those_of_ancestral_sampling():
    vae = layered()
    z2 = torch.randn(40_000, 2)
    with torch.no_grad():
        loc, log_variance = vae.prior_family.nets[0](z2).unbind(-2)
        expected = vae.decode(loc + (0.5 * log_variance).exp() * torch.randn_like(loc)).mean
    found = vae.sample(40_000, mean=True)
    error = ((found.var(0) + expected.var(0)) / 40_000).sqrt()
    assert_within_standard_errors(found.mean(0), expected.mean(0), error)
    assert_within_standard_errors(found.square().mean(0), expected.square().mean(0), 3 * error)


def test_layers_without_their_prior_are_refused_by_their_sites():
    vae = small_vae((3,), posterior=posteriors.Layered((2, 2), ((4,),)), prior=priors.Standard(2))
    assert "the same latent sites" in refusal(pv.fit, vae, torch.randn(4, 3), epochs=1)
