"""Whatever a program reads or moves besides its tensors has the effect that it has under `SVI`, in every place."""

import itertools
import random
import sys
import types
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import CompiledExactly, data, num_graphs
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceTailAdaptive_ELBO
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger, AutoNormalMessenger

from pyrovae.objectives import ELBO

NUM_STEPS = 20  # beyond the first step at which the graph is compared with the program again


def scaled(x, factor, weight=None):
    """A model whose data are scaled."""
    weight = pyro.param("weight", x.new_ones(())) if weight is None else weight
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(weight * z[..., None], x.new_ones(2)).to_event(1), obs=factor * x)


def guide(x, *others):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", x.new_zeros(())), 1.0))


def stepped(kind, make, loss=Trace_ELBO, steps=NUM_STEPS):
    """Returns the losses, all parameters, what `moved()` gives, and the SVI; `make` gives a dict."""
    pyro.clear_param_store()
    found = {"guide": guide, "args": lambda step: (data(6, 2),), "before": lambda step: None, "moved": list, **make()}
    svi = kind(found["model"], found["guide"], pyro.optim.SGD({"lr": 1e-3}), loss())
    torch.manual_seed(4)
    losses = []
    for step in range(steps):
        found["before"](step)
        losses.append(svi.step(*found["args"](step)))
    values = [value.detach().clone() for value in pyro.get_param_store()._params.values()]
    return losses, values, [value.clone() for value in found["moved"]()], svi


def assert_is_svi(make, reason=None, **settings):
    losses, values, moved, _ = stepped(SVI, make, **settings)
    ours, our_values, our_moved, svi = stepped(CompiledExactly, make, **settings)
    assert (svi.reason or "").startswith(reason or "") and (svi.reason is None) == (reason is None), svi.reason  # noqa: PT018
    assert ours == losses
    for found, expected in ((our_values, values), (our_moved, moved)):
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))


# What is read ---------------------------------------------------------------------------------------------------------

FACTOR, FACTORS = 1.0, (1.0, 2.0)


class Methods:
    factor = 1.0

    @staticmethod
    def of_a_global():
        return FACTOR

    @classmethod
    def of_the_class(cls):
        return cls.factor


def a_global_in_a_static_method():
    def change(step):
        globals()["FACTOR"] = FACTORS[step > 5]

    return {"model": lambda x: scaled(x, Methods.of_a_global()), "before": change}


def an_attribute_in_a_class_method():
    def change(step):
        Methods.factor = FACTORS[step > 5]

    return {"model": lambda x: scaled(x, Methods.of_the_class()), "before": change}


package = types.ModuleType("settings_of_a_user")
package.parts = types.ModuleType("settings_of_a_user.parts")


def a_module_within_a_module():
    def change(step):
        package.parts.factor = FACTORS[step > 5]

    return {"model": lambda x: scaled(x, package.parts.factor), "before": change}


def a_module_imported_within():
    def model(x):
        import settings_of_a_user  # of no file

        scaled(x, settings_of_a_user.factor)

    def change(step):
        package.factor = FACTORS[step > 5]

    return {"model": model, "before": change}


class Schedule:
    def __init__(self):
        self.factor = 1.0


def an_attribute_of_an_argument():
    schedule = Schedule()

    def args(step):
        schedule.factor = FACTORS[step > 5]
        return data(6, 2), schedule

    return {"model": lambda x, schedule: scaled(x, schedule.factor), "args": args}


@pytest.mark.parametrize(
    "make",
    [
        a_global_in_a_static_method,
        an_attribute_in_a_class_method,
        a_module_within_a_module,
        a_module_imported_within,
        an_attribute_of_an_argument,
    ],
)
def test_a_number_that_changes_between_steps_is_seen_at_once(make, monkeypatch):
    """It was seen when the graph was next compared with the program, at step 16, 32 and so on."""
    monkeypatch.setitem(sys.modules, "settings_of_a_user", package)
    monkeypatch.setattr(package, "factor", 1.0, raising=False)
    monkeypatch.setattr(package.parts, "factor", 1.0, raising=False)
    assert_is_svi(make)


# What is moved --------------------------------------------------------------------------------------------------------


def an_argument():
    count = torch.zeros((), dtype=torch.float64)

    def model(x, count):
        count.add_(1)
        scaled(x, count)

    return {"model": model, "args": lambda step: (data(6, 2), count), "moved": lambda: [count]}


def a_running_mean_in_an_argument():
    mean = torch.zeros(2, dtype=torch.float64)

    def model(x, mean):
        mean.mul_(0.9).add_(0.1 * x.mean(0))
        scaled(x - mean, 1.0)

    return {"model": model, "args": lambda step: (data(6, 2, seed=step), mean), "moved": lambda: [mean]}


def a_parameter():
    def model(x):
        weight = pyro.param("weight", x.new_ones(()))
        weight.data.mul_(0.99)
        scaled(x, 1.0, weight)

    return {"model": model}


@pytest.mark.parametrize("make", [an_argument, a_running_mean_in_an_argument, a_parameter])
def test_what_a_model_moves_in_place_moves_once_a_step(make):
    """It moved twice where the graph was compared with the program."""
    assert_is_svi(make)


# What is drawn and counted --------------------------------------------------------------------------------------------


def from_a_counter():
    counter = itertools.count()
    return {"model": lambda x: scaled(x, min(1.0 + next(counter), 3.0))}


def from_a_cycle():
    factors = itertools.cycle(5 * [1.0] + [2.0])
    return {"model": lambda x: scaled(x, next(factors))}


def from_a_generator():
    schedule = (1.0 if step < 7 else 2.0 for step in itertools.count())
    return {"model": lambda x: scaled(x, next(schedule))}


def rarely_from_python():
    own = random.Random(3)
    return {"model": lambda x: scaled(x, 2.0 if own.random() < 0.1 else 1.0)}


def rarely_from_numpy():
    own = np.random.default_rng(3)
    return {"model": lambda x: scaled(x, 2.0 if own.random() < 0.1 else 1.0)}


def rarely_from_an_old_numpy():
    own = np.random.RandomState(3)
    return {"model": lambda x: scaled(x, 2.0 if own.rand() < 0.1 else 1.0)}


@pytest.mark.filterwarnings("ignore:steps run eagerly")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (from_a_counter, "it takes numbers from an iterator (count)"),
        (from_a_cycle, "it takes numbers from an iterator (cycle)"),
        (from_a_generator, "it takes numbers from an iterator (generator)"),
        (rarely_from_python, "it draws from a random generator of its own"),
        (rarely_from_numpy, "it draws from a random generator of its own"),
        (rarely_from_an_old_numpy, "it draws from a random generator of its own"),
    ],
)
def test_a_source_of_numbers_that_only_an_eager_step_moves_makes_steps_eager(make, reason):
    """If the first numbers were equal the trace kept them for good; and what refused them had used some up."""
    assert_is_svi(make, reason)


OTHERS = {
    "a generator of NumPy": lambda: np.random.default_rng(3),
    "that of the system": random.SystemRandom,
    "a generator": lambda: (step for step in range(9)),
    "an iterator": lambda: iter([1, 2]),
    "a zip": lambda: zip([1, 2], [3, 4], strict=True),
    "a counter": itertools.count,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_source_that_is_not_drawn_from_does_not_matter(name):
    own = OTHERS[name]()
    assert_is_svi(lambda: {"model": lambda x: scaled(x, 1.0 if own is not None else 2.0)})


def test_a_parameter_that_starts_at_a_draw_of_its_own_is_compiled_from_the_second_step_on():
    def make():
        own = np.random.default_rng(3)

        def model(x):
            scaled(x, 1.0, pyro.param("weight", lambda: x.new_tensor(own.normal())))

        return {"model": model}

    for loss in (Trace_ELBO, ELBO):
        assert_is_svi(make, loss=loss)


def test_attributes_of_an_argument_that_no_code_reads_may_change():
    def make():
        state = Progress()

        def args(step):
            state.number = step
            return data(6, 2), state

        return {"model": lambda x, state: scaled(x, state.factor), "args": args}

    assert_is_svi(make)


class Progress:
    factor = 2.0


def test_arguments_that_must_not_be_written_to_are_not_if_they_hold_nan(tmp_path):
    """A write to a read-only file in memory ends the process."""
    np.save(tmp_path / "x.npy", np.array([[1.0, np.nan], [2.0, 3.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that it cannot be written to
        x = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="r"))
    with torch.inference_mode():
        inference = torch.tensor([[1.0, np.nan]])
    for value in (x, torch.tensor([1.0, np.nan]).expand(3, 2), inference):
        assert_is_svi(
            lambda value=value: {"model": lambda x: scaled(x.nan_to_num(), 1.0), "args": lambda step: (value,)}
        )


# Guides and losses of Pyro's that are read otherwise ------------------------------------------------------------------


def located(x):
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc[..., None], x.new_ones(2)).to_event(1), obs=x + 3)


@pytest.mark.filterwarnings("ignore:steps run eagerly")
@pytest.mark.parametrize("loss", [Trace_ELBO, TraceGraph_ELBO, lambda: RenyiELBO(num_particles=2)])
@pytest.mark.parametrize("messenger", [AutoNormalMessenger, AutoHierarchicalNormalMessenger])
def test_under_a_guide_that_is_a_messenger_the_first_step_too_is_svi_s(messenger, loss):
    """The likelihood cancelled in the first step, as a check of the pair had hidden what kind of guide it is."""
    make = lambda: {"model": located, "guide": messenger(located)}  # noqa: E731
    assert_is_svi(make, "it changes trace as it runs", loss=loss, steps=4)


@pytest.mark.filterwarnings("ignore:steps run eagerly")
def test_a_loss_that_is_always_infinite_trains_as_under_svi():
    def loss():
        return TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True)

    make = lambda: {"model": lambda x: scaled(x, 1.0)}  # noqa: E731
    assert_is_svi(make, "its loss has no value", loss=loss, steps=3)


def test_another_dtype_of_autocast_makes_another_graph():
    pyro.clear_param_store()
    svi = CompiledExactly(
        lambda x: scaled(x @ x.new_ones(2, 2), 1.0), guide, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO()
    )
    x = data(6, 2).float()
    svi.step(x)  # which sets the loss up
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            svi.step(x)
    assert (svi.reason, num_graphs(svi)) == (None, 2)
