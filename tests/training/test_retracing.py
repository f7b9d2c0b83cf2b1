"""A compiled step reads values anew, and is traced again when the program around it changes."""

from argparse import Namespace
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import (
    CompiledExactly,
    Settings,
    assert_same,
    data,
    run_both,
    small_vae,
    vae_pair,
)
from pyro.infer import SVI
from torch import nn

import pyrovae as pv

# What is read at every step -------------------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch):
    """Lists every trace that is made."""
    made = []

    class Counted(pv.training.compiled_loss.Replay):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(pv.training.compiled_loss, "Replay", Counted)
    monkeypatch.setattr(pv.training.compiled_loss, "MAX_CHANGES", 100)
    return made


def test_beta_takes_effect_without_another_trace(traced):
    batches = [(data(6, 3),)] * 3
    *results, svi = run_both(vae_pair(), batches, change=lambda step, vae: vae.set_beta(0.1 * (step + 1)))
    assert_same(*results, svi)
    assert len(traced) == 1
    constant, _ = run_both(vae_pair(), batches, kinds=(SVI,))
    assert results[0][0][1:] != constant[0][1:]


def test_values_written_into_parameters_take_effect_without_another_trace(traced):
    def change(step, vae):
        if step == 1:
            with torch.no_grad():
                for parameter in vae.parameters():
                    parameter.mul_(0.5)
        if step == 3:
            vae.load_state_dict(small_vae(latent_dim=2).state_dict())

    *results, svi = run_both(vae_pair(), [(data(6, 3),)] * 5, change=change)
    assert_same(*results, svi)
    assert len(traced) == 1


# What is traced again -------------------------------------------------------------------------------------------------


def assert_each_is_traced_again(make, changes, traced, without_effect=()):
    """Makes one change after another to `make() -> (model, guide)`, and two steps after each: a trace takes long.

    Each is traced, gives SVI's losses, and changes the loss of the same draws, but for those `without_effect` on it.
    """
    losses = []
    for kind in (SVI, CompiledExactly):
        pyro.clear_param_store()
        torch.manual_seed(5)
        model, guide = make()
        svi = kind(model, guide, pyro.optim.Adam({"lr": 0.01}), pv.objectives.ELBO())

        def loss_now(svi=svi):
            with torch.random.fork_rng():
                torch.manual_seed(1)
                return svi.loss(svi.model, svi.guide, X)

        found = [svi.step(X), svi.step(X)]
        for number, (name, change) in enumerate(changes.items(), 1):
            before = loss_now() if kind is SVI else None
            assert kind is SVI or len(traced) == number, f"traced before {name}"
            change()
            assert kind is CompiledExactly or name in without_effect or loss_now() != before, f"{name} changes nothing"
            found += [svi.step(X), svi.step(X)]
        losses.append(found)
    assert svi.reason is None
    assert len(traced) == 1 + len(changes)
    assert dict(zip(["start", *changes], zip(losses[1][::2], losses[1][1::2], strict=True), strict=True)) == dict(
        zip(["start", *changes], zip(losses[0][::2], losses[0][1::2], strict=True), strict=True)
    )


X = data(4, 2)


def small_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.8).to_event(1), obs=x)


def small_guide(x):
    weight = pyro.param("guide_weight", x.new_ones(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x * weight, 0.6).to_event(1))


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
    return made.model, small_guide, made


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
    "number in an attribute": lambda module: setattr(module, "gain", 2.0),
    "number in a layer's attribute": lambda module: setattr(module.dropout, "p", 0.9),
    "param store cleared": lambda module: pyro.clear_param_store(),
    "part of it in eval": lambda module: module.dropout.eval(),
    "eval": lambda module: module.eval(),
}


def test_a_module_changed_between_steps_is_traced_again(traced):
    made = []

    def make():
        made[:] = [Changeable()]
        return made[0].model, small_guide

    changes = {name: lambda change=change: change(made[0]) for name, change in CHANGES.items()}
    assert_each_is_traced_again(make, changes, traced, ("param store cleared", "eval"))


@pytest.mark.filterwarnings("ignore:.* was not registered in the param store because requires_grad=False")
def test_what_is_frozen_rests_and_what_is_unfrozen_trains_again(traced):
    weights = []

    def change(step, module):
        weights.append(module.linear.weight.detach().clone())
        if step in (2, 4):
            module.linear.requires_grad_(step == 4)

    *results, svi = run_both(changeable_pair, [(X,)] * 6, change=change)
    assert_same(*results, svi)
    assert len(traced) == 3
    assert [torch.equal(*weights[step : step + 2]) for step in range(5)] == [False, False, True, True, False]


def test_train_and_eval_by_turns():
    *results, svi = run_both(changeable_pair, [(X,)] * 6, change=lambda step, module: module.train(step % 4 < 2))
    assert_same(*results, svi)


GAIN = INNER_GAIN = 1.0


def globally(x):
    return x * INNER_GAIN


class Layer(nn.Module):
    """A network that reads numbers from attributes, a list and its class."""

    gain = 1.0

    def __init__(self):
        super().__init__()
        self.settings, self.gains = Settings(), [1.0]

    def forward(self, x):
        return x * Layer.gain * self.settings.gain * self.gains[0]


def test_a_function_whose_surroundings_change_is_traced_again(traced, monkeypatch):
    changes = {}

    def make():
        monkeypatch.setattr(Layer, "gain", 1.0)
        for name in ("GAIN", "INNER_GAIN"):
            monkeypatch.setitem(globals(), name, 1.0)
        closure = inner_closure = 1.0
        settings, of_partial, of_guide, layer, numbers = Settings(), Settings(), Settings(), Layer(), {"gain": 1.0}
        flags, array = Namespace(gain=1.0), np.ones(2)

        def scaled(x):
            return x * inner_closure

        def model(of_partial, x):
            x = scaled(globally(layer(x))) * closure * GAIN
            small_model(x * settings.gain * of_partial.gain * numbers["gain"] * flags.gain * float(array[0]))

        def change_closure():
            nonlocal closure
            closure = 1.1

        def change_inner_closure():
            nonlocal inner_closure
            inner_closure = 1.1

        changes.update({
            "a closure": change_closure,
            "a closure of a function called": change_inner_closure,
            "a global": lambda: globals().update(GAIN=1.1),
            "a global of a function called": lambda: globals().update(INNER_GAIN=1.1),
            "an object": lambda: setattr(settings, "gain", 1.1),
            "an argument of a partial": lambda: setattr(of_partial, "gain", 1.1),
            "an object of the guide": lambda: setattr(of_guide, "gain", 1.1),
            "a dict": lambda: numbers.update(gain=1.1),
            "a flag of argparse": lambda: setattr(flags, "gain", 1.1),
            "a number of an array": lambda: array.__setitem__(0, 1.1),
            "an object in a layer's attribute": lambda: setattr(layer.settings, "gain", 1.1),
            "a list in a layer's attribute": lambda: layer.gains.__setitem__(0, 1.1),
            "an attribute of a layer's class": lambda: setattr(Layer, "gain", 1.1),
            "the parameters of pyro": pyro.clear_param_store,
        })  # fmt: skip
        return partial(model, of_partial), lambda x: small_guide(x * of_guide.gain)

    make()
    assert_each_is_traced_again(make, changes, traced)


def test_the_built_in_optimiser_takes_on_parameters_that_are_new():
    svi = CompiledExactly(small_model, small_guide)
    svi.step(X)
    pyro.clear_param_store()
    svi.step(X)
    assert not torch.equal(pyro.param("guide_weight"), torch.ones(2, dtype=torch.float64))


def test_a_buffer_that_is_laid_out_anew_is_traced_again(traced):
    """Machine code reads a buffer in the order that its memory had."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3))
            self.register_buffer("weight", torch.randn(3, 3))

        def model(self, x):
            pyro.module("mixed", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ self.weight, 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("mixed", self)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc.expand(len(x), 3), 1.0).to_event(1))

    def make():
        pair = Mixed()
        return pair.model, pair.guide, pair

    def change(step, pair):
        if step == 2:
            pair.weight.data = pair.weight.data.t()

    *results, svi = run_both(make, [(torch.ones(5, 3),)] * 4, change=change)
    assert_same(*results, svi)
    assert len(traced) == 2
