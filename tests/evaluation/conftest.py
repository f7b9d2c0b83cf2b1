"""A fixture for tests that ask about one pair many times."""

import pytest

from pyrovae.programs import particle_checks


@pytest.fixture
def particles_unchecked(monkeypatch):
    """The particles of a pair are not compared with single runs, which is a third of what a short question takes."""
    monkeypatch.setattr(particle_checks, "_alone", lambda *args: {})
