"""The power law that a curve follows, fitted on log axes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pyrovae.plots.shapes import takes_arrays

CLEAR_OF_FLOOR = 3  # times the floor, where noise, which adds in squares, makes up about 5% of a value
LARGEST_RANGE = 16  # a theory's slope is one of large sizes


class Slope(NamedTuple):
    """Holds d log value / d log size by least squares.

    Attributes:
        value: The slope; nan with fewer than two fitted points.
        error: Its standard error from the scatter around the line; nan with fewer than three fitted points.
        fitted: For each point True if the slope was fitted to it.
    """

    value: float
    error: float
    fitted: tuple[bool, ...]


@takes_arrays(sizes="(any,) positive", values="(any,)", floors="(any,)")
def fitted_slope(sizes: Sequence[float], values: Sequence[float], floors: Sequence[float]) -> Slope:
    """Fits the power with which values grow or fall with size.

        value ~ size^slope

    The slope is fitted to the logarithms of the points that are more than three times their floor, because noise adds
    less than about 5% to those. Since a theory holds for large sizes, only the ones within a factor of 16 of the
    largest such size are taken.

    Args:
        sizes: The sizes (K or M), `(num_sizes,)`.
        values: The values (a signal-to-noise ratio or a bias), `(num_sizes,)`.
        floors: For each value what pure noise would show, `(num_sizes,)`.

    Returns:
        A `Slope`, with its standard error and the points that it was fitted to.

    Example:
        >>> slope = pv.plots.fitted_slope([1, 4, 16, 64], [2.0, 1.0, 0.5, 0.1], [0.1, 0.1, 0.1, 0.1])
        >>> round(slope.value, 3), slope.fitted
        (-0.5, (True, True, True, False))
    """
    points = list(zip(sizes, values, floors, strict=True))
    clear = [math.inf > value > 0 and value > CLEAR_OF_FLOOR * floor for _, value, floor in points]
    largest = max((size for size, is_clear in zip(sizes, clear, strict=True) if is_clear), default=0)
    fitted = tuple(is_clear and LARGEST_RANGE * size >= largest for size, is_clear in zip(sizes, clear, strict=True))
    logs = [(math.log(size), math.log(value)) for (size, value, _), use in zip(points, fitted, strict=True) if use]
    if len({size for size, _ in logs}) < 2:
        return Slope(math.nan, math.nan, fitted)
    x, y = np.array(logs).T
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    if len(logs) < 3:
        return Slope(float(slope), math.nan, fitted)
    error = math.sqrt(((y - slope * x) ** 2).sum() / (len(logs) - 2) / (x @ x))
    return Slope(float(slope), error, fitted)
