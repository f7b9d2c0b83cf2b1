"""Compiled steps against eager ones: the same numbers, for whatever pair and objective, and after whatever change."""

import copy
import math
import random
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import draw, linear_gaussian, suite_seed
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch._inductor.cpu_vec_isa import pick_vec_isa

import pyrovae as pv
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    OBJECTIVES,
    PIWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    EnumeratedELBO,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)
from pyrovae.training.compiled_loss import CompiledLoss
from pyrovae.training.compiled_svi import CompiledSVI

EVERY = [
    ELBO(),
    ELBO(3),
    AnalyticKLELBO(),
    AnalyticKLELBO(2, free_bits=0.1),
    StickingTheLanding(2),
    IWAE(4),
    DReG(4),
    Renyi(4, alpha=0.4),
    MIWAE(3, num_batches=2),
    PIWAE(3, num_batches=2),
    CIWAE(4, elbo_weight=0.3),
    ReweightedWakeSleep(4),
    ReweightedWakeSleep(4, sleep_weight=0.5),
    VIMCO(4),
    ScoreFunction(3),
    ScoreFunction(3, baseline="leave_one_out"),
    ThermodynamicVO(4, num_partitions=3),
]
# Other settings of objectives that are among the above, for fewer steps.
VARIANTS = [ELBO(3), AnalyticKLELBO(2, free_bits=0.1), ReweightedWakeSleep(4), ScoreFunction(3)]
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
    """`CompiledSVI`'s step with an optimiser of torch, by Pyro alone."""

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
    """Losses and parameters of `make() -> (model, guide, state)` under eager and compiled steps of pyro.optim's Adam.

    `change(step, state)` comes before each step. The last result is the compiled one itself.
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


# Every objective ------------------------------------------------------------------------------------------------------


def linear_pair():
    """A closed-form pair, of few operations, whose guide is off."""
    vae = linear_gaussian(0, data_dim=3)
    with torch.no_grad():
        vae.guide_log_scale.add_(0.3)
    return vae


@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_two_hundred_steps_are_the_eager_ones_to_the_bit(objective):
    x = data(10, 3)
    batches = alternating([x[:7], x[7:]], 40 if objective in VARIANTS else 200)
    losses, pairs = [], []
    for kind in (EagerSVI, CompiledExactly):
        pair = linear_pair()
        svi = kind(pair.model, pair.guide, adam(pair.parameters()), objective)
        torch.manual_seed(5)
        losses.append([svi.step(batch) for batch in batches])
        pairs.append(pair)
    assert svi.reason is None
    assert losses[1] == losses[0]
    assert all(map(math.isfinite, losses[0]))
    untrained = linear_pair().state_dict()
    for (name, ours), theirs in zip(pairs[1].named_parameters(), pairs[0].parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert not torch.equal(ours, untrained[name]), f"{name} never trained"


def test_no_objective_is_left_out():
    here = {type(objective) for objective in EVERY if objective not in VARIANTS}
    assert here | {EnumeratedELBO} == set(OBJECTIVES.values())  # which is for discrete latents, below


def test_the_optimiser_that_is_built_in_is_adam_over_all_parameters():
    x = data(7, 3)
    ours, theirs = small_vae(), small_vae()
    torch.manual_seed(5)
    svi = CompiledExactly(ours.model, ours.guide)
    losses = [svi.step(x) for _ in range(5)]
    eager = EagerSVI(theirs.model, theirs.guide, torch.optim.Adam(theirs.parameters(), lr=1e-3, fused=True), ELBO())
    torch.manual_seed(5)
    assert losses == [eager.step(x) for _ in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


# Machine code, in float32 ---------------------------------------------------------------------------------------------


class Float32Noise(dist.Normal):
    """A normal of any dtype with noise drawn in float32, so that one seed gives both precisions the same draws."""

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        noise = torch.randn(self._extended_shape(sample_shape), dtype=torch.float32)
        return self.loc + noise.to(self.loc.dtype) * self.scale


class SameNoiseVAE(pv.VAE):
    def encode(self, x, *y):
        q = super().encode(x, *y).base_dist
        return Float32Noise(q.loc, q.scale).to_event(1)


def test_machine_code_is_as_near_to_float64_as_eager_float32_is():
    """Loss and gradient of 30 batches: root mean square errors against the float64 program on the same draws.

    Without vector instructions the machine code adds the 3,200 terms of the scale's gradient one after another, where
    torch adds in pairs: n roundings of eps / 2 each, which a running sum gathers as sqrt(n).
    """
    torch.manual_seed(suite_seed(3))
    vae = SameNoiseVAE((20,), latent_dim=3, hidden=(50,), likelihood=pv.Gaussian(0.3, learn_scale=True))
    exact, objective = copy.deepcopy(vae).double(), IWAE(5)
    x = torch.randn(30, 32, 20)

    def gradients(module):
        return torch.cat([parameter.grad.double().flatten() for parameter in module.parameters()])

    def eager(module, batch, seed):
        torch.manual_seed(seed)
        module.zero_grad()
        loss = objective.loss_and_grads(module.model, module.guide, batch)
        return loss, gradients(module)

    compiled = CompiledLoss(vae.model, vae.guide, objective)
    compiled.loss_and_grads(x[0])
    assert compiled.reason is None
    (traced,) = compiled._traced.values()
    assert traced.replay.graph.inductor, "else eager is compared with eager"
    errors = []
    for seed, batch in enumerate(x):
        truth, true_gradient = eager(exact, batch.double(), seed)
        loss, gradient = eager(vae, batch, seed)
        torch.manual_seed(seed)
        ours = compiled.loss_and_grads(batch)[0].item()
        our_gradient = gradients(vae)
        losses = [abs(loss - truth) / truth, abs(ours - truth) / truth]
        norms = [((g - true_gradient).norm() / true_gradient.norm()).item() for g in (gradient, our_gradient)]
        errors.append(losses + norms)
    eager_loss, our_loss, eager_norm, our_norm = torch.tensor(errors).square().mean(0).sqrt().tolist()
    assert max(eager_loss, eager_norm) < 1e-4, "the noise is not the same in both precisions"
    one_by_one = 0.0 if pick_vec_isa() else torch.finfo(torch.float32).eps / 2 * math.sqrt(5 * 32 * 20)
    assert our_loss <= 2 * eager_loss + one_by_one, f"loss is off by {our_loss:.3g}, eager by {eager_loss:.3g}"
    assert our_norm <= 2 * eager_norm + one_by_one, f"gradient is off by {our_norm:.3g}, eager by {eager_norm:.3g}"


# Pairs of every kind --------------------------------------------------------------------------------------------------


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


def conditional_pair():
    """Labels as a second argument."""
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


def vae_pair(**settings):
    def make():
        vae = small_vae(**settings)
        return vae.model, vae.guide, vae

    return make


POINTS = [(data(6, 2),), (data(3, 2),)]
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
        [((data(n, 1, 6, 5) > 0).double(),) for n in (4, 2)],
        DReG(2),
    ),
    "autoencoder": (vae_pair(posterior="delta"), [(data(6, 3),)], ELBO()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_compiled_steps_of_every_kind_of_pair_are_svi_s(name):
    make, batches, objective = PAIRS[name]
    *results, svi = run_both(make, alternating(batches, 12), objective)
    assert_same(*results, svi)
    assert num_graphs(svi) == len(batches)


@pytest.mark.parametrize("make", [plain_pair, pyro_module_pair])
def test_compiled_steps_are_those_of_pyro_s_own_objective(make):
    losses = []
    for kind, objective in ((SVI, Trace_ELBO()), (CompiledExactly, ELBO())):
        pyro.clear_param_store()
        torch.manual_seed(2)
        model, guide, _ = make()
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.01}), objective)
        torch.manual_seed(5)
        losses.append([svi.step(*batch) for batch in alternating(POINTS, 10)])
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


# What is read at every step -------------------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch):
    """Every trace."""
    made = []

    class Counted(pv.training.compiled_loss.Replay):
        def __init__(self, *args):
            made.append(self)
            super().__init__(*args)

    monkeypatch.setattr(pv.training.compiled_loss, "Replay", Counted)
    return made


def test_beta_takes_effect_without_another_trace(traced):
    batches = [(data(6, 3),)] * 8
    *results, svi = run_both(vae_pair(), batches, change=lambda step, vae: vae.set_beta(0.1 * (step + 1)))
    assert_same(*results, svi)
    assert len(traced) == 1
    constant, _ = run_both(vae_pair(), batches, kinds=(SVI,))
    assert results[0][0][1:] != constant[0][1:]


def test_values_written_into_parameters_take_effect_without_another_trace(traced):
    def change(step, vae):
        if step == 3:
            with torch.no_grad():
                for parameter in vae.parameters():
                    parameter.mul_(0.5)
        if step == 5:
            vae.load_state_dict(small_vae(latent_dim=2).state_dict())

    *results, svi = run_both(vae_pair(), [(data(6, 3),)] * 8, change=change)
    assert_same(*results, svi)
    assert len(traced) == 1


# What is traced again -------------------------------------------------------------------------------------------------


class Changeable(nn.Module):
    """A pair with everything about it that a user may change between steps."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout, self.gain = nn.Linear(2, 2).double(), nn.Dropout(0.4), 1.0
        self.weight = nn.Parameter(torch.eye(2, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(2, dtype=torch.float64))

    def model(self, x):
        pyro.module("changeable", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.dropout(self.linear(z @ self.weight)) * self.gain + self.offset
            pyro.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=x)


def changeable_pair():
    made = Changeable()
    return made.model, plain_guide, made


def replace_parameter(module):
    module.weight = nn.Parameter(module.weight.detach() * 0.5)
    pyro.get_param_store().clear()  # under whose names the old one would be found


def replace_buffer(module):
    module.offset = torch.ones(2, dtype=torch.float64)


def replace_layer(module):
    module.linear = nn.Linear(2, 2, bias=False).double()
    pyro.get_param_store().clear()


CHANGES = {
    "parameter replaced": replace_parameter,
    "buffer replaced": replace_buffer,
    "layer replaced": replace_layer,
    "frozen": lambda module: module.linear.weight.requires_grad_(False),
    "eval": lambda module: module.eval(),
    "part of it in eval": lambda module: module.dropout.eval(),
    "number in an attribute": lambda module: setattr(module, "gain", 2.0),
    "number in a layer's attribute": lambda module: setattr(module.dropout, "p", 0.9),
    "param store cleared": lambda module: pyro.clear_param_store(),
}


@pytest.mark.filterwarnings("ignore:.* was not registered in the param store because requires_grad=False")
@pytest.mark.parametrize("name", CHANGES)
def test_a_module_changed_between_steps_is_traced_again(name, traced):
    def change(step, module):
        if step == 4:
            CHANGES[name](module)

    *results, svi = run_both(changeable_pair, [POINTS[0]] * 8, change=change)
    assert_same(*results, svi)
    assert len(traced) == 2
    unchanged, _ = run_both(changeable_pair, [POINTS[0]] * 8, kinds=(SVI,))
    if name != "param store cleared":
        assert results[0][0] != unchanged[0], "the change changes nothing"


@pytest.mark.filterwarnings("ignore:.* was not registered in the param store because requires_grad=False")
def test_what_is_unfrozen_trains_again():
    def change(step, module):
        if step in (2, 6):
            module.linear.requires_grad_(step == 6)

    *results, svi = run_both(changeable_pair, [POINTS[0]] * 10, change=change)
    assert_same(*results, svi)


def test_train_and_eval_by_turns():
    *results, svi = run_both(changeable_pair, [POINTS[0]] * 6, change=lambda step, module: module.train(step % 4 < 2))
    assert_same(*results, svi)


GAIN = 1.0


def globally(x):
    return x * GAIN


class Settings:
    def __init__(self):
        self.gain = 1.0


def closure_pair():
    gain = 1.0

    def model(x):
        plain_model(x * gain)

    def change():
        nonlocal gain
        gain = 2.0

    return model, plain_guide, change


def inner_closure_pair():
    gain = 1.0

    def scaled(x):
        return x * gain

    def change():
        nonlocal gain
        gain = 2.0

    return lambda x: plain_model(scaled(x)), plain_guide, change


def global_pair():
    def change(value=2.0):
        global GAIN
        GAIN = value

    change(1.0)
    return lambda x: plain_model(x * GAIN), plain_guide, change


def inner_global_pair():
    _, guide, change = global_pair()
    return lambda x: plain_model(globally(x)), guide, change


def object_pair():
    settings = Settings()
    return lambda x: plain_model(x * settings.gain), plain_guide, lambda: setattr(settings, "gain", 2.0)


def partial_pair():
    settings = Settings()

    def model(settings, x):
        plain_model(x * settings.gain)

    return partial(model, settings), plain_guide, lambda: setattr(settings, "gain", 2.0)


def guide_pair():
    settings = Settings()
    return plain_model, lambda x: plain_guide(x * settings.gain), lambda: setattr(settings, "gain", 2.0)


def cleared_pair():
    return plain_model, plain_guide, pyro.clear_param_store


@pytest.mark.parametrize(
    "make",
    [
        closure_pair,
        inner_closure_pair,
        global_pair,
        inner_global_pair,
        object_pair,
        partial_pair,
        guide_pair,
        cleared_pair,
    ],
)
def test_a_function_whose_surroundings_change_is_traced_again(make, traced):
    *results, svi = run_both(make, [POINTS[0]] * 6, change=lambda step, change: change() if step == 3 else None)
    assert_same(*results, svi)
    assert len(traced) == 2
    unchanged, _ = run_both(make, [POINTS[0]] * 6, kinds=(SVI,))
    assert results[0][0] != unchanged[0]


class Layer(nn.Module):
    """A network that takes numbers from everywhere."""

    gain = 1.0

    def __init__(self):
        super().__init__()
        self.settings, self.gains = Settings(), [1.0]

    def forward(self, x):
        return x * GAIN * Layer.gain * self.settings.gain * self.gains[0]


@pytest.mark.parametrize(
    "what", ["object in an attribute", "list in an attribute", "class attribute", "global", "dict"]
)
def test_a_number_deep_inside_is_seen_to_change(what, monkeypatch):
    def make():
        monkeypatch.setattr(Layer, "gain", 1.0)
        monkeypatch.setitem(globals(), "GAIN", 1.0)
        layer, numbers = Layer(), {"gain": 1.0}
        changes = {
            "object in an attribute": lambda: setattr(layer.settings, "gain", 2.0),
            "list in an attribute": lambda: layer.gains.__setitem__(0, 2.0),
            "class attribute": lambda: setattr(Layer, "gain", 2.0),
            "global": lambda: globals().update(GAIN=2.0),
            "dict": lambda: numbers.update(gain=2.0),
        }
        return lambda x: plain_model(layer(x) * numbers["gain"]), plain_guide, changes[what]

    assert_same(*run_both(make, [POINTS[0]] * 4, change=lambda step, change: change() if step == 2 else None))


def test_the_built_in_optimiser_takes_on_parameters_that_are_new():
    svi = CompiledExactly(plain_model, plain_guide)
    svi.step(*POINTS[0])
    pyro.clear_param_store()
    svi.step(*POINTS[0])
    assert not torch.equal(pyro.param("guide_weight"), torch.ones(2, 2, dtype=torch.float64))


# Arguments that choose what runs --------------------------------------------------------------------------------------


def branches(x, which):
    plain_model(x * pyro.param(f"weight_{which}", x.new_full((2,), 2.0 if which == "a" else -2.0)))


def optional(x, y=None):
    plain_model(x if y is None else x * y * pyro.param("extra", x.new_ones(())))


(FIRST,) = POINTS[0]
CALLS = {
    "parameters by argument": (branches, [(FIRST, which) for which in "ababab"]),
    "parameters of an optional argument": (optional, [(FIRST,), (FIRST, FIRST + 1)] * 3),
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
        if step == 3:
            vae.float()

    batches = [(data(6, 3),)] * 3 + [(data(6, 3).float(),)] * 3
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


# What runs eagerly ----------------------------------------------------------------------------------------------------


def branching_pair():
    def model(x):
        plain_model(x if x.sum() > 1e9 else 2 * x)

    return model, plain_guide, model.__code__.co_firstlineno + 1


def parameter_branching_pair():
    def model(x):
        scale = pyro.param("branch", x.new_ones(()))
        plain_model(scale * x if scale > 0.98 else 2 * scale * x)

    return model, plain_guide, model.__code__.co_firstlineno + 2


@pytest.mark.parametrize("make", [branching_pair, parameter_branching_pair])
def test_control_flow_on_a_value_runs_eagerly_with_one_warning_that_names_the_line(make):
    line = make()[2]
    with pytest.warns(match="steps run eagerly") as caught:
        eager, compiled, svi = run_both(make, alternating(POINTS, 6))
    assert len(caught) == 1
    assert str(caught[0].message) == f"steps run eagerly, as the program cannot be replayed: {svi.reason}"
    assert svi.reason.endswith(f"(test_compiled.py, line {line})")
    assert_same(eager, compiled, svi, svi.reason)


def python_random_pair():
    return lambda x: plain_model(x * random.random()), plain_guide, None


def numpy_random_pair():
    return lambda x: plain_model(x * torch.from_numpy(np.random.rand(2))), plain_guide, None  # noqa: NPY002


def numpy_number_pair():
    return lambda x: plain_model(x * float(np.random.rand())), plain_guide, None  # noqa: NPY002


@pytest.mark.parametrize("make", [python_random_pair, numpy_random_pair, numpy_number_pair])
def test_random_numbers_that_are_not_torch_s_are_drawn_at_every_step(make):
    def change(step, state):
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002

    with pytest.warns(match="each time that it runs") as caught:
        eager, compiled, svi = run_both(make, [POINTS[0]] * 5, change=change)
    assert len(caught) == 1
    assert_same(eager, compiled, svi, svi.reason)


def test_a_counter_that_the_program_moves_does_not_stand_still():
    class Counting(Settings):
        def model(self, x):
            self.gain += 1
            plain_model(x * self.gain)

    def make():
        counting = Counting()
        return counting.model, plain_guide, counting

    with pytest.warns(match="steps run eagerly") as caught:
        eager, compiled, svi = run_both(
            make, [POINTS[0]] * 5, change=lambda step, counting: setattr(counting, "gain", step)
        )
    assert len(caught) == 1
    assert_same(eager, compiled, svi, svi.reason)


def test_what_changes_at_every_step_runs_eagerly_in_the_end(monkeypatch):
    monkeypatch.setattr(pv.training.compiled_loss, "MAX_CHANGES", 3)

    def make():
        settings = Settings()
        return lambda x: plain_model(x * settings.gain), plain_guide, settings

    with pytest.warns(match="gain changed 4 times") as caught:
        eager, compiled, svi = run_both(
            make, [POINTS[0]] * 8, change=lambda step, settings: setattr(settings, "gain", 1 / (1 + step))
        )
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert_same(eager, compiled, svi, svi.reason)


def test_an_objective_in_chunks_runs_eagerly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eager, compiled, svi = run_both(plain_pair, alternating(POINTS, 4), IWAE(4, chunk_size=3))
    assert "chunk_size" in svi.reason
    assert_same(eager, compiled, svi, svi.reason)


# Steps, shapes, seeds -------------------------------------------------------------------------------------------------


def test_two_models_in_one_process_do_not_meet():
    x = data(6, 3)
    alone = []
    for settings in ({}, {"hidden": (5,)}):
        vae = small_vae(**settings)
        svi = CompiledExactly(vae.model, vae.guide, adam(vae.parameters()))
        torch.manual_seed(5)
        alone.append([svi.step(x) for _ in range(4)])
    vaes = [small_vae(), small_vae(hidden=(5,))]
    svis = [CompiledExactly(vae.model, vae.guide, adam(vae.parameters())) for vae in vaes]
    together, states = [[], []], []
    torch.manual_seed(5)
    states = [torch.get_rng_state()] * 2
    for _ in range(4):
        for number, svi in enumerate(svis):
            torch.set_rng_state(states[number])
            together[number].append(svi.step(x))
            states[number] = torch.get_rng_state()
    assert together == alone
    assert [svi.reason for svi in svis] == [None, None]
    assert [num_graphs(svi) for svi in svis] == [1, 1]


def test_more_shapes_than_a_few_are_warned_of_once(monkeypatch):
    assert pv.training.compiled_loss.USUAL_GRAPHS == 8
    monkeypatch.setattr(pv.training.compiled_loss, "USUAL_GRAPHS", 2)
    svi = CompiledExactly(plain_model, plain_guide)
    svi.step(data(1, 2))
    svi.step(data(2, 2))
    with pytest.warns(match="this is number 3: pad batches") as caught:
        svi.step(data(3, 2))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    svi.step(data(4, 2))
    svi.step(data(3, 2))
    assert svi.reason is None


def test_the_loss_is_evaluated_as_eagerly_and_without_a_step():
    vae, x = small_vae(), data(6, 3)
    svi = CompiledExactly(vae.model, vae.guide, loss=IWAE(3))
    eager = EagerSVI(vae.model, vae.guide, None, IWAE(3))
    before = copy.deepcopy(vae.state_dict())
    results = []
    for one in (svi, eager):
        torch.manual_seed(5)
        results.append([one.evaluate_loss(batch) for batch in (x, x + 1, x[:2], x)])
    assert results[0] == results[1]
    assert num_graphs(svi) == 2
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    svi.step(x)
    assert not torch.equal(vae.encoder.output.weight, before["encoder.output.weight"])
    torch.manual_seed(5)
    ours = svi.evaluate_loss(x)
    torch.manual_seed(5)
    assert ours == eager.evaluate_loss(x)
    assert isinstance(ours, float)


def test_steps_draw_afresh_and_a_seed_fixes_them():
    x, runs = data(6, 3), []
    vae = small_vae()
    svi = CompiledExactly(vae.model, vae.guide, torch.optim.SGD(vae.parameters(), lr=0.0))
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append([svi.step(x) for _ in range(6)])
    assert len(set(runs[0])) == 6
    assert runs[1] == runs[0]
    assert not set(runs[2]) & set(runs[0])


@pytest.mark.parametrize("objective", [ELBO(3), ReweightedWakeSleep(3, sleep_weight=0.5)], ids=repr)
def test_after_every_step_the_random_numbers_stand_where_eager_ones_do(objective):
    x, states = data(6, 3), []
    for kind in (EagerSVI, CompiledExactly):
        vae = small_vae()
        svi = kind(vae.model, vae.guide, adam(vae.parameters()), objective)
        torch.manual_seed(5)
        states.append([])
        for _ in range(3):
            svi.step(x)
            states[-1].append(torch.get_rng_state())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*states, strict=True))


def test_the_running_statistics_of_a_batch_norm_move_once_a_step():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(2).double(), nn.Linear(2, 4).double()

        def guide(self, x):
            pyro.module("normalised", self)
            loc, log_scale = self.linear(self.norm(x)).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x, running = [data(6, 2, seed=seed) + seed for seed in range(4)], []
    for kind in (SVI, CompiledExactly):
        pyro.clear_param_store()
        torch.manual_seed(3)
        normalised = Normalised()
        svi = kind(plain_model, normalised.guide, pyro.optim.Adam({"lr": 0.01}), ELBO())
        torch.manual_seed(5)
        running.append([])
        for batch in x:
            loss = svi.step(batch)
            norm = normalised.norm
            moved = norm.running_mean.tolist(), norm.running_var.tolist(), norm.num_batches_tracked.item()
            running[-1].append((loss, *moved))
    assert svi.reason is None
    assert running[1] == running[0]


# Numbers that are not finite ------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_site_and_takes_no_step():
    vae, x = small_vae().float(), data(6, 3).float()
    svi = CompiledExactly(vae.model, vae.guide, adam(vae.parameters()))
    svi.step(x)
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(FloatingPointError, match=r'loss is not finite .* site "x" of the model'):
        svi.step(torch.full_like(x, 1e30))
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert svi.reason is None
    assert math.isfinite(svi.step(x))
    assert all(value.isfinite().all() for value in vae.state_dict().values())


def test_a_parameter_that_is_not_a_number_is_found_and_takes_no_step():
    (x,) = POINTS[0]
    svi = CompiledExactly(plain_model, plain_guide, pyro.optim.Adam({"lr": 0.01}))
    svi.step(x)
    with torch.no_grad():
        pyro.get_param_store()["scale"].unconstrained().fill_(math.nan)
    before = pyro.param("weight").detach().clone()
    with pytest.raises(FloatingPointError, match=r'loss is not finite .* at site "x" of the model'):
        svi.step(x)
    assert torch.equal(pyro.param("weight"), before)


def test_bad_data_at_the_first_step_are_what_svi_says_they_are_and_no_overflow():
    vae = pv.VAE((3,), latent_dim=2, hidden=(4,), likelihood=pv.Bernoulli())
    with pytest.raises(ValueError, match="is outside") as caught:
        CompiledSVI(vae.model, vae.guide, inductor=False).step(torch.full((4, 3), 2.0))
    assert not isinstance(caught.value, FloatingPointError)


@pytest.mark.parametrize("loss", [None, "elbo", nn.Linear(1, 1)])
def test_an_objective_or_optimiser_that_is_none_is_refused(loss):
    if loss is not None:
        with pytest.raises(pv.InputError, match="loss must be an ELBO with a differentiable_loss"):
            CompiledSVI(plain_model, plain_guide, loss=loss)
    with pytest.raises(pv.InputError, match=r"optim must be an optimiser of .*, got float"):
        CompiledSVI(plain_model, plain_guide, 0.1)


# fit ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def exactly(monkeypatch):
    """fit without machine code, and what it has compiled."""
    made = []

    class Exact(CompiledLoss):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, inductor=False)
            made.append(self)

    monkeypatch.setattr(pv.training.gradients, "CompiledLoss", Exact)
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "linear"},
        {"objective": "iwae", "num_particles": 3, "max_grad_norm": 0.5},
        {"objective": "elbo_analytic_kl", "free_bits": 0.1, "beta_schedule": "cyclical", "schedule": "cosine"},
        {"objective": "dreg", "num_particles": 3, "validation": data(5, 3, seed=9), "patience": 1},
    ],
    ids=lambda settings: settings.get("objective", "elbo"),
)
def test_fit_gives_the_same_numbers_compiled_and_not(settings, exactly):
    x, results = data(20, 3), []
    for compile in (False, True):
        vae = small_vae()
        history = pv.fit(vae, x, epochs=4, batch_size=8, lr=0.01, seed=1, compile=compile, **settings)
        results.append((history.loss, history.elbo, vae.state_dict()))
    (compiled,) = exactly
    assert compiled.reason is None
    assert len(compiled._traced) == 2
    assert results[1][:2] == results[0][:2]
    assert all(torch.equal(value, results[0][2][name]) for name, value in results[1][2].items())


def test_fit_says_at_which_step_and_site_it_diverged(exactly):
    x = data(12, 3).float()
    x[8:] = 1e30
    batches = [(x[:4],), (x[4:8],), (x[8:],)]
    vae = small_vae().float()
    before = []
    with pytest.raises(FloatingPointError, match=r'not finite at epoch 1, step 3 .*site "x" of the model'):
        pv.fit(vae, batches, epochs=2, seed=1, compile=True)
    assert len(exactly) == 1
    twin = small_vae().float()
    pv.fit(twin, batches[:2], epochs=1, seed=1, compile=True)
    before = twin.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("compile", ["yes", None, 2, "True"])
def test_fit_and_log_marginal_take_true_false_and_auto_alone(compile):
    vae, x = small_vae(), data(6, 3)
    message = f"compile must be true, false or auto, got {compile!r}"
    with pytest.raises(pv.InputError, match=message):
        pv.fit(vae, x, epochs=1, compile=compile)
    with pytest.raises(pv.InputError, match=message):
        pv.log_marginal(vae.model, vae.guide, x, compile=compile)


def test_fit_compiles_no_objective_of_pyro():
    with pytest.raises(pv.InputError, match="compile needs an objective of pyrovae, got Trace_ELBO"):
        pv.fit(small_vae(), data(6, 3), epochs=1, objective=Trace_ELBO(), compile=True)


def test_fit_compiles_by_itself_where_there_are_many_steps(exactly, monkeypatch):
    vae, x = small_vae(), data(10, 3)
    monkeypatch.setattr(pv.training.gradients, "COMPILE_STEPS", 9)
    pv.fit(vae, x, epochs=4, batch_size=5)
    assert not exactly
    pv.fit(vae, x, epochs=5, batch_size=5, objective=Trace_ELBO())
    assert not exactly
    pv.fit(vae, x, epochs=5, batch_size=5, compile=False)
    assert not exactly
    pv.fit(vae, x, epochs=5, batch_size=5)
    assert len(exactly) == 1


# log p(x) -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def replays(monkeypatch):
    """What log_marginal has traced, with machine code only where a test sets `inductor` of the list."""

    class Made(list):
        inductor = False

    made = Made()

    class Exact(pv.evaluation.sampled_weights.Replay):
        def __init__(self, *args):
            super().__init__(*args, inductor=made.inductor)
            made.append(self)

    monkeypatch.setattr(pv.evaluation.sampled_weights, "Replay", Exact)
    return made


def assert_same_estimate(ours, theirs, **tolerance):
    for name in ("log_px", "standard_error", "ess", "pareto_k"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **tolerance, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize(("num_data", "num_samples", "chunk_size"), [(6, 60, 60), (7, 61, 21), (5, 50, 8), (9, 30, 4)])
def test_log_marginal_is_the_same_where_chunks_do_not_divide(num_data, num_samples, chunk_size, replays):
    vae, x = small_vae(), data(num_data, 3)
    results = []
    for compile in (False, True):
        torch.manual_seed(5)
        settings = {"num_samples": num_samples, "chunk_size": chunk_size, "compile": compile}
        results.append(pv.log_marginal(vae.model, vae.guide, x, **settings))
    assert len(replays) == 1
    assert replays[0].why is None
    assert_same_estimate(results[1], results[0], rtol=0, atol=0)


def test_log_marginal_in_machine_code_is_the_same_to_rounding(replays):
    replays.inductor = True
    vae, x = small_vae().float(), data(10, 3).float()
    results = []
    for compile in (False, True):
        torch.manual_seed(5)
        results.append(pv.log_marginal(vae.model, vae.guide, x, num_samples=500, chunk_size=450, compile=compile))
    (replay,) = replays
    assert replay.why is None
    assert replay.graph.inductor
    torch.testing.assert_close(results[1].log_px, results[0].log_px, rtol=1e-5, atol=0)
    assert_same_estimate(results[1], results[0], rtol=1e-3, atol=1e-3)


def test_log_marginal_of_what_cannot_be_traced_warns_once_and_is_the_eager_one(replays):
    model, guide, line = branching_pair()
    (x,) = POINTS[0]
    settings = {"num_samples": 50, "chunk_size": 30}
    torch.manual_seed(5)
    theirs = pv.log_marginal(model, guide, x, compile=False, **settings)
    torch.manual_seed(5)
    with pytest.warns(match="log-weights are taken eagerly") as caught:
        ours = pv.log_marginal(model, guide, x, compile=True, **settings)
    assert len(caught) == 1
    assert f"(test_compiled.py, line {line})" in str(caught[0].message)
    assert_same_estimate(ours, theirs, rtol=0, atol=0)


def test_log_marginal_of_a_closed_form_is_exact_compiled(replays):
    vae = linear_gaussian(1)
    x = draw(vae, 4)
    found = pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=40, chunk_size=20, compile=True)
    assert len(replays) == 1
    torch.testing.assert_close(found.log_px, vae.log_px(x).detach(), rtol=1e-10, atol=0)


# Resuming -------------------------------------------------------------------------------------------------------------


def test_in_machine_code_too_it_does_not_matter_to_the_bit_when_the_program_is_looked_at():
    """A run that is resumed traces again, and looks at other steps than one that went through."""
    x = torch.bernoulli(torch.full((16, 12), 0.4), generator=torch.Generator().manual_seed(0))
    results = []
    for starts in ({0}, {0, 11}):
        torch.manual_seed(3)
        vae = pv.VAE((12,), latent_dim=3, hidden=(40,), likelihood=pv.Bernoulli())
        optimiser, losses = adam(vae.parameters()), []
        torch.manual_seed(5)
        for step in range(34):
            if step in starts:
                svi = CompiledSVI(vae.model, vae.guide, optimiser, pv.objectives.IWAE(5))
            losses.append(svi.step(x))
        assert svi.reason is None
        results.append((losses, [parameter.detach().clone() for parameter in vae.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
