"""Active units of any guide, not only that of a VAE."""

import pyro
import pyro.distributions as dist
import torch
from helpers import draw, linear_gaussian, suite_seed

from pyrovae.evaluation.diagnostics import active_units


def latent_use_of(vae, x):
    return int((vae.encode(x).mean.var(0) > 0.01).sum())


def test_active_units_of_any_guide_are_those_of_the_closed_form():
    vae = linear_gaussian(0, data_dim=4, latent_dim=3)
    with torch.no_grad():
        vae.guide_weight[1] = 0.0
        vae.guide_weight[2] *= 0.13 / (vae.encode(draw(vae, 4_000)).mean[:, 2].std())  # variance 0.017
    x = draw(vae, 600)
    assert active_units(vae.model, vae.guide, x) == latent_use_of(vae, x) == 2

    def through_another(x):  # the mean of z given u is x's only through the draw u
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(0.0 * x[:, :2], 1.0).to_event(1))
            pyro.sample("z", dist.Normal(torch.cat((u, x[:, :1].expand(*u.shape[:-1], 1)), -1), 0.1).to_event(1))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(0.0 * x[:, :2], 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(torch.cat((u, u[..., :1]), -1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1].expand(*z.shape[:-1], 4), 1.0).to_event(1), obs=x)

    assert active_units(model, through_another, x) == 1

    def one_number(x):  # a site without event dimensions
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0], 0.1))

    def model_of_one(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 4), 1.0).to_event(1), obs=x)

    assert active_units(model_of_one, one_number, x) == 1


def test_the_noise_of_draws_from_wide_latents_is_no_active_unit():
    """Units of a guide that is the prior were counted at scales above 1: one to three of ten at a scale of 5."""

    def latents(x, signal):
        u = pyro.sample("u", dist.Normal(0.0 * x + signal * x[:, :1], 1.0).to_event(1))
        pyro.sample("z", dist.Normal(5 * u, 1.0).to_event(1))

    def guide(x, signal=0.0):
        with pyro.plate("data", len(x), dim=-1):
            latents(x, signal)

    def model(x, signal=0.0):
        with pyro.plate("data", len(x), dim=-1):
            latents(x, 0.0)
            pyro.sample("x", dist.Normal(torch.zeros(5), 1.0).to_event(1), obs=x)

    for seed in range(4):
        torch.manual_seed(suite_seed(seed))
        assert active_units(model, guide, torch.randn(200, 5)) == 0
    assert active_units(model, guide, torch.randn(200, 5), 0.3) == 10
