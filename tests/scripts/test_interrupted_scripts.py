"""Scripts that are stopped by Ctrl-C, in a training or between two, end with the numbers of an undisturbed call."""

import json
import os
import signal

import pyro
import pytest
from helpers import tree, write_images
from running_scripts import FOLDER, command_here, run_here, without_drawing

from pyrovae.common import Parts
from pyrovae.lab.repeats import Repeats
from pyrovae.training.steps import Steps

# The script, its flags, what is a step of its trainings, and after how many steps it is stopped: one script for each
# way of keeping parts. vqvae: a part with a checkpoint, as bit_codes, sharpness and others; draws: by `train_once`,
# as half_images and interpolation; semi_supervised: a part for each seed, as missing_cells and miwae2019; tutorials:
# with a file beside the checkpoint; rainforth2018: the folder of a comparison.
SCRIPTS = {
    "vqvae": (
        ["--data-root", "data", "--num-train", 60, "--hidden", 4, "--epochs", 2, "--num-tokens", 2, "--num-codes", 4,
         "--batch-size", 20],
        (Steps, "take"), (2, 3),
    ),
    "semi_supervised": (
        ["--data-root", "data", "--num-train", 200, "--num-labelled", 20, "--hidden", 4, "--epochs", 1, "--seeds", 1],
        (pyro.infer.SVI, "step"), (2, 5),
    ),
    "rainforth2018": (["--num-data", 8, "--repeats", 4, "--max-particles", 4], (Repeats, "take_one"), (20,)),
    "draws": (["--epochs", 2, "--repeats", 2, "--num-samples", 9], (Steps, "take"), (3,)),
    "tutorials": (["--only", "four", "--epochs", 1, "--seeds", 0, 1], (Steps, "take"), (9,)),
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
        return {name: without_times(value) for name, value in content.items() if "seconds" not in name}
    return [without_times(one) for one in content] if isinstance(content, list) else content


@pytest.fixture(autouse=True)
def _figures_are_not_drawn(monkeypatch):
    without_drawing(monkeypatch)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_goes_on_after_ctrl_c_to_the_bit(script, tmp_path, monkeypatch):
    flags, (owner, name), moments = SCRIPTS[script]
    monkeypatch.syspath_prepend(FOLDER / "papers")
    monkeypatch.setattr("rainforth2018_experiment.EXTRA_REPEATS", 1)
    monkeypatch.setattr("rainforth2018_experiment.powers_of_two", lambda most: sorted({1, most}))
    write_images(tmp_path / "data", nums=(100, 30) if script != "semi_supervised" else (200, 30))
    program, results = f"papers/{script}.py", []
    undisturbed = run_here(program, *flags, "--out", "whole", cwd=tmp_path)
    assert (undisturbed.returncode, undisturbed.stderr) == (0, "")
    for number in moments:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopped_after(number, owner, name))
            stopped = run_here(program, *flags, "--out", "cut", cwd=tmp_path)
        assert (stopped.returncode, stopped.stderr) == (130, "interrupted: files that were written before are kept\n")
        if owner is Steps:
            # Without one the training would begin anew, and reach the same numbers.
            assert list((tmp_path / "cut/parts").rglob("checkpoint.pt"))
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
    flag = "--repeats" if script == "rainforth2018" else "--epochs"
    other = run_here(program, *flags, flag, 9, "--out", "cut", cwd=tmp_path)
    was, name = flags[flags.index(flag) + 1], flag.removeprefix("--")
    said = f"cut was begun with {name} {was}, and {name} is now 9: remove it, or take another folder"
    assert (other.returncode, other.stderr) == (2, f"error: {said}\n")
    assert tree(tmp_path) == before


def test_pyrovae_compare_goes_on_after_ctrl_c_in_the_folder_of_the_run(tmp_path, monkeypatch):
    train = ["train", "--hidden", 4, "--epochs", 1, "--out", "run"]
    assert command_here(*train, cwd=tmp_path).returncode == 0
    flags = ["compare", "run", "--objectives", "dreg", "--num-particles", 2, "--num-data", 8, "--repeats", 6]
    flags += ["--no-compile"]
    assert command_here(*flags, cwd=tmp_path).returncode == 0
    files = tree(tmp_path)
    whole = json.loads(files["run/comparison.json"])
    for number in (4, 5):
        with monkeypatch.context() as patch:
            patch.setattr(Repeats, "take_one", stopped_after(number, Repeats, "take_one"))
            stopped = command_here(*flags, "--overwrite", cwd=tmp_path)
        assert (stopped.returncode, stopped.stderr) == (130, "interrupted: files that were written before are kept\n")
        assert files.items() <= tree(tmp_path).items()
    assert command_here(*flags, "--overwrite", cwd=tmp_path).returncode == 0
    assert without_times(json.loads((tmp_path / "run/comparison.json").read_text())) == without_times(whole)
    assert tree(tmp_path).keys() == files.keys()
    short = command_here(*flags, "--overwrite", "--max-seconds", 1e-9, cwd=tmp_path)
    assert "(the time ran out)" in short.stdout
    assert command_here(*flags, "--overwrite", cwd=tmp_path).returncode == 0  # goes on
    assert without_times(json.loads((tmp_path / "run/comparison.json").read_text())) == without_times(whole)
    assert tree(tmp_path).keys() == files.keys()


def test_an_unfinished_comparison_with_other_settings_is_not_in_the_way(tmp_path, monkeypatch):
    """It had to be removed by hand, although no user had made that folder."""

    def cut(*more):
        with monkeypatch.context() as patch:
            patch.setattr(Repeats, "take_one", stopped_after(6, Repeats, "take_one"))
            assert command_here(*flags, *more, cwd=tmp_path).returncode == 130
        assert (tmp_path / "run/unfinished_comparison/parts/repeats.pt").exists()

    train = ["train", "--hidden", 4, "--epochs", 1, "--batch-size", 1_000, "--out", "run"]
    assert command_here(*train, cwd=tmp_path).returncode == 0
    flags = ["compare", "run", "--objectives", "dreg", "--num-particles", 2, "--num-data", 8, "--repeats", 6]
    flags += ["--no-compile", "--overwrite"]
    more_training = ["train", "--out", "run", "--resume", "--epochs", 2]
    for change in (lambda: cut("--seed", 1), lambda: command_here(*more_training, cwd=tmp_path)):
        cut()
        change()
        found = []
        for is_anew in (True, False):
            done = command_here(*flags, cwd=tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.startswith("an unfinished comparison with other settings was removed\n") == is_anew
            found.append(without_times(json.loads((tmp_path / "run/comparison.json").read_text())))
        assert found[0] == found[1]
        assert not (tmp_path / "run/unfinished_comparison").exists()
