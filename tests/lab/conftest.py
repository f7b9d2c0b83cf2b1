"""Fixtures of the lab's tests."""

from functools import partial

import pytest
from helpers import FEW_FACTORS
from small_races import run

from pyrovae.evaluation import proposal_misfit
from pyrovae.lab import costs


@pytest.fixture(autouse=True)
def _few_factors(monkeypatch):
    """Races say nothing of better proposals."""
    for name, few in FEW_FACTORS.items():
        monkeypatch.setattr(proposal_misfit, name, few)


@pytest.fixture
def without_machine_code(monkeypatch):
    """The steps that `compare` times are replayed one operation after another."""
    monkeypatch.setattr(costs, "CompiledLoss", partial(costs.CompiledLoss, inductor=False))


@pytest.fixture(scope="session")
def finished_race(tmp_path_factory):
    """A finished race and its folder, which no test may change."""
    folder = tmp_path_factory.mktemp("race")
    return run(folder), folder
