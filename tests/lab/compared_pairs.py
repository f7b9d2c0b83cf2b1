"""Pairs of a model and a guide whose estimators are compared, for the tests of `compare`."""

import pyro
import pyro.distributions as dist
import torch
from helpers import linear_gaussian

FEW = {"repeats": 6, "compile": False, "progress": False}
GUIDE = ("guide_weight", "guide_bias", "guide_log_scale")


def poorly_guided(seed=0, pinned=False):
    """Returns a closed-form pair whose guide is not the posterior."""
    vae = linear_gaussian(seed, data_dim=3, pinned=pinned)
    with torch.no_grad():
        vae.guide_log_scale.add_(0.4)
        vae.guide_bias.add_(0.3)
    return vae


def plain_model(x):
    weight = pyro.param("weight", torch.ones(1, 3))
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Bernoulli(torch.full((1,), 0.4)).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, 0.7).to_event(1), obs=x)


def plain_guide(x):
    bias = pyro.param("bias", torch.zeros(1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Bernoulli(logits=bias + x[:, :1]).to_event(1))
