"""Traces a function of tensors once and replays it as machine code. Knows neither a loss nor a VAE."""

from pyrovae.compilation.machine_code import cpp_compiler
from pyrovae.compilation.replay import Outcome, Replay
from pyrovae.compilation.tracing import LOOKS, CannotTrace, caller, line_being_run

__all__ = [
    "LOOKS",
    "CannotTrace",
    "Outcome",
    "Replay",
    "caller",
    "cpp_compiler",
    "line_being_run",
]
