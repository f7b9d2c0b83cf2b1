"""Optimisers, schedules and callbacks of the user's own that are none are refused before a step, or at once."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import parameters_of, refusal, small_vae

import pyrovae as pv

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
SGD = torch.optim.SGD


class Schedule:
    """Has what a schedule needs, and does `step` to the optimiser."""

    def __init__(self, optimizer, step=lambda optimizer: None, state=None) -> None:
        self.optimizer, self.do, self.state = optimizer, step, {} if state is None else state

    def step(self) -> None:
        self.do(self.optimizer)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state) -> None: ...


class Odd(SGD):
    def state_dict(self):
        return 3


class Forgetful(SGD):
    def step(self, closure=None):
        self.param_groups[0]["params"] = []


def never(*args) -> None:
    raise AssertionError("a step was taken")


def rate(value):
    return lambda optimizer: optimizer.param_groups[0].update(lr=value)


BEFORE = {
    "no dict as the schedule's state": (
        {"schedule": lambda o: Schedule(o, state=3)},
        "schedule must have a dict as .+, got 3",
    ),
    "a schedule of another": (
        {"schedule": lambda o: Schedule(SGD(small_vae().parameters(), 0.1))},
        "schedule must be of the optimiser that it is given, and Schedule is not",
    ),
    "an optimiser as schedule": ({"schedule": lambda o: o}, "schedule must make one of torch.optim.lr_scheduler .+"),
    "no schedule": ({"schedule": lambda o: None}, "schedule must make one of torch.optim.lr_scheduler .+, got None"),
    "no dict as the optimiser's state": ({"optimizer": Odd}, "optimizer must have a dict as its state_dict.+, got 3"),
    "no optimiser": ({"optimizer": lambda p, lr: None}, "optimizer must make a torch.optim.Optimizer .+, got None"),
    "beta without a share": ({"beta_schedule": lambda: 1.0}, "beta_schedule must be a function of the share: .+"),
    "beta of 0 in float32": ({"beta_schedule": lambda share: 1e-300}, "beta must be > 0 as a float32, got 1e-300"),
    "on_epoch": ({"on_epoch": "x"}, "on_epoch must be a function, got 'x'"),
    "on_start": ({"on_start": 3}, "on_start must be a function, got 3"),
    "progress": ({"progress": "no"}, "progress must be true or false, got 'no'"),
    "seed": ({"seed": 1.0}, "seed must be a whole number >= 0, got 1.0"),
    "patience": ({"patience": True}, "patience must be a whole number >= 1, got True"),
    "compile": ({"compile": 0}, "compile must be true, false or auto, got 0"),
    "device": ({"device": 3}, "device must be auto or one that torch can use here, got 3"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_setting_that_is_something_else_is_refused_before_the_first_step(name):
    settings, said = BEFORE[name]
    vae = small_vae()
    before = parameters_of(vae)
    with pytest.raises(pv.InputError, match=f"^{said}$"):
        pv.fit(vae, X, **{"epochs": 2, "on_epoch": never, **settings})
    assert torch.equal(parameters_of(vae), before)


@pytest.mark.parametrize("value", [math.nan, -1.0, "x", None, math.inf])
def test_a_schedule_that_gives_no_learning_rate_ends_the_training_at_once(value):
    schedule = {"schedule": lambda optimizer: Schedule(optimizer, rate(value))}
    said = f"schedule must give a finite learning rate >= 0, and lr is {value!r} after epoch 1"
    assert refusal(pv.fit, small_vae(), X, epochs=3, on_epoch=never, **schedule) == said


@pytest.mark.parametrize(
    "settings", [{"optimizer": Forgetful}, {"schedule": lambda o: Schedule(o, lambda o: o.param_groups.clear())}]
)
def test_an_optimiser_that_loses_its_parameters_ends_the_training_at_once(settings):
    said = "optimizer must keep its parameters, and has none of them after epoch 1"
    assert refusal(pv.fit, small_vae(), X, epochs=3, on_epoch=never, **settings) == said


def test_a_race_knows_all_its_settings_before_it_makes_a_model(tmp_path):
    for settings, said in (
        ({"seeds": 3}, "seeds must be a list or a tuple of whole numbers >= 0, got 3"),
        ({"seeds": b"01"}, "seeds must be a list or a tuple of whole numbers >= 0, got b'01'"),
        ({"budget": "minutes"}, "budget must be one of epochs, seconds, decoder_calls; got 'minutes'"),
        ({"num_data": 0}, "num_data must be a whole number >= 2, got 0"),
        ({"progress": 1}, "progress must be true or false, got 1"),
        ({"folder": 3}, "folder must be a path, got 3"),
    ):
        assert refusal(pv.race, never, X, ["elbo"], held_out=X, epochs=1, **settings) == said


def test_the_line_of_a_diverged_training_is_short_whatever_the_names_of_its_sites():
    name = "z" * 10**6

    class Pair:
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample(name, dist.Normal(torch.zeros(len(x)), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x * pyro.param("w", torch.tensor(1.0)) ** 99)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample(name, dist.Normal(pyro.param("loc", torch.zeros(len(x))), 1.0))

    pyro.param("w", torch.tensor(30.0))
    with pytest.raises(FloatingPointError) as caught:
        pv.fit(Pair(), X[:, 0], epochs=1, batch_size=12, seed=0)
    assert len(str(caught.value)) <= 505
