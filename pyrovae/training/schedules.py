"""How beta goes over a training: from the share of it that is done to a factor in (0, 1] on the VAE's beta."""

import math
from collections.abc import Callable

from pyrovae.common import require_choice

# Pyro refuses to scale a site by 0, and a weight this small is none.
SMALLEST = 1e-6


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def linear(progress: float, warm_up: float = 0.5) -> float:
    """From 0 to 1 in a straight line over the first `warm_up` of the training, then 1 (Bowman et al. 2016)."""
    return min(1.0, max(SMALLEST, progress / warm_up))


def cyclical(progress: float, cycles: int = 4, warm_up: float = 0.5) -> float:
    """`cycles` times the linear schedule, one after the other (Fu et al. 2019, arXiv:1903.10145)."""
    return 1.0 if progress >= 1 else linear(cycles * progress % 1.0, warm_up)


def sigmoid(progress: float, midpoint: float = 0.25, steepness: float = 40.0) -> float:
    """1 / (1 + exp(-steepness (progress - midpoint))) (Bowman et al. 2016, arXiv:1511.06349)."""
    return max(SMALLEST, 0.5 + 0.5 * math.tanh(0.5 * steepness * (progress - midpoint)))


SCHEDULES = {"constant": constant, "linear": linear, "cyclical": cyclical, "sigmoid": sigmoid}


def resolve(schedule: str | Callable[[float], float]) -> Callable[[float], float]:
    if callable(schedule):
        return schedule
    require_choice("beta_schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule]
