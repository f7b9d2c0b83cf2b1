"""The power law that a curve follows on log axes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CLEAR, SPAN = 3, 16


class Slope(NamedTuple):
    """d log value / d log size by least squares, its standard error, and which of the points it was fitted to."""

    value: float
    error: float
    fitted: tuple[bool, ...]


def fitted_slope(sizes: Sequence[float], values: Sequence[float], floors: Sequence[float]) -> Slope:
    """The power of `sizes` (K, M) with which `values` (a signal-to-noise ratio, a bias) go: the slope of their logs.

    Only points clearly above their floor tell: more than three times it, where the noise, which adds in squares,
    makes up 5% or less. And a theory's slope is one of large sizes: of those points the fit takes the ones within a
    factor of 16 of the largest. The error is that of the scatter around the line; nan of fewer than three points, as
    the slope is of fewer than two.
    """
    clear = [value > CLEAR * floor for value, floor in zip(values, floors, strict=True)]
    largest = max((size for size, is_clear in zip(sizes, clear, strict=True) if is_clear), default=0)
    fitted = tuple(is_clear and SPAN * size >= largest for size, is_clear in zip(sizes, clear, strict=True))
    points = [(math.log(s), math.log(v)) for s, v, use in zip(sizes, values, fitted, strict=True) if use]
    if len(points) < 2:
        return Slope(math.nan, math.nan, fitted)
    x, y = np.array(points).T
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    if len(points) < 3:
        return Slope(float(slope), math.nan, fitted)
    error = math.sqrt(((y - slope * x) ** 2).sum() / (len(points) - 2) / (x @ x))
    return Slope(float(slope), error, fitted)
