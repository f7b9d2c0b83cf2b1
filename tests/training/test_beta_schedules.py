"""Schedules of beta have the values of their formulas, and `fit` sets these at every step."""

import math
from functools import partial

import helpers
import pytest
import torch
from helpers import parameters_of, refusal
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.runs import train_run
from pyrovae.training.beta_schedules import BETA_SCHEDULES, SMALLEST, resolve

small_vae = partial(helpers.small_vae, hidden=(4,), likelihood=pv.Gaussian(0.5))


def betas_of_the_steps(vae):
    """Returns a list that fills with the beta at which the model runs while it is trained."""
    betas, model = [], vae.model

    def watched(*args):
        if vae.training:
            betas.append(vae.beta.item())
        return model(*args)

    vae.model = watched
    return betas


# Values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", {0: 1, 0.3: 1, 1: 1}),
        ("linear", {0: SMALLEST, 0.125: 0.25, 0.25: 0.5, 0.499: 0.998, 0.5: 1, 0.75: 1, 1: 1}),
        ("cyclical", {0: SMALLEST, 0.0625: 0.5, 0.125: 1, 0.24: 1, 0.25: SMALLEST, 0.3125: 0.5, 0.8125: 0.5, 1: 1}),
        (
            "sigmoid",
            {0: 1 / (1 + math.exp(10)), 0.25: 0.5, 0.275: 1 / (1 + math.exp(-1)), 0.225: 1 / (1 + math.e), 1: 1},
        ),
    ],
)
def test_each_schedule_has_the_values_of_its_formula(name, values):
    for progress, value in values.items():
        assert BETA_SCHEDULES[name](progress) == pytest.approx(value, rel=1e-9), progress


def test_every_schedule_that_is_offered_is_tested_here():
    assert set(BETA_SCHEDULES) == {"constant", "linear", "cyclical", "sigmoid"}


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_no_schedule_leaves_what_pyro_can_scale_by(name):
    values = [BETA_SCHEDULES[name](k / 10_000) for k in range(10_001)]
    assert 0 < min(values) <= max(values) <= 1
    assert values[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", ["linear", "sigmoid"])
def test_warm_up_never_falls(name):
    values = [BETA_SCHEDULES[name](k / 1_000) for k in range(1_001)]
    assert values == sorted(values)
    assert values[0] < 1e-4


def test_cyclical_repeats_the_linear_schedule_four_times():
    for k in range(200):
        progress = k / 800
        for cycle in range(4):
            assert pv.schedules.cyclical(progress + cycle / 4) == pytest.approx(pv.schedules.linear(4 * progress))


def test_the_settings_of_a_schedule_are_its_arguments():
    assert pv.schedules.linear(0.1, warm_up=0.2) == pytest.approx(0.5)
    assert pv.schedules.cyclical(0.5, cycles=2) == SMALLEST
    assert pv.schedules.cyclical(0.2, cycles=1, warm_up=0.4) == pytest.approx(0.5)
    assert pv.schedules.sigmoid(0.7, midpoint=0.7) == pytest.approx(0.5)
    assert pv.schedules.sigmoid(0.0, midpoint=0.5, steepness=100.0) == SMALLEST


def test_a_sigmoid_may_be_as_steep_as_a_step():
    values = [pv.schedules.sigmoid(progress, midpoint=0.5, steepness=1e4) for progress in (0.0, 0.49, 0.5, 0.51, 1.0)]
    assert values == pytest.approx([SMALLEST, SMALLEST, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("name", ["cosine", "", None, 1.0, ["linear"]])
def test_an_unknown_schedule_is_refused_with_the_known_ones(name):
    message = refusal(resolve, name)
    assert message == f"beta_schedule must be one of constant, linear, cyclical, sigmoid; got {name!r}"
    assert refusal(pv.fit, small_vae(), torch.zeros(4, 2), epochs=1, beta_schedule=name) == message


def test_a_function_is_a_schedule():
    assert resolve(math.sqrt) is math.sqrt


# In training --------------------------------------------------------------------------------------------------------


SOURCES = {
    "tensor": lambda x: x,
    "data set": lambda x: pv.Dataset("x", "real", *(part for _ in range(3) for part in (x, torch.zeros(len(x))))),
    # A generator of its own: the loader draws a seed for its workers, here from no stream that training uses.
    "loader": lambda x: DataLoader(TensorDataset(x), batch_size=30, generator=torch.Generator()),
    "list": lambda x: list(x.split(30)),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["linear", "cyclical", "sigmoid"])
def test_fit_sets_beta_at_every_step_to_the_schedule_times_the_vaes_own(name, source):
    vae = small_vae(beta=3.0)
    betas = betas_of_the_steps(vae)
    pv.fit(vae, SOURCES[source](torch.randn(100, 2)), epochs=5, batch_size=30, beta_schedule=name)
    expected = [3 * BETA_SCHEDULES[name](step / 20) for step in range(20)]
    assert betas == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) > 5  # a schedule that moves
    assert vae.beta.item() == 3.0


def test_where_the_number_of_batches_is_not_known_beta_goes_by_epochs():
    vae, x = small_vae(), torch.randn(60, 2)
    betas = betas_of_the_steps(vae)

    class Stream:
        def __iter__(self):
            return iter(x.split(20))

    pv.fit(vae, Stream(), epochs=4, beta_schedule="linear")
    assert betas == pytest.approx([max(SMALLEST, value) for value in (0, 0.5, 1, 1) for _ in range(3)])


def test_a_function_of_the_callers_is_followed():
    vae, seen = small_vae(beta=2.0), []
    betas = betas_of_the_steps(vae)

    def schedule(progress):
        seen.append(progress)
        return 1 - progress / 2

    pv.fit(vae, torch.randn(40, 2), epochs=2, batch_size=10, beta_schedule=schedule)
    assert betas == pytest.approx([2 * (1 - step / 16) for step in range(8)])
    assert all(0 <= progress < 1 for progress in seen)
    assert vae.beta.item() == 2.0


def test_the_loss_of_a_step_is_the_one_at_the_scheduled_beta():
    x = torch.randn(20, 2)
    scheduled, fixed = small_vae(), small_vae(beta=0.25)
    # Of the analytic KL, which no draw makes negative: more of it is a larger loss.
    settings = {"epochs": 1, "batch_size": 20, "optimizer": torch.optim.SGD, "lr": 0.1, "seed": 5}
    settings["objective"] = "elbo_analytic_kl"
    histories = [
        pv.fit(scheduled, x, **settings, beta_schedule=lambda progress: 0.25),
        pv.fit(fixed, x, **settings),
    ]
    assert histories[0].loss == histories[1].loss
    assert torch.equal(parameters_of(scheduled), parameters_of(fixed))
    plain = pv.fit(small_vae(), x, **settings)
    assert plain.loss[0] > histories[0].loss[0] + 0.01


def test_a_constant_schedule_never_touches_beta():
    vae = small_vae(beta=2.0)
    vae.set_beta = None  # calling it would fail
    history = pv.fit(vae, torch.randn(40, 2), epochs=2, beta_schedule="constant")
    assert len(history.loss) == 2
    assert vae.beta.item() == 2.0


def test_validation_is_at_beta_one_whatever_the_schedule():
    """At a learning rate of almost 0 the parameters stay, and so must the validation ELBO."""
    x = torch.randn(40, 2)
    settings = {"epochs": 4, "validation": x, "optimizer": torch.optim.SGD, "lr": 1e-300, "seed": 0}
    history = pv.fit(small_vae(beta=5.0), x, **settings, beta_schedule="linear")
    plain = pv.fit(small_vae(), x, **settings)
    assert history.elbo == plain.elbo
    assert len(set(history.elbo)) == 1


def test_early_stopping_leaves_beta_as_it_was():
    vae, x = small_vae(beta=2.0), torch.randn(100, 2)
    history = pv.fit(vae, x, epochs=200, lr=0.3, batch_size=20, patience=2, validation=x, beta_schedule="linear")
    assert len(history.epoch) < 100  # in the midst of the warm-up
    assert vae.beta.item() == 2.0


def test_a_training_that_is_broken_off_leaves_beta_as_it_was():
    """Otherwise the next `fit` would mistake the value that the schedule had reached for the VAE's own beta."""
    vae = small_vae(beta=2.0)

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pv.fit(vae, torch.randn(40, 2), epochs=3, beta_schedule="linear", on_epoch=stop)
    assert vae.beta.item() == 2.0


def test_the_checkpoint_of_a_run_that_is_broken_off_has_the_beta_of_its_config(tmp_path, monkeypatch):
    real = pv.training.checkpoints.Checkpoints.save

    def interrupted(self, state, check):
        real(self, state, check)
        if state["position"]["epoch"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(pv.training.checkpoints.Checkpoints, "save", interrupted)
    config = pv.RunConfig(hidden=(4,), epochs=10, batch_size=1_000, beta=2.0, beta_schedule="linear")
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "run", checkpoint_epochs=1)
    assert torch.load(tmp_path / "run/checkpoint.pt")["state"]["beta"].item() != 2.0
    assert pv.load_run(tmp_path / "run").vae.beta.item() == 2.0


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize("schedule", ["linear", lambda progress: 0.5])
def test_a_schedule_under_pyros_weighted_objective_is_refused_before_anything_is_trained(schedule, epochs):
    """Inside RenyiELBO's logsumexp a beta gives no bound (trap 2), also where only the schedule brings it in."""
    vae = small_vae()
    before = parameters_of(vae)
    elbo = RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    message = refusal(pv.fit, vae, torch.randn(20, 2), epochs=epochs, objective=elbo, beta_schedule=schedule)
    assert "scale 1" in message or "beta" in message
    assert torch.equal(parameters_of(vae), before)
    assert vae.beta.item() == 1.0


def test_a_schedule_under_pyros_own_elbo_is_followed():
    vae = small_vae()
    betas = betas_of_the_steps(vae)
    pv.fit(vae, torch.randn(20, 2), epochs=4, objective=Trace_ELBO(max_plate_nesting=1), beta_schedule="linear")
    assert betas == pytest.approx([1, SMALLEST, 0.5, 1, 1])  # the first in a run beforehand, in which the loss sets up


def test_a_schedule_needs_a_model_with_a_beta():
    vae = small_vae()
    pair = type("Pair", (), {"model": staticmethod(vae.model), "guide": staticmethod(vae.guide)})
    message = refusal(pv.fit, pair, torch.zeros(4, 2), epochs=1, beta_schedule="linear")
    assert message == "beta_schedule needs a model with set_beta, as VAE has"


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf, None, "half", True, torch.tensor(0.5)])
def test_a_function_that_leaves_what_pyro_can_scale_by_is_refused(factor):
    vae = small_vae()
    before = parameters_of(vae)
    message = refusal(pv.fit, vae, torch.zeros(4, 2), epochs=1, beta_schedule=lambda progress: factor)
    assert message.startswith("beta_schedule must give a finite number > 0 after 0 of the training, got ")
    assert torch.equal(parameters_of(vae), before)


def test_pyro_itself_refuses_to_scale_by_zero():
    """Trap 12: Pyro refuses a scale of 0, so no schedule starts there. If this fails, Pyro has changed."""
    with pytest.raises(ValueError, match="Expected scale > 0"):
        poutine.scale(scale=torch.tensor(0.0))
