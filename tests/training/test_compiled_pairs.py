"""Compiled steps of every kind of pair and argument are those of `pyro.infer.SVI`."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import (
    POINTS,
    CompiledExactly,
    EagerSVI,
    alternating,
    assert_same,
    data,
    num_graphs,
    plain_guide,
    plain_model,
    plain_pair,
    run_both,
    small_vae,
    vae_pair,
)
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn

import pyrovae as pv
from pyrovae.objectives import (
    ELBO,
    IWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    EnumeratedELBO,
    ReweightedWakeSleep,
    ScoreFunction,
)

# Pairs of every kind --------------------------------------------------------------------------------------------------


class Decoder(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 2).double()
        self.scale = PyroParam(torch.ones(2, dtype=torch.float64), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.linear(z).tanh(), self.scale).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self):
        super().__init__()
        # Not the decoder's name: parameters of both would be one in the store, and those of the second never train.
        self.encoding = PyroModule[nn.Linear](2, 4).double()

    def forward(self, x):
        loc, log_scale = self.encoding(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def pyro_module_pair():
    return Decoder(), Encoder(), None


def discrete_model(x):
    logits = pyro.param("logits", x.new_zeros(3))
    weight = pyro.param("weight", torch.linspace(-1, 1, 6, dtype=x.dtype).reshape(3, 2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, 0.7).to_event(1), obs=x)


def discrete_guide(x):
    weight = pyro.param("guide_weight", x.new_full((2, 3), 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=x @ weight).to_event(1))


def discrete_pair():
    return discrete_model, discrete_guide, None


def mixed_pair(marked=False):
    """Returns a pair with a category without `rsample`, which the guide draws after one latent and before another."""

    def model(x):
        weight = pyro.param("weight", torch.linspace(-1, 1, 6, dtype=x.dtype).reshape(3, 2))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(logits=x.new_zeros(3)))
            z = pyro.sample("z", dist.Normal(c @ weight, 1.0).to_event(1))
            u = pyro.sample("u", dist.Normal(z, 0.5).to_event(1))
            pyro.sample("x", dist.Normal(u, 0.7).to_event(1), obs=x)

    def guide(x):
        slope, logits = (pyro.param(name, x.new_full((2, num), 0.3)) for name, num in (("slope", 2), ("logits", 3)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x @ slope, 0.6).to_event(1))
            infer = {"enumerate": "parallel"} if marked else {}
            c = pyro.sample("c", dist.OneHotCategorical(logits=z @ logits), infer=infer)
            pyro.sample("u", dist.Normal(z + c[..., :2], 0.6).to_event(1))

    return model, guide, None


def conditional_pair():
    """Returns a pair that takes labels as a second argument."""
    network = nn.Linear(2 + 4, 4).double()

    def model(x, y):
        weight = pyro.param("class_weight", x.new_ones(4, 2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * weight[y], 0.7).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("network", network)
        loc, log_scale = network(torch.cat((x, torch.eye(4, dtype=x.dtype)[y]), -1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, None


IMAGES = {"likelihood": pv.Bernoulli(), "network": "conv", "hidden": (3, 2)}
LABELS = [(data(n, 2), torch.arange(n) % 4) for n in (6, 3)]
PAIRS = {
    "constrained parameters": (plain_pair, POINTS, ELBO(2)),
    "constrained parameters, path derivative": (plain_pair, POINTS, DReG(3)),
    "PyroModules": (pyro_module_pair, POINTS, ELBO()),
    "PyroModules, sleep": (pyro_module_pair, POINTS, ReweightedWakeSleep(3, sleep_weight=0.5)),
    "discrete, score function": (discrete_pair, POINTS, ScoreFunction(4, baseline="leave_one_out")),
    "discrete, VIMCO": (discrete_pair, POINTS, VIMCO(4)),
    "discrete, enumerated": (discrete_pair, POINTS, EnumeratedELBO()),
    "bits, enumerated": (vae_pair(event_shape=(2,), posterior="bernoulli"), POINTS, EnumeratedELBO()),
    "mixed, ELBO": (mixed_pair, POINTS, ELBO(3)),
    "mixed, IWAE": (mixed_pair, POINTS, IWAE(3)),
    "mixed, path derivative": (mixed_pair, POINTS, DReG(3)),
    "mixed, enumerated": (partial(mixed_pair, marked=True), POINTS, ELBO(2)),
    "relaxed bits": (vae_pair(event_shape=(2,), posterior="relaxed_bernoulli"), POINTS, DReG(4)),
    "labels": (conditional_pair, LABELS, IWAE(3)),
    "one-hot labels": (vae_pair(event_shape=(2,), condition=pv.OneHot(4)), LABELS, IWAE(3)),
    "continuous condition": (
        vae_pair(event_shape=(2,), condition=pv.Embedding((2,))),
        [(x, x + 1) for x, _ in LABELS],
        AnalyticKLELBO(),
    ),
    "images": (
        vae_pair(event_shape=(1, 6, 5), **IMAGES),
        [((data(4, 1, 6, 5) > 0).double(),)],
        ELBO(),
    ),
    "autoencoder": (vae_pair(posterior="delta"), [(data(6, 3),)], ELBO()),
}


IN_TWO_SHAPES = {"constrained parameters", "labels"}  # a trace takes long


@pytest.mark.parametrize("name", PAIRS)
def test_compiled_steps_of_every_kind_of_pair_are_svi_s(name):
    make, batches, objective = PAIRS[name]
    shapes = batches if name in IN_TWO_SHAPES else batches[:1]
    *results, svi = run_both(make, alternating(shapes, 2 * len(shapes) + 1), objective)
    assert_same(*results, svi)
    assert num_graphs(svi) == len(shapes)


@pytest.mark.parametrize("make", [plain_pair, pyro_module_pair])
def test_compiled_steps_are_those_of_pyro_s_own_objective(make):
    losses = []
    for kind, objective in ((SVI, Trace_ELBO()), (CompiledExactly, ELBO())):
        pyro.clear_param_store()
        torch.manual_seed(2)
        model, guide, _ = make()
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.01}), objective)
        torch.manual_seed(5)
        losses.append([svi.step(*POINTS[0]) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    assert svi.reason is None


def test_keyword_arguments_and_arguments_that_are_no_tensors():
    def model(x, temperature, shift=None):
        plain_model(x * temperature if shift is None else x + shift)

    def guide(x, temperature, shift=None):
        plain_guide(x)

    (x,), shift = POINTS[0], data(6, 2, seed=2)
    calls = [
        ((x, 1.0), {}),
        ((x, 2.0), {}),
        ((x, 1.0), {"shift": shift}),
        ((x, 1.0), {"shift": -shift}),
        ((x, 2.0), {}),
    ]
    losses = []
    for kind in (SVI, CompiledExactly):
        pyro.clear_param_store()
        torch.manual_seed(5)
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.01}), ELBO())
        losses.append([svi.step(*args, **kwargs) for args, kwargs in calls * 2])
    assert losses[1] == losses[0]
    assert svi.reason is None
    assert num_graphs(svi) == 3


# Arguments that choose what runs --------------------------------------------------------------------------------------


def branches(x, which):
    plain_model(x * pyro.param(f"weight_{which}", x.new_full((2,), 2.0 if which == "a" else -2.0)))


def optional(x, y=None):
    plain_model(x if y is None else x * y * pyro.param("extra", x.new_ones(())))


(FIRST,) = POINTS[0]
CALLS = {
    "parameters by argument": (branches, [(FIRST, which) for which in "abab"]),
    "parameters of an optional argument": (optional, [(FIRST,), (FIRST, FIRST + 1)] * 2),
    "the same tensor twice": (lambda x, y: plain_model(x + y.mean()), [(FIRST, FIRST), (FIRST, FIRST + 1)]),
    "true and 1": (lambda x, f: plain_model(x if f is True else 3 * x), [(FIRST, True), (FIRST, 1)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_arguments_are_other_programs(name):
    model, batches = CALLS[name]
    assert_same(*run_both(lambda: (model, lambda x, *other: plain_guide(x), None), batches))


def test_within_a_handler_steps_are_those_of_svi():
    losses = []
    for kind in (SVI, CompiledExactly):
        pyro.clear_param_store()
        torch.manual_seed(5)
        svi = kind(plain_model, plain_guide, pyro.optim.Adam({"lr": 0.01}), ELBO())
        losses.append([svi.step(FIRST)])
        with pyro.poutine.scale(scale=0.5):
            losses[-1].append(svi.step(FIRST))
        losses[-1].append(svi.step(FIRST))
    assert losses[0] == losses[1]
    assert svi.reason is None


def test_another_dtype_is_traced_again():
    def change(step, vae):
        if step == 2:
            vae.float()

    batches = [(data(6, 3),)] * 2 + [(data(6, 3).float(),)] * 2
    losses = []
    for kind in (EagerSVI, CompiledExactly):
        vae = small_vae()
        svi = kind(vae.model, vae.guide, torch.optim.SGD(vae.parameters(), lr=1e-3), ELBO())
        torch.manual_seed(5)
        losses.append([])
        for step, batch in enumerate(batches):
            change(step, vae)
            losses[-1].append(svi.step(*batch))
    assert svi.reason is None
    assert losses[1] == losses[0]
