"""Small pairs that tests of compiled steps share, and eager and compiled runs of them side by side."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn

import pyrovae as pv
from pyrovae.objectives import ELBO
from pyrovae.training.compiled_svi import CompiledSVI

CompiledExactly = partial(CompiledSVI, inductor=False)


def small_vae(event_shape=(3,), **settings):
    defaults = {"latent_dim": 2, "hidden": (4,), "activation": "tanh", "likelihood": pv.Gaussian(0.5, learn_scale=True)}
    torch.manual_seed(3)
    return pv.VAE(event_shape, **{**defaults, **settings}).double()


def data(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alternating(batches, num_steps):
    return [batches[step % len(batches)] for step in range(num_steps)]


def num_graphs(svi):
    return len(svi.compiled._traced)


class EagerSVI:
    """Takes `CompiledSVI`'s steps with an optimiser of torch, by Pyro alone."""

    def __init__(self, model, guide, optim, loss):
        self.model, self.guide, self.optim, self.loss = model, guide, optim, loss

    def step(self, *args):
        self.optim.zero_grad()
        loss = self.loss.loss_and_grads(self.model, self.guide, *args)
        self.optim.step()
        return loss

    def evaluate_loss(self, *args):
        return self.loss.loss(self.model, self.guide, *args)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


def run_both(make, batches, objective=None, change=lambda step, state: None, kinds=(SVI, CompiledExactly)):
    """Trains `make() -> (model, guide, state)` by eager and by compiled steps of pyro.optim's Adam.

    `change(step, state)` is called before each step. Returns (losses, parameters, state of the random numbers) of each
    kind, and last the compiled SVI.
    """
    results = []
    for kind in kinds:
        pyro.clear_param_store()
        torch.manual_seed(5)
        model, guide, state = make()
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.01}), ELBO() if objective is None else objective)
        torch.manual_seed(5)
        losses = []
        for step, batch in enumerate(batches):
            change(step, state)
            losses.append(svi.step(*batch))
        values = [value.detach().clone() for _, value in sorted(pyro.get_param_store().items())]
        if isinstance(state, nn.Module):  # under names of its own, in another order
            values = [tensor.detach().clone() for tensor in state.state_dict().values()]
        results.append((losses, values, torch.get_rng_state()))
    return (*results, svi)


def assert_same(eager, compiled, svi, reason=None):
    assert svi.reason == reason, "else eager is compared with eager"
    assert compiled[0] == eager[0]
    assert len(compiled[1]) == len(eager[1]) > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(compiled[1], eager[1], strict=True))
    assert torch.equal(compiled[2], eager[2]), "another state of the random numbers"


# Pairs ----------------------------------------------------------------------------------------------------------------


def plain_model(x):
    loc = pyro.param("loc", x.new_zeros(2))
    weight = pyro.param("weight", x.new_ones(2, 2))
    scale = pyro.param("scale", x.new_ones(2), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)


def plain_guide(x):
    weight = pyro.param("guide_weight", x.new_ones(2, 2))
    scale = pyro.param("guide_scale", x.new_full((2,), 0.5), constraint=dist.constraints.interval(0.01, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ weight, scale).to_event(1))


def plain_pair():
    return plain_model, plain_guide, None


def vae_pair(**settings):
    def make():
        vae = small_vae(**settings)
        return vae.model, vae.guide, vae

    return make


class Settings:
    def __init__(self):
        self.gain = 1.0


def branching_pair():
    def model(x):
        plain_model(x if x.sum() > 1e9 else 2 * x)

    return model, plain_guide, model.__code__.co_firstlineno + 1


POINTS = [(data(6, 2),), (data(3, 2),)]
