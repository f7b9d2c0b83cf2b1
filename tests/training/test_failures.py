"""Errors in a training: only a distribution that refuses values means divergence, and data too large are named."""

import math
import re
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import parameters_of, refusal, ring, small_vae
from torch import nn

import pyrovae as pv
from pyrovae.common import is_validation_error

X = ring(num_train=64).train_x


def caught(call) -> Exception:
    with pytest.raises(Exception) as found:  # noqa: PT011
        call()
    return found.value


# Which errors are divergence ------------------------------------------------------------------------------------------


def own_error():
    raise ValueError("found invalid values")


NAN, ONE = torch.tensor(math.nan), torch.ones(())
REFUSED = {
    "a parameter": lambda: dist.Normal(NAN, 1.0),
    "a scale": lambda: dist.Normal(0.0, -ONE).to_event(0),
    "a value": lambda: dist.Bernoulli(0.5).log_prob(0.3 * ONE),
    "a value of an event": lambda: dist.Bernoulli(torch.full((2,), 0.5)).to_event(1).log_prob(torch.full((2,), 0.3)),
    "logits": lambda: dist.OneHotCategorical(logits=torch.full((3,), math.nan)),
    "a covariance": lambda: dist.MultivariateNormal(torch.zeros(2), torch.full((2, 2), math.nan)),
    "a family of Pyro's": lambda: dist.ZeroInflatedPoisson(gate=0.5 * ONE, rate=NAN),
}
OF_THE_PROGRAM = {
    "its own": own_error,
    "other shapes": lambda: dist.Normal(torch.zeros(3), 1.0).log_prob(torch.zeros(4)),
    "another event": lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1).log_prob(torch.zeros(4)),
    "a dimension too many": lambda: dist.Normal(torch.zeros(3), 1.0).to_event(2),
    "no dimension": lambda: dist.MultivariateNormal(ONE, torch.eye(2)),
    "two parametrisations": lambda: dist.Bernoulli(ONE, logits=ONE),
    "a scale of 0": lambda: pyro.poutine.scale(scale=0.0),
    "a batch of one": lambda: nn.BatchNorm1d(2)(torch.zeros(1, 2)),
    "a RuntimeError": lambda: torch.zeros(2) @ torch.zeros(3),
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "within a trace"])
@pytest.mark.parametrize("name", [*REFUSED, *OF_THE_PROGRAM])
def test_divergence_is_a_distribution_that_refuses_values_and_no_other_error(name, wrapped):
    call = {**REFUSED, **OF_THE_PROGRAM}[name]
    error = caught(pyro.poutine.trace(pyro.poutine.trace(call)).get_trace if wrapped else call)
    assert is_validation_error(error) == (name in REFUSED)


class Mine(ValueError):
    """An error of the user's own."""


class Failing(nn.Module):
    """A pair that calls `fails` from its third step on, or at validation."""

    def __init__(self, fails, at="model", validating=False):
        super().__init__()
        self.net, self.fails, self.at, self.validating = nn.Linear(2, 2), fails, at, validating
        self.register_buffer("steps", torch.zeros(()))
        self.name = f"net {id(self)}"

    def step(self, program):
        if program != self.at:
            return
        if self.training:
            self.steps += 1
        if self.steps >= 3 and self.training != self.validating:
            self.fails()

    def model(self, x):
        self.step("model")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        self.step("guide")
        pyro.module(self.name, self.net)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))


def raising(error):
    def fails():
        raise error

    return fails


def fit(pair, **settings):
    usual = {"epochs": 2, "batch_size": 16, "progress": False, "validation": X[:8]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "steps run eagerly")
        pv.fit(pair, X, **{**usual, **settings})


def steps(make):
    def run(pair):
        svi = make(pair.model, pair.guide, pyro.optim.SGD({"lr": 0.01}), pv.objectives.ELBO())
        for _ in range(4):
            svi.step(X)

    return run


def compiled_svi(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pv.CompiledSVI(*args, inductor=False)


DOORS = {
    "fit": fit,
    "fit that skips": lambda pair: fit(pair, nonfinite="skip"),
    "compiled fit": lambda pair: fit(pair, compile=True),
    "compiled fit that skips": lambda pair: fit(pair, compile=True, nonfinite="skip"),
    "an ELBO of Pyro's": lambda pair: fit(pair, objective=pyro.infer.Trace_ELBO()),
    "SVI": steps(pyro.infer.SVI),
    "CompiledSVI": steps(compiled_svi),
}


@pytest.mark.parametrize("at", ["model", "guide"])
@pytest.mark.parametrize("error", [Mine("of mine"), KeyError("of mine"), ZeroDivisionError("of mine")], ids=repr)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.filterwarnings("ignore:steps run eagerly")
def test_an_error_of_the_users_program_goes_through_as_it_is(door, error, at, without_machine_code):
    found = caught(lambda: DOORS[door](Failing(raising(error), at)))
    assert type(found) is type(error)
    assert "of mine" in str(found)
    assert "diverged" not in str(found)


@pytest.mark.parametrize("door", [name for name in DOORS if "fit" in name])
def test_an_error_at_validation_goes_through_as_it_is(door, without_machine_code):
    found = caught(lambda: DOORS[door](Failing(raising(Mine("of mine")), validating=True)))
    assert type(found) is Mine


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.filterwarnings("ignore:steps run eagerly")
def test_shapes_that_do_not_fit_are_no_divergence(door, without_machine_code):
    fails = OF_THE_PROGRAM["another event"]
    found = caught(lambda: DOORS[door](Failing(fails)))
    assert isinstance(found, ValueError)
    assert "Value is not broadcastable with batch_shape+event_shape" in str(found)
    assert "diverged" not in str(found)


@pytest.mark.parametrize("door", [name for name in DOORS if "fit" in name and "skips" not in name])
@pytest.mark.parametrize("validating", [False, True])
def test_a_distribution_that_refuses_values_is_divergence_at_every_door(door, validating, without_machine_code):
    found = caught(lambda: DOORS[door](Failing(REFUSED["a parameter"], validating=validating)))
    assert type(found) is FloatingPointError
    assert str(found).startswith("training diverged")
    assert "\n" not in str(found)


def test_a_step_that_a_distribution_refuses_is_skipped_and_all_of_them_are_told(without_machine_code):
    for compile in (False, True):
        assert "every step of epoch 2 was skipped" in refusal(
            lambda c=compile: fit_quietly(Failing(REFUSED["a parameter"]), nonfinite="skip", compile=c)
        )


def fit_quietly(pair, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(pair, **settings)


# A batch of one -------------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.net = norm, nn.Linear(2, 2)
        self.name = f"normed {id(self)}"

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.net(self.norm(x)), 1.0).to_event(1))


class Pixels(nn.Module):
    """Batch normalisation for data that have several values in each channel."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.norm(x.view(-1, 1, 1, 2)).view(-1, 2)


@pytest.mark.parametrize("batch_size", [1, 9, 3])
@pytest.mark.parametrize("compile", [False, True])
def test_a_batch_of_one_under_batch_normalisation_is_refused_before_training(batch_size, compile, without_machine_code):
    pair = Normed(nn.BatchNorm1d(2))
    before, modes = parameters_of(pair), [module.training for module in pair.modules()]
    data = X[:10]
    said = refusal(pv.fit, pair, data, epochs=1, batch_size=batch_size, compile=compile)
    assert said == f"batch_size must leave no batch of one datum, for which BatchNorm has no variance; got {batch_size}"
    assert torch.equal(parameters_of(pair), before)
    assert pair.norm.num_batches_tracked == 0
    assert [module.training for module in pair.modules()] == modes


@pytest.mark.parametrize(
    ("norm", "batch_size"),
    [(nn.BatchNorm1d(2), 5), (nn.BatchNorm1d(2), 4), (Pixels(), 9), (nn.LayerNorm(2), 9), (nn.Identity(), 1)],
    ids=str,
)
def test_what_trains_on_a_batch_of_one_or_has_none_is_not_refused(norm, batch_size):
    pair = Normed(norm)
    pv.fit(pair, X[:10], epochs=1, batch_size=batch_size, seed=1)
    tracked = [value for name, value in pair.state_dict().items() if "num_batches_tracked" in name]
    assert all(value == -(-10 // batch_size) for value in tracked)


def test_a_last_batch_of_one_that_cannot_be_known_is_what_torch_says_it_is():
    found = caught(lambda: pv.fit(Normed(nn.BatchNorm1d(2)), list(X[:10].split(9)), epochs=1, nonfinite="skip"))
    assert type(found) is ValueError
    assert "Expected more than 1 value per channel when training" in str(found)


# Data that are not scaled ---------------------------------------------------------------------------------------------


def column(size: float) -> torch.Tensor:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= size / x[:, 0].abs().max()
    return x


SOURCES = {
    "a tensor": lambda x: x,
    "a data set": lambda x: pv.Dataset("mine", "real", x, torch.zeros(len(x)), x[:9], x[:9, 0], x[:9], x[:9, 0]),
    "a loader": lambda x: torch.utils.data.DataLoader(x, batch_size=200),
}


@pytest.mark.parametrize(
    ("size", "source", "compile"),
    [(size, source, False) for size in (300.0, 1e5, 1e30) for source in SOURCES]
    + [(size, source, True) for size, source in zip((300.0, 1e5, 1e30), SOURCES, strict=True)],
)
@pytest.mark.parametrize("likelihood", [pv.Gaussian(0.5, learn_scale=True), pv.HeteroscedasticGaussian(0.1)], ids=str)
def test_data_that_are_not_scaled_are_named_first(likelihood, source, size, compile, without_machine_code):
    vae = small_vae((3,), hidden=(32,), likelihood=likelihood)
    found = caught(lambda: pv.fit(vae, SOURCES[source](column(size)), epochs=20, seed=0, lr=0.1, compile=compile))
    assert isinstance(found, FloatingPointError | pv.InputError)
    said = re.match("x reaches (.+?): standardise it; ", str(found))
    assert said is not None
    assert 50 < float(said[1]) <= float(f"{size:.3g}")  # of the first batch, where that is as far as it gets
    assert "\n" not in str(found)


def test_grey_levels_up_to_255_are_named():
    x = torch.randint(0, 256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    vae = small_vae((1, 8, 8), hidden=(32,), likelihood=pv.Gaussian(0.5))
    assert str(caught(lambda: pv.fit(vae, x, epochs=3, seed=0))).startswith("x reaches 255: standardise it; ")


def test_a_condition_that_is_not_scaled_is_named_and_labels_are_not():
    vae = small_vae(condition=pv.Embedding())
    batch = (X, 1e6 * X[:, :1])
    said = str(caught(lambda: pv.fit(vae, [batch], epochs=3, seed=0)))
    assert said.startswith(f"y reaches {batch[1].abs().max().item():.3g}: standardise it; ")
    vae = small_vae(condition=pv.OneHot(1000))
    said = str(caught(lambda: pv.fit(vae, [(X, torch.full((64,), 999))], epochs=20, lr=1e10)))
    assert said.startswith("training diverged")


def test_large_data_that_train_are_not_refused_and_scaled_data_that_diverge_are_not_blamed():
    pv.fit(small_vae((3,)), column(60.0), epochs=2, seed=0)
    said = str(caught(lambda: pv.fit(small_vae(), X, epochs=20, lr=1e10)))
    assert said.startswith("training diverged")


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_a_compiled_step_names_data_that_are_not_scaled(size):
    vae = small_vae((3,), hidden=(32,))
    svi = pv.CompiledSVI(vae.model, vae.guide, inductor=False)
    said = str(caught(lambda: [svi.step(column(size)) for _ in range(3)]))
    assert said.startswith(f"x reaches {size:.3g}: standardise it; ")


def test_steps_that_are_all_skipped_on_data_that_are_not_scaled_are_told_so():
    vae = small_vae((3,), hidden=(32,))
    said = refusal(lambda: pv.fit(vae, column(300.0), epochs=30, lr=0.1, seed=0, nonfinite="skip", batch_size=200))
    assert said.startswith("x reaches 300: standardise it; every step of epoch ")
