import pytest

from pyrovae.training import gradients


@pytest.fixture
def without_machine_code(monkeypatch):
    """fit replays compiled steps one operation after another, which gives the eager step's numbers to the bit."""
    real = gradients.CompiledLoss
    monkeypatch.setattr(gradients, "CompiledLoss", lambda *args, **kwargs: real(*args, **kwargs, inductor=False))
