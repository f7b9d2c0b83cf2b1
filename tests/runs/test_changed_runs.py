"""Runs whose checkpoint has one value changed: refused in one line, or the run is loaded and can be evaluated."""

import sys
import warnings

import broken_files
import pytest
from changed_values import an_end, assert_one_line, changed
from own_files import MIXED, write_table

import pyrovae as pv
from pyrovae.cli import run_command
from pyrovae.runs import measure, train_run

NUM_CHANGES = 24
SETTINGS = {
    "ring": {"hidden": (8,), "epochs": 2, "batch_size": 1_000, "patience": 1},
    "a table": {"dataset": "people.csv", "hidden": (4,), "epochs": 1, "label_column": "group", "conditional": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_changed_value_is_refused_or_the_run_can_be_evaluated(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "people.csv", MIXED, num=60)
    run, num_refused = train_run(pv.RunConfig(**SETTINGS[name]), "run", progress=False), 0
    content, measured = pv.Checkpoints("run").load(), False
    for seed in range(NUM_CHANGES):
        found, words = changed(content, f"{name} {seed}")
        monkeypatch.setattr(pv.Checkpoints, "load", lambda self, found=found: found)
        try:
            with warnings.catch_warnings(action="ignore"), an_end():
                loaded = pv.load_run("run")
                assert loaded.data.event_shape == run.vae.event_shape
                if not measured:
                    measured = bool(measure(loaded.vae, loaded.data, num_samples=2, num_data=2))
        except pv.InputError as error:
            assert_one_line(error)
            num_refused += 1
        except Exception as error:
            raise AssertionError(words) from error
    assert NUM_CHANGES / 4 < num_refused < NUM_CHANGES  # the states of optimiser and schedule are not looked at


@pytest.mark.parametrize("how", ["a fifo", "inflates", "another epoch", "no history"])
def test_the_command_refuses_a_changed_run_with_2_and_one_line(how, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    broken_files.RUNS[how]()
    flags = {"dataset": "ring", "hidden": 8, "epochs": 2, "batch-size": 1_000}
    resumed = ["train", "--out", "run", "--resume", *(f"--{name}={value}" for name, value in flags.items())]
    for command in (["evaluate", "run"], ["compare", "run"], resumed):
        monkeypatch.setattr(sys, "argv", ["pyrovae", *command])
        with pytest.raises(SystemExit) as end, an_end():
            run_command()
        assert end.value.code == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert said.out == ""
