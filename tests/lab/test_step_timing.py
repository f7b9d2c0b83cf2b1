"""Equal seconds come from the times of steps, which are timed as they are trained."""

import dataclasses
import functools
import itertools

import pytest
import torch
from helpers import refusal, ring, small_vae
from small_races import OBJECTIVES, make, numbers, run

import pyrovae as pv
from pyrovae.common import read_checked, write_checked
from pyrovae.lab import step_timing
from pyrovae.lab.entrants import TrainingPlan, entrants_of
from pyrovae.training import preparation


def test_steps_are_timed_as_they_are_trained(monkeypatch):
    monkeypatch.setattr(pv.training.gradients, "COMPILE_STEPS", 12)  # 3 epochs of 4 batches
    monkeypatch.setattr(step_timing, "TIMED_ROUNDS", 4)
    compiled = []
    real = preparation.gradients_of
    monkeypatch.setattr(preparation, "gradients_of", lambda *args: real(*args[:3], compiled.append(args[3]), *args[4:]))
    elbo, iwae = entrants_of(make, OBJECTIVES)
    plan = TrainingPlan(ring(), 3, {"batch_size": 25})
    step_timing.step_seconds((elbo, iwae), plan, 0, {})
    assert compiled == [True, True]
    assert plan.compiles
    assert not dataclasses.replace(plan, epochs=2).compiles


def seconds_of(*of_each):
    """Stands in for `step_seconds` and gives these seconds to the entrants in their order."""
    return lambda entrants, plan, seed, known: dict(
        zip(step_timing.step_names(entrants, plan, seed), of_each, strict=True)
    )


STEP_SECONDS = step_timing.step_seconds


@pytest.mark.usefixtures("entrants_unchecked")
def test_equal_seconds_are_those_of_the_first_objective_by_the_times_of_steps(tmp_path, monkeypatch):
    settings = {"budget": "seconds", "epochs": 3, "seeds": (0,), "num_samples": 5}
    monkeypatch.setattr(step_timing, "step_seconds", seconds_of(0.01, 0.0155))
    race = run(tmp_path, **settings)
    assert [r.epochs for r in race.runs] == [3, 2]
    assert [len(r.curve) for r in race.runs] == [3, 2]
    monkeypatch.setattr(step_timing, "step_seconds", None)  # the times are kept, and must not be taken again
    assert numbers(run(tmp_path, **settings)) == numbers(race)
    alone = run(tmp_path, {"ELBO": "elbo"}, **{**settings, "budget": "epochs"})
    assert numbers(alone) == numbers(race)[:1]
    monkeypatch.setattr(step_timing, "step_seconds", STEP_SECONDS)
    monkeypatch.setattr(step_timing, "TIMED_ROUNDS", 8)
    first = read_checked(tmp_path / "step_seconds.json")["seconds"]
    more = run(tmp_path, {**OBJECTIVES, "DReG": pv.objectives.DReG(4)}, **settings)
    assert [r.epochs for r in more.runs][:2] == [3, 2]
    then = read_checked(tmp_path / "step_seconds.json")["seconds"]
    assert len(then) == 3
    assert first.items() <= then.items()
    (tmp_path / "step_seconds.json").write_text('{"ELBO": "fast"}')
    assert "step_seconds.json was not written by this version" in refusal(run, tmp_path, **settings)
    write_checked(tmp_path / "step_seconds.json", {"data": "0123", "seconds": then})
    assert "was measured on other training data: remove it" in refusal(run, tmp_path, **settings)


def test_the_time_of_a_step_is_known_by_all_that_decides_it():
    def names(make_vae=make, objectives=OBJECTIVES, epochs=3, **settings):
        plan = TrainingPlan(ring(), epochs, {"batch_size": 25, **settings})
        return step_timing.step_names(entrants_of(make_vae, objectives), plan, 0)

    models = {"a": make, "b": functools.partial(small_vae, hidden=(9,), seed=None)}
    others = [
        names(), names(batch_size=20), names(compile=True), names(optimizer=torch.optim.SGD), names(models["b"]),
        names(models, ["elbo"]), names(models, [pv.objectives.IWAE(4)]),
    ]  # fmt: skip
    for one, other in itertools.combinations(others, 2):
        assert not set(one) & set(other)
    assert names(epochs=30) == names()
    assert names(lr=0.3) == names()


def test_the_times_of_steps_grow_with_the_particles(monkeypatch):
    monkeypatch.setattr(step_timing, "TIMED_ROUNDS", 12)

    def timed(objectives, **more):
        make_vae = functools.partial(pv.VAE, (2,), latent_dim=2, hidden=(64,), likelihood=pv.Gaussian(0.5))
        plan = TrainingPlan(ring(num_train=2_000), 2, {"batch_size": 500, **more})
        return list(step_timing.step_seconds(entrants_of(make_vae, objectives), plan, 0, {}).items())

    (_, one), (_, many) = timed({"one": pv.objectives.IWAE(1), "many": pv.objectives.IWAE(64)})
    assert many > 3 * one
    ((name, many),) = timed(["iwae"], num_particles=64)  # the race's settings give the particles
    assert "num_particles=64" in name
    assert many > 3 * one
