"""Fixtures of the lab's tests."""

import pytest
from small_races import run


@pytest.fixture(scope="session")
def finished_race(tmp_path_factory):
    """A finished race and its folder, which no test may change."""
    folder = tmp_path_factory.mktemp("race")
    return run(folder), folder
