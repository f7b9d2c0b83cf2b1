"""Traces a function of tensors once and replays it as machine code. Knows neither a loss nor a VAE."""

from pyrovae.compilation.replay import Outcome, Replay
from pyrovae.compilation.tracing import caller

__all__ = [
    "caller",
    "Outcome",
    "Replay",
]
