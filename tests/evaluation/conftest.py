import pytest

from pyrovae.evaluation import annealed_chains


@pytest.fixture
def short_pilot(monkeypatch):
    """Shortens the pilot run, for tests in which it matters little how well HMC mixes."""
    monkeypatch.setattr(annealed_chains, "PILOT_TRANSITIONS", 30)
    monkeypatch.setattr(annealed_chains, "PILOT_WARMUP", 10)
