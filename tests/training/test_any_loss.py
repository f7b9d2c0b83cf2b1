"""`CompiledSVI` takes any loss that `pyro.infer.SVI` takes, and gives the same numbers to the bit."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import CompiledExactly, data
from programs_of_users import PROGRAMS
from pyro import infer, poutine
from pyro.contrib.gp.kernels import RBF
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import nn

import pyrovae as pv

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


class Doubled(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        return 2 * super().loss_and_grads(model, guide, *args, **kwargs)


class Tempered(Trace_ELBO):
    """As in Pyro's tutorial on losses of one's own."""

    def loss(self, model, guide, *args, **kwargs):
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def differentiable_loss(self, model, guide, *args, **kwargs):
        model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
        return guide_trace.log_prob_sum() * 0.5 - model_trace.log_prob_sum()

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


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


LOSSES = {
    "Trace": (reals, Trace_ELBO),
    "Trace, 3 particles": (reals, lambda: Trace_ELBO(num_particles=3)),
    "Trace, 3 particles at once": (reals, lambda: Trace_ELBO(num_particles=3, vectorize_particles=True)),
    "Trace, bits": (bits, Trace_ELBO),
    "Trace, bits, 3 particles at once": (bits, lambda: Trace_ELBO(num_particles=3, vectorize_particles=True)),
    "TraceMeanField": (reals, infer.TraceMeanField_ELBO),
    "TraceEnum": (states, lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "TraceEnum, nesting unknown": (states, TraceEnum_ELBO),
    "TraceEnum, in the guide": (states_in_guide, TraceEnum_ELBO),
    "TraceGraph": (reals, TraceGraph_ELBO),
    "TraceGraph, bits": (bits, TraceGraph_ELBO),
    "Renyi": (reals, lambda: infer.RenyiELBO(alpha=0.5, num_particles=3)),
    "Renyi, particles at once": (bits, lambda: infer.RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True)),
    "TraceTMC": (samples_at_once, lambda: infer.TraceTMC_ELBO(max_plate_nesting=1)),
    "ReweightedWakeSleep": (reals, lambda: infer.ReweightedWakeSleep(num_particles=3, insomnia=0.5)),
    "Trace_MMD": (reals, mmd),
    "EnergyDistance": (reals, lambda: infer.EnergyDistance(num_particles=2)),
    "a subclass": (reals, Doubled),
    "a subclass with a loss of its own": (reals, Tempered),
    "a function": (reals, lambda: simple_elbo),
}
OF_JIT = {
    infer.JitTrace_ELBO: (reals, Trace_ELBO),
    infer.JitTraceEnum_ELBO: (states, TraceEnum_ELBO),
    infer.JitTraceMeanField_ELBO: (reals, infer.TraceMeanField_ELBO),
    infer.JitTraceGraph_ELBO: (bits, TraceGraph_ELBO),
}
KINDS = [
    "VAE with batch normalisation", "VAE with a flow in the guide", "VAE that draws its own minibatch",
    "VAE with a Bayesian decoder", "M2, labels enumerated in the guide", "attend, infer, repeat",
    "hidden Markov model", "LDA", "gamma exponential family", "regression, AutoNormal",
    "regression, AutoMultivariateNormal", "regression, AutoNormalizingFlow", "regression of PyroModules",
    "neural process", "counts in a closure, no argument",
]  # fmt: skip


def trained(kind, make, loss, num_steps=4, evaluations=2, change=lambda step, pair: None, args=(X,), **settings):
    """Returns losses of steps and of evaluations, the parameters, and the SVI."""
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    pair = make()
    args = getattr(pair, "args", args)
    svi = kind(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), loss or pair.pyro_loss, **settings)
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


@pytest.mark.filterwarnings("ignore:.*found no sample sites configured")
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_pyros_or_of_the_user_gives_the_numbers_of_svi(name):
    assert_is_svi(*LOSSES[name])


@pytest.mark.parametrize("jit", OF_JIT)
def test_a_loss_that_compiles_itself_runs_as_the_one_it_was_made_from(jit):
    make, stock = OF_JIT[jit]
    assert_is_svi(make, jit, stock)


@pytest.mark.parametrize("name", KINDS)
def test_a_program_of_a_user_trains_with_its_own_loss(name):
    assert_is_svi(PROGRAMS[name], evaluations=1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deep Markov model, ragged", "the lengths in a packed sequence decide what is done"),
        ("ProdLDA", "it looks at the value of a tensor (topics.py, line "),
        ("groups in a list, sequential plate", "it looks at the value of a tensor (arguments.py, line "),
    ],
)
def test_what_runs_eagerly_says_so_once_and_names_the_line(name, reason):
    stocks = trained(SVI, PROGRAMS[name], None)
    with pytest.warns(match="steps run eagerly") as caught:
        ours = trained(CompiledExactly, PROGRAMS[name], None)
    assert len(caught) == 1
    assert ours[2].reason.startswith(reason)
    assert ours[0] == stocks[0]
    assert all(torch.equal(value, stocks[1][name]) for name, value in ours[1].items())
