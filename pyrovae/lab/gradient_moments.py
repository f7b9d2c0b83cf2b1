"""Moments of gradients that are not kept: signal, noise, bias and their floors; and the powers with which they go."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROUNDING = 100
"""Times a gradient's own precision: numbers that differ by less are one number, summed in another order."""


@dataclass(frozen=True)
class Gradient:
    """What the gradients of one side's parameters are like, over R independent repeats.

    With m and v the mean and variance of each coordinate: `norm` = |mean|, `variance` = sum v, `snr` = the mean of
    |m| / sqrt(v) over the coordinates that vary, and `snr_floor` what that is of pure noise, E|t| / sqrt(R) with
    Student's t of R - 1 degrees of freedom. `dsnr` is the mean of |g_u| / |g - g_u|, g_u the part of g along u, the
    mean gradient of an earlier half of the repeats (the directional signal-to-noise ratio of Rainforth et al. 2018);
    `dsnr_floor` is the same of g less that mean, along a difference of two means: there is no signal in either.
    `bias` = |mean - mean of the reference|, and `bias_floor` what that is of two estimators with one mean; None where
    there is no reference. `mean` has the parameters of the side in one row, in the order in which the programs come
    upon them.

    A gradient that is the same in every repeat, to rounding, has no noise: `snr` and `dsnr` are infinite. They are nan
    where there is nothing to be compared: all gradients are exactly 0, or not finite; and `dsnr` where only one
    coordinate moves, as nothing can lie across it.
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
        """The numbers, without `mean`."""
        return {name: value for name, value in vars(self).items() if name != "mean"}


class Moments:
    """Mean and sum of squared deviations of vectors that are not kept (Welford), and what lies along a direction.

    The direction is that of the first half of the `planned` vectors. As they may end early, those of the first 2, 4, 8,
    ... serve until then, and whatever the end, a third of the vectors or more gave the direction and a third or more
    were measured along it.
    """

    def __init__(self, planned: int) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        half = planned // 2
        self._halves = {2**n for n in range(1, half.bit_length()) if 2**n < half} | {half}
        self._sums: dict[int, Tensor] = {}
        self._splits: list[_Split] = []
        self._rounding = 0.0

    def add(self, value: Tensor) -> None:
        self._rounding = ROUNDING * torch.finfo(value.dtype).eps
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

    def gradient(self, reference: "Moments | None") -> Gradient:
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
    """What lies along the mean of the first `size` vectors, and across it, of those that come after them."""

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
        """Whether, of `count` vectors, a third or more came after."""
        return 2 * count >= 3 * self.size

    def ratios(self) -> list[float]:
        """The signal's, and that of noise alone."""
        return [sum(ratios) / len(ratios) for ratios in (self._signal, self._noise)]


def _unit(direction: Tensor) -> Tensor:
    length = direction.norm()
    return direction / length if length > 0 else direction


def _along_over_across(value: Tensor, unit: Tensor, negligible: float) -> float:
    """nan where nothing but rounding lies across."""
    along, square = (value @ unit).item(), (value @ value).item()
    left = square - along**2
    across = math.sqrt(left) if left > 1e-6 * square else (value - along * unit).norm().item()  # nothing cancels
    return abs(along) / across if across > negligible else math.nan


def mean_absolute_t(degrees: int) -> float:
    """E|t| of Student's t: that of a normal, sqrt(2 / pi), for many degrees of freedom."""
    log_gammas = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    return 2 * math.sqrt(degrees / math.pi) * math.exp(log_gammas) / (degrees - 1)
