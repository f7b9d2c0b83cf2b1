"""One text form of objectives, at every door: a name, or a name with settings in brackets."""

import json

import pyro
import pytest
import torch
from helpers import linear_gaussian, refusal, small_vae

import pyrovae as pv
from pyrovae.objectives import IWAE, MIWAE, Renyi, ScoreFunction, ThermodynamicVO, from_text, parse

TEXTS = {
    "elbo": pv.objectives.ELBO(),
    " iwae( num_particles = 5 ) ": IWAE(5),
    "miwae(num_batches=4, num_particles=2)": MIWAE(2, num_batches=4),
    "renyi(num_particles=3, alpha=-0.5)": Renyi(3, alpha=-0.5),
    "score_function(num_particles=2, baseline='leave_one_out')": ScoreFunction(2, baseline="leave_one_out"),
    "score_function(num_particles=2, baseline=leave_one_out)": ScoreFunction(2, baseline="leave_one_out"),
    "thermodynamic(num_particles=2, num_partitions=7)": ThermodynamicVO(2, num_partitions=7),
    "iwae(num_particles=5, chunk_size=None)": IWAE(5),
}
X = torch.randn(8, 2)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_says_the_objective(text):
    assert from_text(text) == TEXTS[text]
    assert parse(text)[0] == text.split("(")[0].strip()


FORM = "objective must be a name or name(setting=value, ...), got "
REFUSED = {
    "iwae(5)": FORM + "'iwae(5)'",
    "iwae(num_particles=5": FORM + "'iwae(num_particles=5'",
    "iwae(num_particles=5) + elbo": FORM + "'iwae(num_particles=5) + elbo'",
    "iwae(num_particles=open('x'))": FORM + "\"iwae(num_particles=open('x'))\"",
    "iwae(**{'num_particles': 5})": FORM + "\"iwae(**{'num_particles': 5})\"",
    "iwae(num_particles=1, num_particles=2)": FORM + "'iwae(num_particles=1, num_particles=2)'",
    "iwae(num_particles={[1]: 2})": FORM + "'iwae(num_particles={[1]: 2})'",
    "iwae(num_particles=" + "-" * 3_000 + "1)": FORM,
    "iwae(num_particles=(" + "(" * 300 + "1": FORM,
    "iwae(num_particles=\0)": FORM,
    "elbo(name=1)": "name must be one of num_particles, chunk_size, joint, plate,",
    "iwae:num_particles=5": "objective must be one of elbo, ",
    "evidence(num_particles=5)": "objective must be one of elbo, ",
    "dreg": "num_particles must be given with objective dreg",
    "dreg(alpha=2)": "alpha must be one of num_particles, chunk_size, joint, plate,",
    "iwae(num_particles=0)": "num_particles must be a whole number >= 1, got 0",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_objective_is_refused_in_one_line_and_nothing_in_it_is_run(text):
    assert refusal(from_text, text).startswith(REFUSED[text])


def test_a_setting_is_given_once():
    said = refusal(from_text, "iwae(num_particles=2)", num_particles=3)
    assert said == "num_particles must be given once, got iwae(num_particles=2) and num_particles=3 beside it"
    vae = small_vae()
    assert said == refusal(pv.fit, vae, X, epochs=1, objective="iwae(num_particles=2)", num_particles=3)
    assert said == refusal(pv.RunConfig, objective="iwae(num_particles=2)", num_particles=3)


@pytest.mark.parametrize("text", ["iwae(num_particles=5)", "thermodynamic(num_particles=2, num_partitions=7)"])
def test_fit_trains_by_a_text_as_by_the_object(text):
    losses = []
    for objective in (text, TEXTS.get(text, IWAE(5)), {1: text}):
        pyro.clear_param_store()
        losses.append(pv.fit(small_vae(), X, epochs=2, objective=objective, seed=1).loss)
    assert losses[0] == losses[1] == losses[2]


def test_compare_gives_the_number_of_particles_and_the_text_the_rest():
    vae = linear_gaussian(0)
    x = vae.decode(vae.prior.sample((4,))).sample()
    settings = {"num_particles": [1, 2], "repeats": 4, "compile": False}
    found = pv.compare(vae.model, vae.guide, x, objectives=["miwae(num_batches=3)", "vimco(chunk_size=2)"], **settings)
    rows = [(row.objective, row.num_particles, row.num_draws) for row in found.rows]
    assert rows == [("miwae(num_batches=3)", 1, 3), ("miwae(num_batches=3)", 2, 6), ("vimco(chunk_size=2)", 2, 2)]
    said = refusal(pv.compare, vae.model, vae.guide, x, objectives=["iwae(num_particles=2)"], **settings)
    assert said == "num_particles must be given to compare and not in iwae(num_particles=2)"


def test_a_run_of_a_text_is_saved_and_read_again(tmp_path):
    config = pv.RunConfig(objective="thermodynamic(num_particles=2, num_partitions=7)", hidden=(4,))
    assert (config.objective_name, config.num_particles) == ("thermodynamic", None)
    config.save(tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["objective"] == config.objective
    assert pv.RunConfig.load(tmp_path / "config.json") == config
    assert pv.RunConfig(objective="elbo").num_particles == 1
    said = refusal(pv.RunConfig, objective="score_function(num_particles=2)", posterior="bernoulli", temperature=0.5)
    assert said == "temperature is for objectives that differentiate draws, and score_function does not"
