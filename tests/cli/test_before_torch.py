"""A typo is answered in a second: torch, which takes several to import, is not imported before the flags are read."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from running_scripts import FOLDER, SCRIPTS

import pyrovae as pv
from pyrovae import data, models, objectives, training
from pyrovae.cli import app, early_flags
from pyrovae.programs import MAX_STATES
from pyrovae.runs import choices, column_families, usual_settings
from pyrovae.runs.build import LIKELIHOOD_MAKERS

COMMANDS = {
    "": "a command must be given: one of train, ",
    "--help": "usage: pyrovae",
    "--version": pv.__version__,
    "trian": "did you mean train?",
    "train --dataset cifar": "did you mean cifar10?",
    "train --dataset nowhere.csv": "'nowhere.csv' is no file or folder in ",
    "train --config nowhere.json": "nowhere.json is not a readable config",
    "train --likelihood gausian": "likelihood must be one of gaussian, ",
    "train --posterior round": "posterior must be one of diagonal, ",
    "train --objective magic": "objective must be one of elbo, ",
    "train --objective elbo(": "objective must be a name or name(setting=value, ...), got 'elbo('",
    "train --epochs 0": "epochs must be a whole number >= 1, got 0",
    "train --num-particles 0": "num_particles must be a whole number >= 1, got 0",
    "train --resume --out nowhere/run --epochs 3": "nowhere/run holds no run to resume: name its folder with --out, ",
    "evaluate nowhere": "run folder nowhere does not exist",
    "evaluate .": ". holds no checkpoint",
    "impute nowhere --data a.csv --out b.csv": "run folder nowhere does not exist",
    "compare nowhere": "run folder nowhere does not exist",
    "race --objectives magic": "objective must be one of elbo, ",
    "race --seeds 1 1": "seeds must differ, got (1, 1)",
    "race --dataset nowhere.csv": "'nowhere.csv' is no file or folder in ",
    "race --processes 0": "processes must be a whole number >= 1, got 0",
    "demo --epochs 0": "epochs must be a whole number >= 1, got 0",
}
# Runs each case in one process, and prints for each its exit status, what it said, and whether torch is there.
PROGRAM = """
import contextlib, io, json, runpy, sys
found = []
for program, flags in json.load(sys.stdin):
    said = io.StringIO()
    sys.argv, before = [program, *flags], list(sys.path)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if program == "pyrovae":
                runpy.run_module("pyrovae", run_name="__main__")
            else:
                runpy.run_path(program, run_name="__main__")
            status = 0
        except SystemExit as stopped:
            status = stopped.code or 0
    found.append((status, said.getvalue(), sorted({"torch", "pyro", "matplotlib", "scipy"} & set(sys.modules))))
print(json.dumps(found))
"""


def in_a_process(code: str, given: object, cwd: Path) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, input=json.dumps(given), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_refused_flags_and_help_are_answered_before_torch_is_imported(tmp_path):
    cases = {("pyrovae", text): (0 if text.startswith("--") else 2, said) for text, said in COMMANDS.items()}
    for command in app.COMMANDS:
        run = " run" if command in ("evaluate", "impute", "compare") else ""
        cases["pyrovae", f"{command}{run} --magic 3"] = 2, " has no flag --magic"
        cases["pyrovae", f"{command} --help"] = 0, f"usage: pyrovae {command} "
    for script in SCRIPTS:
        run = "run " if script in ("evaluate.py", "compare.py", "papers/front_picture.py") else ""
        cases[str(FOLDER / script), f"{run}--magic 3"] = 2, " has no flag --magic"
        cases[str(FOLDER / script), "--help"] = 0, "usage: "
    given = [(program, flags.split()) for program, flags in cases]
    found = json.loads(in_a_process(PROGRAM, given, tmp_path))
    for (case, (status, said)), (was, printed, imported) in zip(cases.items(), found, strict=True):
        assert (was, imported) == (status, []), (case, printed)
        assert said in " ".join(printed.split()), (case, printed)


def test_defaults_of_a_script_are_made_in_its_own_order(tmp_path):
    """Of variables that are made from each other, and one of them from another that `main` names, too."""
    script = tmp_path / "script.py"
    script.write_text("D = 1\nC = D + 1\nB = 3\nA = B + C\ndef main(a: int = A, c: int = C) -> None:\n    'Adds.'\n")
    assert str(inspect.signature(early_flags._signature_of(script))) == "(a: int = 5, c: int = 2) -> None"


def test_the_package_is_imported_before_torch_and_a_missing_one_is_named_at_first_use(tmp_path):
    code = """
import sys
import pyrovae as pv
assert not {"torch", "pyro", "matplotlib", "scipy"} & set(sys.modules)
assert "VAE" in dir(pv) and "VAE" in pv.__all__ and "load" not in vars(pv)
sys.modules["torch"] = None  # as if it were not installed
for _ in range(2):
    try:
        pv.VAE
    except ModuleNotFoundError as error:
        print(error.name)
try:
    from pyrovae import load
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert in_a_process(code, None, tmp_path) == "torch\n" * 3


def test_the_words_of_a_config_are_those_of_the_rooms():
    """The command line knows them without the rooms, which import torch."""
    assert choices.DATASETS == data.DATASETS
    assert choices.IMAGE_SETS == data.IMAGE_SETS
    assert choices.IN_COLOUR == data.IN_COLOUR
    assert choices.BINARIZE == data.BINARIZE
    assert choices.KINDS == data.KINDS == tuple(column_families.FAMILIES)
    assert choices.TEXT_FILES == data.TEXT_FILES
    assert tuple(models.NETWORKS) == choices.NETWORKS
    assert tuple(models.ACTIVATIONS) == choices.ACTIVATIONS
    assert tuple(models.POSTERIORS) == choices.POSTERIORS
    assert tuple(models.PRIORS) == choices.PRIORS
    assert tuple(objectives.OBJECTIVES) == choices.OBJECTIVE_NAMES
    assert choices.SHORTHANDS == objectives.SHORTHANDS
    assert choices.MAX_STATES == MAX_STATES
    assert choices.LEARNING_RATE_SCHEDULES == training.LEARNING_RATE_SCHEDULES
    assert tuple(training.BETA_SCHEDULES) == choices.BETA_SCHEDULES
    assert choices.NONFINITE == training.NONFINITE
    assert choices.TRAIN == training.TRAIN
    assert set(usual_settings.LIKELIHOODS) == {*LIKELIHOOD_MAKERS, usual_settings.COLUMNS}


def test_a_name_is_found_by_every_way_that_there_is_to_ask_for_one():
    names: dict[str, object] = {}
    exec("from pyrovae import *", names)
    assert {name: getattr(pv, name) for name in pv.__all__} == {name: names[name] for name in pv.__all__}
    assert set(pv.__all__) <= set(dir(pv)) == set(dir(pv)) | {"data", "models", "training", "objectives", "__version__"}
    assert pv.schedules is training.beta_schedules
    assert pv.VAE is models.VAE is vars(pv)["VAE"]  # kept: the second use is a plain one
    with pytest.raises(AttributeError, match=r"^module 'pyrovae' has no attribute 'VEA'$"):
        pv.VEA  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'VEA' from 'pyrovae'"):
        exec("from pyrovae import VEA")
