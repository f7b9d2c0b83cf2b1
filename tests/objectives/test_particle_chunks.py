"""Particles in chunks: the loss and the gradient are those of all particles at once."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from gradient_checks import EVERY, assert_gradients, loss_and_gradients
from helpers import draw

import pyrovae as pv
from pyrovae.objectives import IWAE, MIWAE, DReG


def recorded(vae):
    """Returns the guide of `vae`, and a list to which each of its runs adds its draws."""
    draws = []

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            draws.append(pyro.sample("z", vae.encode(x)).detach())

    return guide, draws


class Shifted(dist.TorchDistribution):
    """Has the density of q(z|x) and draws mean + stddev * noise, with given noise."""

    has_rsample = True
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base, noise, batch_shape=None):
        self.base, self.noise = base, noise
        shape = base.batch_shape if batch_shape is None else batch_shape
        super().__init__(shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Shifted(self.base, self.noise, batch_shape)

    def rsample(self, sample_shape=()):
        noise = self.noise[: self.batch_shape[0]] if len(self.batch_shape) == 2 else self.noise[0]
        return self.base.mean + self.base.stddev * noise

    def log_prob(self, value):
        return self.base.log_prob(value)


@pytest.mark.parametrize("objective", [IWAE(7), DReG(7), MIWAE(3, num_batches=2)], ids=str)
def test_particles_in_chunks_give_the_same_loss(objective, vae):
    x, chunked = draw(vae, 4), replace(objective, chunk_size=3)
    guide, draws = recorded(vae)
    with torch.no_grad():
        chunked.loss(vae.model, guide, x)  # the gate looks at the pair
        draws.clear()
        found = chunked.loss(vae.model, guide, x)
        z = torch.cat(draws[2:])  # after a look at what else the programs draw
        expected = pv.programs.pair_at(vae.model, vae.guide, {"z": z}, x).terms().log_weights
    assert len(z.flatten().unique()) == z.numel()
    assert found == pytest.approx(-objective.bound(expected).sum().item(), abs=1e-10)


@pytest.mark.parametrize("objective", [o for o in EVERY if not isinstance(o, MIWAE)], ids=str)
def test_the_gradient_in_chunks_is_that_of_the_whole_on_the_chunks_draws(objective, vae):
    x, chunked = draw(vae, 4), replace(objective, chunk_size=2)
    recording, draws = recorded(vae)
    chunked.loss(vae.model, recording, x)
    draws.clear()
    _, gradients = loss_and_gradients(chunked, vae, x, guide=recording)
    z = torch.cat(draws[2:5])  # after a look at what else the programs draw
    noise = ((z - vae.encode(x).mean) / vae.encode(x).stddev).detach()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Shifted(vae.encode(x), noise))

    _, expected = loss_and_gradients(objective, vae, x, guide=guide)
    assert_gradients(gradients, expected, atol=1e-9)
