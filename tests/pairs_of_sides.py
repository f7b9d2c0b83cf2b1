"""Pairs whose sides are trained apart, for several test files."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyrovae as pv

EAGER = {"compile": False, "progress": False}
ONE_BY_ONE = pv.objectives.ELBO(vectorize_particles=False)  # for batch normalisation


def by_side(vae):
    """The parameters of a `LinearGaussianVAE`, by name."""
    named = dict(vae.named_parameters())
    guide = {name: p for name, p in named.items() if name.startswith("guide")}
    return {"model": {name: p for name, p in named.items() if name not in guide}, "guide": guide}


def values(parameters):
    return {name: p.detach().clone() for name, p in parameters.items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Normalised(nn.Module):
    """Has batch normalisation and dropout on both sides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.decoder, self.encoder = self.network(2, 3), self.network(3, 2)

    @staticmethod
    def network(num_in, num_out):
        return nn.Sequential(nn.Linear(num_in, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, num_out))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            self.seen = self.decoder.training, self.decoder[2].training, self.encoder.training
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.7).to_event(1))
