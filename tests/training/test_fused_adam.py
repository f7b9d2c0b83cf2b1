"""Adam's kernel called alone leaves what `optimizer.step()` leaves, to the bit, whatever is done to the optimiser."""

import copy
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from pyrovae.training import fused_adam
from pyrovae.training.fused_adam import FusedAdam

MAKERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "all settings": lambda p: torch.optim.Adam(
        p, lr=0.1, betas=(0.5, 0.7), eps=0.1, weight_decay=0.3, maximize=True, fused=True
    ),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3, fused=True),
    "two groups": lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:], "lr": 0.5}], lr=0.1, fused=True),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, fused=True),
    "a tensor for a rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), fused=True),
    "not fused": lambda p: torch.optim.Adam(p, lr=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
}
ALONE = ("Adam", "all settings", "AdamW", "two groups")


def parameters_of(seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3,), (2, 2), (), (300, 5))
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def run(make, alone, change, lacks=lambda step, place: False, num_steps=12):
    """Returns the parameters after the steps, the optimiser's state, and the calls of `step` of its class."""
    parameters, calls = parameters_of(), []
    optimizer = make(parameters)
    stepper = FusedAdam(optimizer)
    generator = torch.Generator().manual_seed(2)
    original = type(optimizer).step

    def counted(self, *args, **kwargs):
        calls.append(self)
        return original(self, *args, **kwargs)

    for step in range(num_steps):
        change(step, optimizer, parameters)
        for place, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if lacks(step, place) else gradient
        with patch.object(type(optimizer), "step", counted):
            stepper.step() if alone else optimizer.step()
    return [p.detach() for p in parameters], copy.deepcopy(optimizer.state_dict()), len(calls)


def assert_same(name, change=lambda step, optimizer, parameters: None, **how):
    expected, state, _ = run(MAKERS[name], False, change, **how)
    found, found_state, calls = run(MAKERS[name], True, change, **how)
    assert all(map(torch.equal, found, expected))
    torch.testing.assert_close(found_state, state, rtol=0, atol=0)
    return calls


@pytest.mark.parametrize("name", MAKERS)
def test_each_kind(name):
    assert assert_same(name) == (1 if name in ALONE else 12)  # the first step sets the state up


def set_rate(step, optimizer, parameters):
    if step == 5:
        optimizer.param_groups[0]["lr"] = 0.01


def load(step, optimizer, parameters):
    if step == 3:
        optimizer.kept = copy.deepcopy(optimizer.state_dict())
    if step == 8:
        optimizer.load_state_dict(optimizer.kept)


def forget(step, optimizer, parameters):
    if step == 5:
        optimizer.state.clear()


def forget_one(step, optimizer, parameters):
    if step == 5:
        optimizer.state[parameters[0]] = {}


def set_moment(step, optimizer, parameters):
    if step == 5:
        optimizer.state[parameters[1]]["exp_avg"] = torch.zeros_like(parameters[1])


def set_count(step, optimizer, parameters):
    if step == 5:
        optimizer.state[parameters[1]]["step"] = torch.tensor(1.0)


def come_late(step, optimizer, parameters):
    if step == 5:
        parameters.append(nn.Parameter(torch.ones(2)))
        optimizer.add_param_group({"params": parameters[-1:]})


@pytest.mark.parametrize(
    ("change", "calls"),
    [(set_rate, 1), (load, 1), (forget, 2), (forget_one, 2), (set_moment, 1), (set_count, 1), (come_late, 2)],
)
def test_what_the_user_changes_in_the_middle_takes_effect(change, calls):
    assert assert_same("Adam", change) == calls


@pytest.mark.parametrize("lacks", [lambda step, place: place == 1 and step % 3 == 0, lambda step, place: place == 1])
def test_a_parameter_may_lack_a_gradient(lacks):
    assert assert_same("Adam", lacks=lacks) > 1


def test_hooks_are_called():
    def add_hooks(step, optimizer, parameters):
        def double(optimizer, args, kwargs):
            for parameter in parameters:
                parameter.grad.mul_(2)

        if step == 5:
            optimizer.register_step_pre_hook(double)

    assert assert_same("Adam", add_hooks) == 8


def test_a_step_of_the_users_own_is_called():
    def replace(step, optimizer, parameters):
        if step == 5:
            own = optimizer.step
            optimizer.step = lambda: [own(), parameters[0].data.zero_()]

    assert_same("Adam", replace)


def test_a_schedule_of_the_learning_rate_sees_the_steps():
    """It warns, which is an error in this suite, if it does not."""
    parameters = parameters_of()
    optimizer = MAKERS["Adam"](parameters)
    schedule, stepper = ExponentialLR(optimizer, 0.5), FusedAdam(optimizer)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        stepper.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)


def test_an_optimiser_of_the_users_own_sees_gradients_switched_on():
    seen = []

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(torch.is_grad_enabled())

    FusedAdam(Own(parameters_of(), lr=0.1)).step()
    assert seen == [True]


@pytest.mark.parametrize(("shape", "threads"), [((181, 181), 1), ((182, 182), 2)])
def test_small_parameters_are_stepped_on_one_thread_to_the_bit(shape, threads, two_threads, monkeypatch):
    """Threads that wait for each other on a busy machine take a hundred times as long as the step."""
    kernel, seen, found = fused_adam._KERNELS[0], [], []

    def watched(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return kernel(*args, **kwargs)

    monkeypatch.setattr(fused_adam, "_KERNELS", (watched, watched))
    gradient = torch.randn(shape)
    for alone in (True, False):
        parameter = nn.Parameter(torch.ones(shape))
        optimizer = MAKERS["Adam"]([parameter])
        stepper = FusedAdam(optimizer)
        for _ in range(3):
            parameter.grad = gradient
            stepper.step() if alone else optimizer.step()
        found.append(parameter.detach())
    assert torch.equal(*found)
    assert seen == [threads] * 2  # the first step, which has no state yet, is the optimiser's own
    assert torch.get_num_threads() == 2
