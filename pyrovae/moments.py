"""Moments of gradients that are not kept: signal, noise, bias and their floors; and the powers with which they go."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

CLEAR, SPAN = 3, 16


@dataclass(frozen=True)
class Gradient:
    """What the gradients of one side's parameters are like, over independent repeats.

    With m and v the mean and variance of each coordinate: `norm` = |mean|, `variance` = sum v, `snr` = the mean over
    coordinates of |m| / sqrt(v), and `snr_floor` what that is of pure noise, sqrt(2 / (pi R)) of R repeats. `dsnr` is
    the mean of |g_u| / |g - g_u|, g_u the part of g along u, the mean gradient of the other half of the repeats (the
    directional signal-to-noise ratio of Rainforth et al. 2018); `dsnr_floor` is the same of g less that mean, along a
    difference of two means: there is no signal in either. `bias` = |mean - mean of the reference|, and `bias_floor`
    what that is of two estimators with one mean; None where there is no reference. `mean` has the parameters of the
    side in one row, in the order in which the program comes upon them.
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
    """Mean and sum of squared deviations of vectors that are not kept (Welford), and what lies along a direction."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.quarters: list[Tensor] = []
        self.ratios: dict[str, list[float]] = {"signal": [], "noise": []}

    def add(self, value: Tensor, planned: int) -> None:
        value = value.double()
        half, quarter = planned // 2, planned // 4
        self.count += 1
        change = value - self.mean
        self.mean = self.mean + change / self.count
        self.squares = self.squares + change * (value - self.mean)
        if self.count in (quarter, half):
            self.quarters.append(self.mean * self.count)
        elif self.count > half:
            first, both = self.quarters
            difference = first / quarter - (both - first) / (half - quarter)
            for kind, one, direction in (("signal", value, both), ("noise", value - both / half, difference)):
                length = direction.norm()
                along = (one @ direction / length).abs() if length > 0 else one.new_zeros(())
                across = (one.square().sum() - along.square()).clamp(min=0).sqrt()
                self.ratios[kind].append((along / across).item())

    def gradient(self, reference: "Moments | None") -> Gradient:
        variance = self.squares / (self.count - 1)
        moving = variance > 0
        snr = (self.mean.abs() / variance.sqrt())[moving].mean().item() if bool(moving.any()) else math.inf
        dsnr, dsnr_floor = (sum(r) / len(r) if r else math.nan for r in self.ratios.values())
        bias = bias_floor = None
        if reference is not None:
            bias = (self.mean - reference.mean).norm().item()
            squared_error = (
                variance.sum() / self.count + reference.squares.sum() / (reference.count - 1) / reference.count
            )
            bias_floor = squared_error.sqrt().item()
        floor = math.sqrt(2 / (math.pi * self.count))
        size, total = self.mean.norm().item(), variance.sum().item()
        return Gradient(size, total, snr, floor, dsnr, dsnr_floor, bias, bias_floor, self.mean)


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
    x, y = torch.tensor(points, dtype=torch.float64).T
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    if len(points) < 3:
        return Slope(slope.item(), math.nan, fitted)
    error = ((y - slope * x).square().sum() / (len(points) - 2) / (x @ x)).sqrt()
    return Slope(slope.item(), error.item(), fitted)
