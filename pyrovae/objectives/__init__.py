"""Objectives: estimators of log p(x) and of its gradient, as Pyro ELBOs."""

from pyrovae.objectives.choose import from_name
from pyrovae.objectives.pair import log_weights

__all__ = ["from_name", "log_weights"]
