"""Programs that cannot be replayed run eagerly, with one warning that says why."""

import random
import warnings
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from compiled_steps import (
    POINTS,
    Settings,
    alternating,
    assert_same,
    branching_pair,
    plain_guide,
    plain_model,
    plain_pair,
    run_both,
)
from pyro.infer import SVI, Trace_ELBO

import pyrovae as pv
from pyrovae.objectives import IWAE
from pyrovae.training.fused_adam import FusedAdam


def parameter_branching_pair():
    def model(x):
        scale = pyro.param("branch", x.new_ones(()))
        plain_model(scale * x if scale > 0.98 else 2 * scale * x)

    return model, plain_guide, model.__code__.co_firstlineno + 2


@pytest.mark.parametrize("make", [branching_pair, parameter_branching_pair])
def test_control_flow_on_a_value_runs_eagerly_with_one_warning_that_names_the_line(make):
    model, _, line = make()
    with pytest.warns(match="steps run eagerly") as caught:
        eager, compiled, svi = run_both(make, alternating(POINTS, 6))
    assert len(caught) == 1
    said = (
        f"steps run eagerly, because the program cannot be replayed: {svi.reason}; use torch.where instead of a branch"
    )
    assert str(caught[0].message).startswith(said)
    assert svi.reason.endswith(f"({Path(model.__code__.co_filename).name}, line {line})")
    assert_same(eager, compiled, svi, svi.reason)


@pytest.mark.parametrize("loss", [None, Trace_ELBO()])
def test_eager_steps_take_one_call_of_the_optimiser_and_give_the_numbers_of_svi_to_the_bit(monkeypatch, loss):
    """Of Pyro's losses the first step sets up, and the second finds that there is nothing to replay."""
    calls, step = [], FusedAdam.step
    monkeypatch.setattr(FusedAdam, "step", lambda self: calls.append(step(self)))
    with pytest.warns(match="steps run eagerly"):
        eager, ours, svi = run_both(branching_pair, alternating(POINTS, 6), loss, kinds=(SVI, pv.CompiledSVI))
    assert_same(eager, ours, svi, svi.reason)
    assert len(calls) == (5 if loss is None else 4)  # all but those in which Pyro's optimisers are called one by one


def python_random_pair():
    return lambda x: plain_model(x * random.random()), plain_guide, None


def numpy_random_pair():
    return lambda x: plain_model(x * torch.from_numpy(np.random.rand(2))), plain_guide, None  # noqa: NPY002


def numpy_number_pair():
    return lambda x: plain_model(x * float(np.random.rand())), plain_guide, None  # noqa: NPY002


@pytest.mark.parametrize("make", [python_random_pair, numpy_random_pair, numpy_number_pair])
def test_random_numbers_that_are_not_torch_s_are_drawn_at_every_step(make):
    def change(step, state):
        random.seed(step)
        np.random.seed(step)  # noqa: NPY002

    with pytest.warns(match="each time that it runs") as caught:
        eager, compiled, svi = run_both(make, [POINTS[0]] * 5, change=change)
    assert len(caught) == 1
    assert_same(eager, compiled, svi, svi.reason)


def test_a_counter_that_the_program_moves_does_not_stand_still():
    class Counting(Settings):
        def model(self, x):
            self.gain += 1
            plain_model(x * self.gain)

    def make():
        counting = Counting()
        return counting.model, plain_guide, counting

    with pytest.warns(match="steps run eagerly") as caught:
        eager, compiled, svi = run_both(
            make, [POINTS[0]] * 5, change=lambda step, counting: setattr(counting, "gain", step)
        )
    assert len(caught) == 1
    assert_same(eager, compiled, svi, svi.reason)


def test_what_changes_at_every_step_runs_eagerly_in_the_end(monkeypatch):
    monkeypatch.setattr(pv.training.compiled_loss, "MAX_CHANGES", 3)

    def make():
        settings = Settings()
        return lambda x: plain_model(x * settings.gain), plain_guide, settings

    with pytest.warns(match="gain changed 4 times") as caught:
        eager, compiled, svi = run_both(
            make, [POINTS[0]] * 8, change=lambda step, settings: setattr(settings, "gain", 1 / (1 + step))
        )
    assert len(caught) == 1
    assert caught[0].filename == run_both.__code__.co_filename  # the caller's line, and none of ours
    assert_same(eager, compiled, svi, svi.reason)


def test_an_objective_in_chunks_runs_eagerly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eager, compiled, svi = run_both(plain_pair, alternating(POINTS, 4), IWAE(4, chunk_size=3))
    assert "chunk_size" in svi.reason
    assert_same(eager, compiled, svi, svi.reason)
