"""Small pairs for Pyro's losses, and trainings by `pyro.infer.SVI` and by compiled steps side by side."""

import pyro
import pyro.distributions as dist
import torch
from compiled_steps import CompiledExactly, data
from pyro import infer, poutine
from pyro.contrib.gp.kernels import RBF
from pyro.infer import SVI
from torch import nn

X = data(6, 3).float()


class Pair(nn.Module):
    """A small VAE in Pyro's own words, whose latents are reals or bits."""

    def __init__(self, bits=False, **infer):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)
        self.bits, self.infer = bits, infer

    def model(self, x):
        pyro.module("decoder", self.decoder)
        prior = dist.Bernoulli(torch.full((2,), 0.4)) if self.bits else dist.Normal(torch.zeros(2), 1.0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x, observations=None):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        q_z = dist.Bernoulli(logits=loc) if self.bits else dist.Normal(loc, log_scale.exp())
        with pyro.plate("data", len(x)):
            pyro.sample("z", q_z.to_event(1), infer=self.infer)


class States(nn.Module):
    """A mixture whose components are summed out, in the model or in the guide."""

    def __init__(self, in_guide):
        super().__init__()
        self.encoder, self.locs, self.in_guide = nn.Linear(3, 2), nn.Parameter(torch.tensor([[-1.0], [1.0]])), in_guide

    def model(self, x):
        pyro.module("states", self)
        with pyro.plate("data", len(x)):
            how = {} if self.in_guide else {"enumerate": "parallel"}
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer=how)
            pyro.sample("x", dist.Normal(self.locs[k], 1.0).expand([*k.shape, 3]).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("states", self)
        if self.in_guide:
            with pyro.plate("data", len(x)):
                pyro.sample("k", dist.Categorical(logits=self.encoder(x)), infer={"enumerate": "parallel"})


def simple_elbo(model, guide, *args, **kwargs):
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


def reals():
    return Pair()


def bits():
    return Pair(bits=True)


def states():
    return States(in_guide=False)


def states_in_guide():
    return States(in_guide=True)


def samples_at_once():
    return Pair(enumerate="parallel", num_samples=2)


def mmd():
    return infer.Trace_MMD(kernel=RBF(input_dim=2), num_particles=2, vectorize_particles=True)


def adam():
    return pyro.optim.Adam({"lr": 0.01})


def trained(kind, make, loss, num_steps=3, evaluations=0, change=lambda step, pair: None, args=(X,), optim=adam):
    """Returns losses of steps and of evaluations, the parameters, and the SVI."""
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    pair = make()
    args = getattr(pair, "args", args)
    svi = kind(pair.model, pair.guide, optim(), loss or pair.pyro_loss)
    losses = []
    for step in range(num_steps):
        change(step, pair)
        losses.append(svi.step(*args))
    losses += [svi.evaluate_loss(*args) for _ in range(evaluations)]
    return losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}, svi


def assert_is_svi(make, loss=None, stock=None, reason=None, **how):
    """Compiled steps are those of `SVI` to the bit, and are replayed unless `reason` says why not."""
    stocks = trained(SVI, make, loss and (stock or loss)(), **how)
    ours = trained(CompiledExactly, make, loss and loss(), **how)
    assert ours[2].reason == reason
    assert ours[0] == stocks[0]
    assert [type(one) for one in ours[0]] == [type(one) for one in stocks[0]]
    assert ours[1].keys() == stocks[1].keys()
    assert all(torch.equal(value, stocks[1][name]) for name, value in ours[1].items())
