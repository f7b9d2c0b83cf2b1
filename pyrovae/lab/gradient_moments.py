"""Moments of gradients that are not stored: signal, noise and bias, each with its floor."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ROUNDING_UNITS = 100
"""Numbers that differ by less than this many units in the last place are the same number, summed in another order."""


@dataclass(frozen=True)
class Gradient:
    """Holds the moments of the gradients of one side's parameters, over R independent repeats.

    m and v are the mean and the variance of one coordinate of the gradient g. A floor is the value that pure noise has.

        norm     = |mean g|
        variance = sum of v over the coordinates
        snr      = mean of |m| / sqrt(v) over the coordinates that vary
        dsnr     = mean of |g_u| / |g - g_u|, with g_u the part of g along u
        bias     = |mean g - mean gradient of the reference|

    A gradient that is the same in every repeat, up to rounding, has no noise, and its `snr` and `dsnr` are infinite.
    Both are nan if there is nothing to compare, because all gradients are exactly 0 or one is not finite. `dsnr` is
    also nan if only one coordinate moves: nothing can lie across it. If only two move, its mean does not exist: it and
    its floor differ much from seed to seed, and more repeats do not help. A few coordinates that hardly vary can make
    `snr` large, even where most are noise; `dsnr` takes the gradient as one vector.

    Attributes:
        norm: The length of the mean gradient.
        variance: The variance, summed over the coordinates.
        snr: The signal-to-noise ratio.
        snr_floor: E|t| / sqrt(R), with Student's t of R - 1 degrees of freedom.
        dsnr: The directional signal-to-noise ratio. The direction u is that of the mean gradient over an earlier part
            of the repeats.
        dsnr_floor: The same ratio of g minus that mean, along a difference of two means. There is no signal in either.
        bias: The distance from the mean gradient of the reference; None if there is no reference.
        bias_floor: The expected distance for two estimators that have the same mean; None if there is no reference.
        mean: The mean gradient, `(num_coordinates,)`: the parameters of the side, in the order in which the programs
            reach them.

    Source:
        Tom Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better, arXiv:1802.04537.
    """

    norm: float
    variance: float
    snr: float
    snr_floor: float
    dsnr: float
    dsnr_floor: float
    bias: float | None
    bias_floor: float | None
    mean: Tensor = field(repr=False)

    def to_dict(self) -> dict[str, float | None]:
        """Returns the numbers, without `mean`."""
        return {name: value for name, value in vars(self).items() if name != "mean"}


class Moments:
    """Accumulates the mean and variance of vectors that are not stored (Welford), and their parts along a direction.

    The direction is that of the mean of the first half of the `planned` vectors. Because the vectors may end early, the
    first 2, 4, 8, ... give the direction until then. Wherever they end, at least a third of the vectors gave the
    direction and at least a third were measured along it.
    """

    def __init__(self, planned: int) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)  # in the shape of the vectors once there is one
        half = planned // 2
        self._halves = {2**n for n in range(1, half.bit_length()) if 2**n < half} | {half}
        self._sums: dict[int, Tensor] = {}
        self._splits: list[_Split] = []
        self._rounding = 0.0

    def add(self, value: Tensor) -> None:
        """Takes one more vector into account."""
        self._rounding = ROUNDING_UNITS * torch.finfo(value.dtype).eps
        value = value.double()
        self.count += 1
        change = value - self.mean
        self.mean = self.mean + change / self.count
        self.squares = self.squares + change * (value - self.mean)
        for split in self._splits:
            split.add(value, self._rounding)
        if len(self._splits) > 1 and self._splits[1].is_enough(self.count):
            del self._splits[0]
        to_come = {half for half in self._halves if half >= self.count}
        if self.count in {half // 2 for half in to_come}:
            self._sums[self.count] = self.mean * self.count
        if self.count in to_come:
            self._splits.append(_Split(self._sums[self.count // 2], self.mean * self.count, self.count))
        self._sums = {size: sum_ for size, sum_ in self._sums.items() if any(size == h // 2 for h in to_come)}

    def to_dict(self) -> dict[str, Any]:
        """Returns all that has been accumulated, as tensors and plain values."""
        splits = [dict(vars(split)) for split in self._splits]
        return {**vars(self), "_splits": splits, "_halves": sorted(self._halves)}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Moments":
        """Returns the moments that `to_dict` described."""
        found = cls.__new__(cls)
        vars(found).update({**state, "_halves": set(state["_halves"]), "_splits": []})
        for split in state["_splits"]:
            found._splits.append(_Split.__new__(_Split))
            vars(found._splits[-1]).update(split)
        return found

    def gradient(self, reference: "Moments | None") -> Gradient:
        """Returns the moments so far; the bias is taken from the mean of `reference`."""
        variance = self.squares / (self.count - 1)
        dsnr, dsnr_floor = self._splits[0].ratios()
        bias = bias_floor = None
        if reference is not None:
            bias = (self.mean - reference.mean).norm().item()
            squared_error = (
                variance.sum() / self.count + reference.squares.sum() / (reference.count - 1) / reference.count
            )
            bias_floor = squared_error.sqrt().item()
        floor = mean_absolute_t(self.count - 1) / math.sqrt(self.count)
        size, total = self.mean.norm().item(), variance.sum().item()
        return Gradient(size, total, self._snr(variance), floor, dsnr, dsnr_floor, bias, bias_floor, self.mean)

    def _snr(self, variance: Tensor) -> float:
        if not bool(self.mean.isfinite().all()):
            return math.nan
        deviation = variance.sqrt()
        moving = deviation > self._rounding * self.mean.abs()
        if bool(moving.any()):
            return (self.mean.abs() / deviation)[moving].mean().item()
        return math.inf if bool(self.mean.any()) else math.nan


class _Split:
    """Collects ratios of length along the mean of the first `size` vectors to length across it, of later vectors."""

    def __init__(self, quarter: Tensor, half: Tensor, size: int) -> None:
        self.size, self.mean = size, half / size
        self._direction = _unit(half)
        self._no_signal = _unit(quarter / (size // 2) - (half - quarter) / (size - size // 2))
        self._signal: list[float] = []
        self._noise: list[float] = []

    def add(self, value: Tensor, rounding: float) -> None:
        negligible, rest = (rounding * value.norm()).item(), value - self.mean
        if rest.norm() <= negligible:
            self._signal.append(math.inf if negligible > 0 else math.nan)
            self._noise.append(math.nan)
        else:
            self._signal.append(_along_over_across(value, self._direction, negligible))
            self._noise.append(_along_over_across(rest, self._no_signal, negligible))

    def is_enough(self, count: int) -> bool:
        """Returns True if at least a third of `count` vectors came after the first `size`."""
        return 2 * count >= 3 * self.size

    def ratios(self) -> list[float]:
        """Returns the mean ratio of the vectors, and that of their noise alone."""
        return [sum(ratios) / len(ratios) for ratios in (self._signal, self._noise)]


def _unit(direction: Tensor) -> Tensor:
    length = direction.norm()
    return direction / length if length > 0 else direction


def _along_over_across(value: Tensor, unit: Tensor, negligible: float) -> float:
    """Returns the length of `value` along `unit` over its length across; nan if only rounding lies across."""
    along, square = (value @ unit).item(), (value @ value).item()
    left = square - along**2
    across = math.sqrt(left) if left > 1e-6 * square else (value - along * unit).norm().item()  # does not cancel
    return abs(along) / across if across > negligible else math.nan


def mean_absolute_t(degrees: int) -> float:
    """Returns E|t| of Student's t. It tends to that of a normal, sqrt(2 / pi), with many degrees of freedom."""
    log_gammas = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    return 2 * math.sqrt(degrees / math.pi) * math.exp(log_gammas) / (degrees - 1)
