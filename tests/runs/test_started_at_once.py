"""Real processes that start at once on one folder: one has it, the other is told so. They run started_at_once.py."""

import json
import runpy
from pathlib import Path

import pytest
import started_at_once
import torch
from forked import called
from helpers import suite_seed

import pyrovae as pv
from pyrovae.runs import CONFIG, METRICS

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("at_once")


@pytest.fixture(scope="module")
def found(folder):
    program = str(HERE / "started_at_once.py")
    status, out, said = called(
        lambda: runpy.run_path(program, run_name="__main__"), [program, folder, suite_seed()], folder
    )
    assert status == 0, said
    return json.loads(out)


def numbers(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_of_two_that_begin_one_trains_and_the_other_is_refused(found, folder):
    assert len(found["trained"]) == started_at_once.NUM_STARTS
    said = set()
    for number, both in enumerate(found["trained"]):
        assert sorted(one["status"] for one in both) == [0, 2], both
        (winner,) = [index for index, one in enumerate(both) if one["status"] == 0]
        assert both[winner]["err"] == ""
        said.add(both[1 - winner]["err"].replace(f" {number}", " N"))
        run, epochs = folder / f"{number}", started_at_once.LENGTHS[winner]
        assert pv.RunConfig.load(run / CONFIG).epochs == epochs
        assert numbers(run) == numbers(folder / f"alone {epochs}")[:epochs]  # those went on later
    in_use = "another training is writing to N"
    late = "out must be a new or empty folder, and N holds a run: --resume goes on with it"
    assert said <= {f"error: {in_use}\n", f"error: {late}\n"}


def test_of_two_that_go_on_at_once_one_trains(found, folder):
    for both in found["resumed"]:
        assert 0 in [one["status"] for one in both]
        for one in both:
            refused = one["err"].startswith("error: another training is writing to ")
            nothing = "is finished, so nothing was trained" in one["err"]  # it came after the other's end
            assert (one["status"], refused, nothing) in [(0, False, False), (0, False, True), (2, True, False)]


def test_a_run_is_measured_while_it_trains(found):
    for training, measuring in found["evaluated"]:
        assert (training["status"], training["err"]) == (0, "")
        assert (measuring["status"], measuring["err"]) == (0, "")


def test_they_leave_runs_of_the_settings_that_they_say(found, folder):
    for number in range(started_at_once.NUM_STARTS):
        state = torch.load(folder / f"{number}/checkpoint.pt", weights_only=True)
        assert pv.RunConfig.load(folder / f"{number}" / CONFIG).to_dict() == state["config"]
        assert not list((folder / f"{number}").glob(".*"))
        assert not list((folder / f"{number}").glob("*.tmp"))
