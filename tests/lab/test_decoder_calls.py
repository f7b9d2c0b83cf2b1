"""Equal decoder calls: how often a step evaluates log p(x|z), per datum of its batch."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import refusal, ring
from small_races import SETTINGS, make, numbers, run

import pyrovae as pv
from pyrovae.lab.decoder_calls import decoder_calls
from pyrovae.lab.entrants import Entrant, TrainingPlan

TWO = {"epochs": 2, "seeds": (0,), "num_samples": 5, "batch_size": 25}
PLAN = TrainingPlan(ring(), 3, {"batch_size": 25})


def calls(objective, maker=make, plan=PLAN):
    return decoder_calls(Entrant("one", maker, objective), plan, 0)


@pytest.mark.parametrize(("objective", "expected"), [
    (pv.objectives.ELBO(), 1), (pv.objectives.ELBO(5), 5), (pv.objectives.IWAE(4), 4),
    (pv.objectives.IWAE(4, vectorize_particles=False), 4),
    (pv.objectives.MIWAE(3, num_batches=2), 6), (pyro.infer.Trace_ELBO(3), 3),
    (pyro.infer.RenyiELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1), 3),
])  # fmt: skip
def test_an_estimator_s_calls_are_those_of_its_draws(objective, expected):
    assert calls(objective) == expected


def test_decoder_rows_that_a_step_sees_are_its_calls():
    """Counted by the decoder itself."""
    rows = []

    def make_counting():
        vae = make()
        vae.decoder.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel()))
        return vae

    chunked = pv.objectives.IWAE(4, chunk_size=2)  # which runs its particles for the value and again for the gradient
    for objective in (pv.objectives.ELBO(), pv.objectives.DReG(6), pv.objectives.StickingTheLanding(2), chunked):
        found = calls(objective, make_counting)
        rows.clear()
        vae = make_counting()
        objective.differentiable_loss(vae.model, vae.guide, ring().train_x[:25])  # its checks run the pair, too
        rows.clear()
        objective.loss_and_grads(vae.model, vae.guide, ring().train_x[:25])
        assert found == sum(rows) / 25, objective
    assert found > 8


@pytest.mark.usefixtures("entrants_unchecked")
def test_calls_of_a_guide_that_runs_the_model_count():
    """Differentiable AIS hides its T runs of the model from whoever traces the guide; the decoder counts them all."""
    rows = []

    def make_annealed(num_transitions=3):
        vae = make()
        vae.decoder.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel()))
        return pv.DifferentiableAIS(vae, ring().train_x[:5], num_transitions=num_transitions)

    for objective, expected in ((pv.objectives.ELBO(), 4), (pv.objectives.IWAE(2), 8)):
        assert calls(objective, make_annealed) == expected
        annealed, x = make_annealed(), ring().train_x[:25]
        objective.differentiable_loss(annealed.model, annealed.guide, x)  # its checks run the pair, too
        rows.clear()
        objective.loss_and_grads(annealed.model, annealed.guide, x)
        assert sum(rows) == 25 * expected
    few = ring(num_train=25, num_validation=5, num_test=5)
    makers = {"plain": make, "annealed": lambda: make_annealed(1)}
    raced = pv.race(makers, few, ["elbo"], budget="decoder_calls", **TWO)
    assert [run.epochs for run in raced.runs] == [2, 1]


def test_calls_are_counted_in_the_data_plate_and_by_state():
    """A discrete site that is summed out is decoded at each of its values; what all data share is not counted."""

    def make_mixture():
        def model(x):
            scale = pyro.param("scale", torch.tensor(1.0))
            pyro.sample("regulariser", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + c, scale), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

        return SimpleNamespace(model=model, guide=guide)

    plan = TrainingPlan(torch.randn(6), 1, {"batch_size": 6})
    assert calls(pv.objectives.ELBO(), make_mixture, plan) == 1  # one run of the pair has all states, too
    assert calls(pv.objectives.IWAE(4), make_mixture, plan) == 4


@pytest.mark.usefixtures("entrants_unchecked")
def test_a_race_of_equal_calls_gives_each_the_epochs_that_make_them(tmp_path):
    objectives = {"ELBO": "elbo", "IWAE": pv.objectives.IWAE(2)}
    settings = {
        "epochs": 2,
        "seeds": (0,),
        "budget": "decoder_calls",
        "guide_steps": 2,
        "lr": {"model": 0.01, "guide": 0.02},
    }
    raced = run(tmp_path, objectives, **settings)
    assert [one.epochs for one in raced.runs] == [2, 1]
    assert raced.budget == "decoder_calls"
    assert numbers(run(tmp_path, objectives, **settings)) == numbers(raced)  # kept
    again = run(tmp_path, {"ELBO": "elbo"}, **{**settings, "budget": "epochs"})
    assert numbers(again) == numbers(raced)[:1]
    vae = make()
    raced["IWAE"][0].restore(vae)
    content = pv.Checkpoints(raced["IWAE"][0].folder).load()
    assert content["settings"]["guide_steps"] == 2
    other = refusal(run, tmp_path, objectives, **{**settings, "guide_steps": 3})
    assert "was written with guide_steps 2, and guide_steps is now 3" in other


def test_what_has_no_number_of_calls_is_refused():
    said = refusal(
        pv.race, make, ring(), {"a": {1: "elbo", 2: "vimco"}}, budget="decoder_calls", num_particles=None, **SETTINGS
    )
    assert said == "budget decoder_calls needs objectives that stay the same, got a"
