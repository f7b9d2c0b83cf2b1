"""Everything that a program can see is the same after a comparison as before it."""

import functools
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae.common.captured_state import CapturedState
from pyrovae.lab.comparing import compare
from pyrovae.lab.untouched import untouched

DECODER = nn.Linear(2, 3)
RUNNING = torch.zeros(3)
CALLS = {"model": 0}


class Plain:
    """An object with a running mean that it replaces, one that it moves, a counter, a list and a module."""

    def __init__(self):
        self.replaced, self.moved, self.calls, self.seen = torch.zeros(3), torch.zeros(3), 0, []
        self.norm = nn.BatchNorm1d(3)

    def __call__(self, x):
        self.norm(x.detach())
        self.replaced = 0.9 * self.replaced + 0.1 * x.mean(0)
        self.moved.mul_(0.9).add_(0.1 * x.mean(0))
        self.calls += 1
        self.seen.append(self.calls)
        return x


class Normalised(nn.Module):
    """A module that assigns its buffer anew and gets a new attribute."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("running", torch.zeros(3))
        self.untrained = nn.Parameter(torch.ones(3))

    def forward(self, x):
        self.running = 0.9 * self.running + 0.1 * x.mean(0)
        self.last = x
        return self.linear(x * self.untrained)


def state(plain, encoder, count, alone):
    """Returns all of the state as plain values."""
    tensors = [*DECODER.parameters(), RUNNING, plain.replaced, plain.moved, *plain.norm.state_dict().values()]
    tensors += [*encoder.parameters(), *encoder.buffers(), alone]
    return {
        "values": [tensor.tolist() for tensor in tensors],
        "gradients": [(id(t.grad), None if t.grad is None else t.grad.tolist()) for t in tensors],
        "trained": [tensor.requires_grad for tensor in tensors],
        "plain": (plain.calls, list(plain.seen), id(plain.replaced)),
        "calls": dict(CALLS),
        "count": count(),
        "modes": [module.training for module in (DECODER, plain.norm, encoder, encoder.linear)],
        "attributes": sorted(vars(encoder)),
        "store": {name: value.tolist() for name, value in pyro.get_param_store().items()},
        "generators": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),  # noqa: NPY002
    }


def programs():
    plain, encoder, alone, count = Plain(), Normalised(), torch.tensor(0.5), 0

    def model(scale, x):
        nonlocal count
        count += 1
        CALLS["model"] += 1
        RUNNING.add_(1.0)
        random.random()
        np.random.normal()  # noqa: NPY002
        pyro.module("decoder", DECODER)
        log_scale = pyro.param("log_scale", alone)  # Pyro switches on its gradient
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(DECODER(z), scale * log_scale.exp()).to_event(1), obs=plain(x))

    def guide(x):
        pyro.module("linear", encoder.linear)  # without the parameter beside it, which gradients reach
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return functools.partial(model, 1.0), guide, (plain, encoder, lambda: count, alone)


@pytest.mark.parametrize("compile", [False, True])
def test_the_values_of_closures_plain_objects_globals_and_modules_are_unchanged(compile):
    model, guide, seen = programs()
    pyro.param("mine", torch.tensor(2.0))
    plain, encoder, *_ = seen
    plain.norm.eval()
    for parameter in (*DECODER.parameters(), *encoder.parameters()):
        parameter.grad = torch.ones_like(parameter)
    x = torch.randn(5, 3, requires_grad=True)
    before = state(*seen)
    plain.norm.train()
    before["modes"][1] = True
    settings = {"objectives": ["elbo"], "num_particles": [2], "repeats": 4, "progress": False}
    if compile:  # it draws from Python's random numbers
        with pytest.warns(UserWarning, match="steps run eagerly"):
            compare(model, guide, x, **settings)
    else:
        found = compare(model, guide, x, **settings, compile=False)
        again = compare(model, guide, x, **settings, compile=False)
        assert found["elbo", 2].bound == again["elbo", 2].bound
        assert "running" in dict(encoder.named_buffers())
    after = state(*seen)
    assert {name: after[name] for name in before if after[name] != before[name]} == {}
    assert x.grad is None
    assert encoder(torch.ones(2, 3)).shape == (2, 2)
    DECODER.zero_grad()


def test_everything_is_unchanged_even_if_the_comparison_fails():
    model, guide, seen = programs()
    before = state(*seen)
    with pytest.raises(RuntimeError, match="running_mean should contain 4 elements"), untouched(model, guide):
        [program(x) for x in (torch.randn(5, 3), torch.randn(5, 4)) for program in (model, guide)]
    after = state(*seen)
    assert {name: after[name] for name in before if after[name] != before[name]} == {}


def test_a_module_still_runs_after_a_new_attribute_is_taken_away():
    encoder = Normalised()
    names = sorted(vars(encoder))
    watch = CapturedState([encoder])
    encoder(torch.ones(2, 3))
    watch.restore()
    assert sorted(vars(encoder)) == names
    assert encoder(torch.ones(2, 3)).shape == (2, 2)


def test_a_tensor_whose_gradient_was_switched_on_is_frozen_again():
    frozen = torch.tensor(0.5)

    def program():
        return pyro.param("frozen", frozen)

    watch = CapturedState([program])
    program()
    assert frozen.requires_grad
    watch.restore()
    assert not frozen.requires_grad
    assert watch.change() is None
