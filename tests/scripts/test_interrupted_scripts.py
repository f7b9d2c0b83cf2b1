"""Scripts that are stopped by Ctrl-C, in a training or between two, end with the numbers of an undisturbed call."""

import json
import os
import signal

import pyro
import pytest
from helpers import tree, write_images
from running_scripts import run_here, with_scikit_learn

from pyrovae.common import Parts
from pyrovae.training.steps import Steps

IMAGES = ["--data-root", "data", "--num-train", 60, "--hidden", 4, "--epochs", 2]
# The script, its flags, what is a step of its trainings, and after how many steps it is stopped.
SCRIPTS = {
    "bit_codes": (
        [*IMAGES, "--num-bits", 2, "--batch-size", 30, "--num-samples", 20, "--num-data", 4, "--seeds", 3],
        (Steps, "take"), (3, 7),
    ),
    "vqvae": ([*IMAGES, "--num-tokens", 2, "--num-codes", 4, "--batch-size", 20], (Steps, "take"), (2, 3)),
    "semi_supervised": (
        ["--data-root", "data", "--num-train", 200, "--num-labelled", 20, "--hidden", 4, "--epochs", 1, "--seeds", 1],
        (pyro.infer.SVI, "step"), (2, 5),
    ),
    "missing_cells": (["--table", "iris", "--epochs", 2, "--num-samples", 20], (Steps, "take"), (3, 6)),
    "tutorials": (["--only", "four", "--epochs", 1, "--seeds", 0, 1], (Steps, "take"), (2, 9)),
}  # fmt: skip


def stopped_after(number, owner, name):
    """Sends this process Ctrl-C before step `number`, counted from now on."""
    real, taken = getattr(owner, name), []

    def step(*args, **kwargs):
        taken.append(None)
        if len(taken) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    return step


def without_times(content):
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if name != "seconds"}
    return [without_times(one) for one in content] if isinstance(content, list) else content


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_goes_on_after_ctrl_c_to_the_bit(script, tmp_path, monkeypatch):
    flags, (owner, name), moments = SCRIPTS[script]
    with_scikit_learn(monkeypatch)
    write_images(tmp_path / "data", nums=(5_060, 30) if script != "semi_supervised" else (200, 30))
    program, results = f"papers/{script}.py", []
    undisturbed = run_here(program, *flags, "--out", "whole", cwd=tmp_path)
    assert (undisturbed.returncode, undisturbed.stderr) == (0, "")
    for number in moments:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopped_after(number, owner, name))
            stopped = run_here(program, *flags, "--out", "cut", cwd=tmp_path)
        assert (stopped.returncode, stopped.stderr) == (130, "interrupted: what had been written stays as it is\n")
    with monkeypatch.context() as patch:  # once more, when a part has been found and is not kept yet
        patch.setattr(Parts, "keep", stopped_after(1, Parts, "keep"))
        assert run_here(program, *flags, "--out", "cut", cwd=tmp_path).returncode == 130
    for _ in range(2):  # the second finds all parts
        ended = run_here(program, *flags, "--out", "cut", cwd=tmp_path)
        assert (ended.returncode, ended.stderr) == (0, "")
        results.append(json.loads((tmp_path / "cut/results.json").read_text()))
    whole = json.loads((tmp_path / "whole/results.json").read_text())
    assert without_times(results[0]) == without_times(whole)
    assert results[1] == results[0]
    assert tree(tmp_path / "cut").keys() == tree(tmp_path / "whole").keys()
    before = tree(tmp_path)
    other = run_here(program, *flags, "--epochs", 3, "--out", "cut", cwd=tmp_path)
    was = flags[flags.index("--epochs") + 1]
    said = f"cut was begun with epochs {was}, and epochs is now 3: remove it, or take another folder"
    assert (other.returncode, other.stderr) == (2, f"error: {said}\n")
    assert tree(tmp_path) == before
