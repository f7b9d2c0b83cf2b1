"""One call that steps all optimisers of a `PyroOptim` leaves what calling each of them does."""

import copy

import pyro
import pytest
import torch
from pyro.optim import PyroOptim
from torch import nn

from pyrovae.training.one_optimizer import OneOptimizer

OPTIMISERS = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.1, "weight_decay": 0.01}),
    "Adam, AMSGrad": lambda: pyro.optim.Adam({"lr": 0.1, "amsgrad": True}),
    "AdamW": lambda: pyro.optim.AdamW({"lr": 0.1}),
    "SGD": lambda: pyro.optim.SGD({"lr": 0.1}),
    "SGD, momentum": lambda: pyro.optim.SGD({"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "Adagrad": lambda: pyro.optim.Adagrad({"lr": 0.1, "lr_decay": 0.1}),
    "RMSprop": lambda: pyro.optim.RMSprop({"lr": 0.1, "momentum": 0.5, "centered": True}),
    "Adadelta": lambda: pyro.optim.Adadelta({}),
    "Adamax": lambda: pyro.optim.Adamax({"lr": 0.1}),
    "NAdam": lambda: PyroOptim(torch.optim.NAdam, {"lr": 0.1}),
    "RAdam": lambda: PyroOptim(torch.optim.RAdam, {"lr": 0.1}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.9, "clip_norm": 0.5}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "another rate for one": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "p0" else 0.01}),
    "gradients clipped": lambda: pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 0.5}),
    "gradients cut off": lambda: pyro.optim.SGD({"lr": 0.1}, {"clip_value": 0.5}),
}
NOT_JOINED = {
    "ASGD": lambda: pyro.optim.ASGD({"lr": 0.1}),
    "Rprop": lambda: pyro.optim.Rprop({"lr": 0.1}),
    "scheduler": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
    ),
}


def parameters_of_shapes(*shapes):
    pyro.clear_param_store()
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [pyro.param(f"p{n}", value).unconstrained() for n, value in enumerate(values)]


def run(make, joined, fused=False, num_steps=20, change=lambda step, optim: None, lacks=lambda step, place: False):
    """Returns the parameters after the steps, the optimiser, and what stepped it."""
    parameters = parameters_of_shapes((3,), (2, 2), ())
    optim = make()
    one = OneOptimizer(optim, fused) if joined else None
    generator = torch.Generator().manual_seed(2)
    for step in range(num_steps):
        new = change(step, optim)
        parameters = parameters if new is None else [*parameters, new]
        for place, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if lacks(step, place) else gradient
        one.step(parameters) if one else optim(parameters)
        if getattr(optim, "pt_scheduler_constructor", None):
            optim.step()
    return parameters, optim, one


def without_empty(state):
    """An optimiser's state of a parameter may be empty, or not be there."""
    state = copy.deepcopy(state)
    for part in state.values():
        if "state" in part:
            part["state"] = {key: value for key, value in part["state"].items() if value}
    return state


def assert_same(make, fused=False, **how):
    apart, optim, _ = run(make, False, **how)
    expected = [parameter.detach().clone() for parameter in apart], without_empty(optim.get_state())
    together, optim, one = run(make, True, fused=fused, **how)
    close = {"rtol": 1e-4, "atol": 1e-6} if fused else {"rtol": 0, "atol": 0}
    torch.testing.assert_close([parameter.detach() for parameter in together], expected[0], **close)
    state = without_empty(optim.get_state())
    assert state.keys() == expected[1].keys()
    torch.testing.assert_close(state, expected[1], **close)
    return one


@pytest.mark.parametrize("name", [*OPTIMISERS, *NOT_JOINED])
def test_parameters_and_states_are_those_of_each_optimiser(name):
    one = assert_same({**OPTIMISERS, **NOT_JOINED}[name])
    assert (one._one is not None) == (name in OPTIMISERS and name != "another rate for one")


@pytest.mark.parametrize("name", ["Adam", "Adam, AMSGrad", "AdamW", "SGD", "SGD, momentum", "Adagrad", "ClippedAdam"])
def test_one_kernel_gives_them_to_rounding(name):
    one = assert_same(OPTIMISERS[name], fused=True)
    assert bool(one._one.optimizer.param_groups[0].get("fused")) == (name != "ClippedAdam")


@pytest.mark.parametrize("name", ["Adam", "SGD, momentum", "ClippedAdam", "AdagradRMSProp", "gradients clipped"])
@pytest.mark.parametrize("lacks", [lambda step, place: place == 1 and step % 3 == 0, lambda step, place: place == 1])
def test_a_parameter_may_lack_a_gradient(name, lacks):
    assert assert_same(OPTIMISERS[name], lacks=lacks)._one is not None


def set_rate(step, optim):
    if step == 7:
        for part in optim.optim_objs.values():
            part.param_groups[0]["lr"] = 0.01


def set_one_rate(step, optim):
    if step == 7:
        next(iter(optim.optim_objs.values())).param_groups[0]["lr"] = 0.01


def set_back(step, optim):
    if step == 7:
        optim.kept = copy.deepcopy(optim.get_state())
    if step == 12:
        optim.set_state(optim.kept)


def forget(step, optim):
    if step == 7:
        optim.optim_objs.clear()


def come_late(step, optim):
    return pyro.param("late", torch.ones(2)).unconstrained() if step == 7 else None


@pytest.mark.parametrize("name", ["Adam", "SGD, momentum", "ClippedAdam"])
@pytest.mark.parametrize("change", [set_rate, set_one_rate, set_back, forget, come_late])
def test_what_the_user_changes_in_the_middle_takes_effect(name, change):
    one = assert_same(OPTIMISERS[name], change=change)
    assert (one._one is not None) == (
        change not in (set_one_rate,) and not (name == "ClippedAdam" and change is come_late)
    )


def test_two_may_step_one_optimiser_in_turn():
    """As two SVIs do, of labelled and unlabelled data."""
    results = []
    for joined in (False, True):
        parameters = parameters_of_shapes((3,), (2, 2))
        optim = OPTIMISERS["ClippedAdam"]()
        steps = [OneOptimizer(optim, False).step for _ in range(2)] if joined else [optim] * 2
        generator = torch.Generator().manual_seed(2)
        for number in range(12):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            steps[number % 3 == 0](parameters)
        results.append(([parameter.detach().clone() for parameter in parameters], without_empty(optim.get_state())))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_parameters_of_a_module_are_stepped_in_their_own_layout():
    pyro.clear_param_store()
    pyro.module("layer", nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last))
    parameters = [value.unconstrained() for value in pyro.get_param_store().values()]
    before = [parameter.stride() for parameter in parameters]
    one = OneOptimizer(pyro.optim.Adam({"lr": 0.1}), fused=True)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        one.step(parameters)
    assert [parameter.stride() for parameter in parameters] == before
    assert all(parameter.isfinite().all() for parameter in parameters)


class WarmUp(PyroOptim):
    """Does something of its own around the steps."""

    def __call__(self, params, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        for parameter in params:
            parameter.grad *= min(1.0, self.calls / 10)
        super().__call__(params, *args, **kwargs)


@pytest.mark.parametrize("fused", [False, True])
def test_a_subclass_is_called_as_itself(fused):
    assert_same(lambda: WarmUp(torch.optim.Adam, {"lr": 0.1}), fused)


def test_hooks_of_the_parts_are_called():
    def halve(own, *_):
        for parameter in own.param_groups[0]["params"]:
            parameter.grad.mul_(0.5)

    def change(step, optim):
        if step == 3:
            for own in optim.optim_objs.values():
                own.register_step_pre_hook(halve)

    assert_same(lambda: pyro.optim.Adam({"lr": 0.1}), change=change)


@pytest.mark.parametrize("make", [
    lambda: pyro.optim.SGD({"lr": 0.1, "momentum": 0.9}), lambda: pyro.optim.Adagrad({"lr": 0.1}),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_go_where_fused_steps_cannot(make):
    def trained(stepper):
        parameters, optim = parameters_of_shapes((4, 2), (2,)), make()
        step = OneOptimizer(optim, fused=True).step if stepper else optim
        for _ in range(5):
            parameters[0].grad = torch.sparse_coo_tensor([[1, 3]], torch.ones(2, 2), (4, 2), check_invariants=True)
            parameters[1].grad = torch.ones(2)
            step(parameters)
        return [parameter.detach().clone() for parameter in parameters]

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))
