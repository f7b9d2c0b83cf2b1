"""Fixtures of the lab's tests."""

from functools import partial

import pytest
from small_races import run

from pyrovae.lab import costs, racing


@pytest.fixture
def without_machine_code(monkeypatch):
    """The steps that `compare` times are replayed one operation after another."""
    monkeypatch.setattr(costs, "CompiledLoss", partial(costs.CompiledLoss, inductor=False))


@pytest.fixture
def entrants_unchecked(monkeypatch):
    """A race does not look at its pairs before it begins, which takes as long as a training of 2 epochs."""
    monkeypatch.setattr(racing, "check_entrant", lambda *args: None)


@pytest.fixture(scope="session")
def finished_race(tmp_path_factory):
    """A finished race and its folder, which no test may change."""
    folder = tmp_path_factory.mktemp("race")
    return run(folder), folder
