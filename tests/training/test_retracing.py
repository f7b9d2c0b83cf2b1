"""A compiled step reads values anew, and is traced again when the program around it changes."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import (
    POINTS,
    CompiledExactly,
    Settings,
    assert_same,
    data,
    plain_guide,
    plain_model,
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
    """A network that reads numbers from attributes, a list, its class and a global."""

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


def test_a_buffer_that_is_laid_out_anew_is_seen():
    torch.manual_seed(1)

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

    def losses(kind, **settings):
        pyro.clear_param_store()
        torch.manual_seed(2)
        pair, x = Mixed(), torch.ones(5, 3)
        svi, found = kind(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), pv.objectives.ELBO(), **settings), []
        for step in range(6):
            if step == 3:
                pair.weight.data = pair.weight.data.t()
            found.append(svi.step(x))
        return found

    assert losses(pv.CompiledSVI) == pytest.approx(losses(SVI), rel=1e-5)
