"""What a verdict advises can be done: each command, flag and call that one may name is run as it stands there."""

import re

import pytest
import torch
from helpers import small_vae
from own_files import MIXED, write_table
from running_scripts import command_here

import pyrovae as pv
from pyrovae.evaluation import remedy_words
from pyrovae.runs import report, train_run

WORDS = {
    "evaluate": {**remedy_words.IN_SHELL, **remedy_words.IN_METHODS, "more": remedy_words.IN_SHELL[remedy_words.DRAWS]},
    "impute": remedy_words.IN_IMPUTE,
}
TYPED = {  # with fewer draws than a user takes
    (named or command, re.sub(r"ais_\d+", "ais_2", typed.format(more=30)))
    for command, words in WORDS.items()
    for text in words.values()
    for named, typed in re.findall(r"\((?:pyrovae (\w+) (?:RUN )?)?(--.+?)\)", text)
}
CALLS = {name for words in (remedy_words.IN_PYTHON, remedy_words.FOR_ANSWERS) for name in words.values()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_table(folder / "mixed.csv", MIXED, missing=0.1)
    config = pv.RunConfig(dataset=str(folder / "mixed.csv"), missing="mask", hidden=(4,), latent_dim=2, epochs=1)
    train_run(config, folder / "run", progress=False)
    return folder


@pytest.mark.parametrize(("command", "typed"), sorted(TYPED))
def test_a_command_that_a_verdict_names_can_be_typed(command, typed, folder, monkeypatch):
    """`evaluate RUN --methods ais_1000` ended in a traceback after the work, and saved nothing."""
    monkeypatch.setattr(report, "draw_figures", lambda run: {})  # which are those of every evaluation
    more = {
        "train": ["--dataset", "mixed.csv", "--missing", "mask", "--hidden", 4, "--epochs", 1, "--out", "better"],
        "evaluate": ["run", "--num-data", 3, "--overwrite"],
        "impute": ["run", "--data", "mixed.csv", "--out", "filled.csv", "--overwrite"],
    }
    done = command_here(command, *dict.fromkeys([*more[command], *typed.split()]), cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_commands_are_found_in_the_words():
    flags = ("--methods ais_2", "--methods is_30", "--num-samples 30 --overwrite", "--num-samples 30")
    trained = ("train", "--objective iwae --num-particles 10")
    assert {*(("evaluate", flag) for flag in flags[:3]), ("impute", flags[-1]), trained} == TYPED


@pytest.mark.parametrize("name", sorted(name for name in CALLS if "pv." in name or "annealed_" in name))
def test_a_call_that_a_verdict_names_can_be_made(name):
    vae, x = small_vae(), torch.randn(3, 2)
    if call := re.search(r"pv\.[\w.]+\(.+\)(?=\))", name):
        guide = eval(call[0].format(factor=2), {"pv": pv, "model": vae.model, "guide": vae.guide})
        assert pv.log_marginal(vae.model, guide, x, num_samples=5).log_px.shape == (3,)
    elif "annealed" in name:
        assert getattr(pv, name)(vae.model, vae.guide, x, num_distributions=2, num_chains=2)
    else:
        assert callable(pv.proposals.widened)  # named without its arguments
