"""Schedules of beta: functions of the share of the training that is done, as factors in (0, 1] on the VAE's beta."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyrovae.common import InputError, first_line, kept_generators, require, require_choice, shown

# Pyro refuses to scale a site by 0, and a weight this small has no effect.
SMALLEST = 1e-6


def constant(progress: float) -> float:
    """Returns 1: beta stays what it is.

    Args:
        progress: the share of the training that is done, in [0, 1].

    Returns:
        The factor on the VAE's beta.

    Example:
        >>> pv.schedules.constant(0.3)
        1.0
    """
    return 1.0


def linear(progress: float, warm_up: float = 0.5) -> float:
    """Rises from 0 to 1 in a straight line, and stays there.

        factor(t) = min(1, t / warm_up), but at least 1e-6

    Args:
        progress: the share t of the training that is done, in [0, 1].
        warm_up: the share of the training over which the factor rises.

    Returns:
        The factor on the VAE's beta.

    Example:
        >>> [pv.schedules.linear(t) for t in (0.125, 0.25, 0.5, 1.0)]
        [0.25, 0.5, 1.0, 1.0]

    Source: Bowman et al. (2016), arXiv:1511.06349.
    """
    return min(1.0, max(SMALLEST, progress / warm_up))


def cyclical(progress: float, cycles: int = 4, warm_up: float = 0.5) -> float:
    """Repeats the linear schedule, each time starting from 0 again.

        factor(t) = linear(cycles t mod 1, warm_up), and 1 at t = 1

    Args:
        progress: the share t of the training that is done, in [0, 1].
        cycles: the number of repetitions.
        warm_up: the share of each cycle over which the factor rises.

    Returns:
        The factor on the VAE's beta.

    Example:
        >>> [pv.schedules.cyclical(t) for t in (0.0625, 0.125, 0.25, 0.3125)]
        [0.5, 1.0, 1e-06, 0.5]

    Source: Fu et al. (2019), arXiv:1903.10145.
    """
    return 1.0 if progress >= 1 else linear(cycles * progress % 1.0, warm_up)


def sigmoid(progress: float, midpoint: float = 0.25, steepness: float = 40.0) -> float:
    """Rises from 0 to 1 along a logistic curve.

        factor(t) = 1 / (1 + exp(-steepness (t - midpoint))), but at least 1e-6

    Args:
        progress: the share t of the training that is done, in [0, 1].
        midpoint: the share of the training at which the factor is 1/2.
        steepness: four times the slope at the midpoint.

    Returns:
        The factor on the VAE's beta.

    Example:
        >>> pv.schedules.sigmoid(0.25)
        0.5

    Source: Bowman et al. (2016), arXiv:1511.06349.
    """
    return max(SMALLEST, 0.5 + 0.5 * math.tanh(0.5 * steepness * (progress - midpoint)))


# The schedules of beta by the names that `fit` and the command line take.
BETA_SCHEDULES = {"constant": constant, "linear": linear, "cyclical": cyclical, "sigmoid": sigmoid}


def resolve(schedule: str | Callable[[float], float]) -> Callable[[float], float]:
    """Returns the schedule of this name; a function is returned as it is."""
    if callable(schedule):
        return schedule
    require_choice("beta_schedule", schedule, BETA_SCHEDULES)
    return BETA_SCHEDULES[schedule]


def check_factors(beta_factor: Callable[[float], float]) -> None:
    """Raises `InputError` unless the schedule gives usable factors at the start and in the middle of the training."""
    with kept_generators():
        for share in (0.0, 0.5):  # the last step comes before 1
            try:
                factor = beta_factor(share)
            except TypeError as error:
                raise InputError(f"beta_schedule must be a function of the share: {first_line(error)}") from error
            check_factor(share, factor)


def check_factor(share: float, factor: float) -> float:
    """Returns the `factor` that a schedule gave after this share of the training, if beta can be scaled by it."""
    number = isinstance(factor, int | float) and not isinstance(factor, bool) and math.isfinite(factor)
    rule = f"beta_schedule must give a finite number > 0 after {share:g} of the training"
    require(number and factor > 0, f"{rule}, got {shown(factor)}")
    return factor


class ScheduledBeta:
    """Moves the beta of a VAE along its schedule during training, and puts it back afterwards.

    Under the constant schedule it touches nothing, so that pairs without a beta can be trained.
    """

    def __init__(self, vae: Any, factor: Callable[[float], float]) -> None:
        self.vae, self.factor, self.moves = vae, factor, factor is not constant
        self.full = float(vae.beta) if self.moves else 1.0
        """The VAE's own beta, of which the schedule gives a share."""

    def set(self, share: float) -> None:
        """Sets beta for the step before which this share of the training is done."""
        if self.moves:
            self.vae.set_beta(self.full * check_factor(share, self.factor(share)))

    def restore(self) -> None:
        """Gives the VAE its own beta back."""
        if self.moves:
            self.vae.set_beta(self.full)

    @contextmanager
    def at_full(self) -> Iterator[None]:
        """Gives the VAE its own beta within the block."""
        now = float(self.vae.beta) if self.moves else 1.0
        self.restore()
        try:
            yield
        finally:
            if self.moves:
                self.vae.set_beta(now)
