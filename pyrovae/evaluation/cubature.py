"""The integral of a density over a line or a square, for many data at once, refined where its mass is.

First comes a grid, the same for all data: the trapezoidal rule converges faster than any power of the spacing for a
smooth integrand that vanishes at the limits. The grid itself shows whether the rule has converged, by the highest
frequencies of the integrand that its points can tell, and by how steep the log-density is from point to point. If it
has not, the square is cut into adaptive cells.
"""

import math
from dataclasses import fields, replace

import torch
from torch import Tensor

from pyrovae.evaluation.adaptive_cells import SAFETY, AdaptiveCells, LogDensity, LogIntegral, rise_between

VANISHED = 10.0  # nats below the largest density, at the limits
NEGLIGIBLE = 15.0  # nats below the largest density
# The rule takes a frequency of one cycle per point for 0: these aliases are its error. On the ray from 0 to each, some
# frequencies up to half a cycle per point are watched. They are spaced irregularly, so that the parts of the integrand
# at two kinks or jumps cannot cancel at all of them, whatever is between the two. They reach down to just below 1/3,
# where kinks at every third point show.
ALIASES = {1: [[1]], 2: [[1, 0], [0, 1], [1, 1], [-1, 1], [1, 2], [-1, 2], [2, 1], [-2, 1]]}
WATCHED = [0.5 - 0.18 * (number * 0.618034 % 1) for number in range(16)]  # cycles per point
ALIAS_SAFETY = 5  # times one alias: the rule is off by all, of both signs
# Where each datum has points of its own, every pair is decoded. This many fit into the cache: a network with two layers
# of 128 units is twice as fast as with a million at a time. Fewer would spend their time in Pyro.
OWN_PAIRS_PER_CHUNK = 2**14
SHARED_POINTS = 360  # per dimension: a grid of fewer points that all data share costs less than each datum's own cells


def log_integral(
    log_density: LogDensity,
    like: Tensor,
    num_data: int,
    limit: float,
    num_points: int,
    chunk_size: int,
    tolerance: float,
) -> LogIntegral:
    """Returns the log of the integral of exp(`log_density`) over [-limit, limit]^dim, for each of `num_data` data.

    Points have the dtype, device and dimension of `like` `(..., dim)`. The grid has `num_points` in each dimension, and
    `chunk_size` pairs of a point and a datum are taken at a time. A grid is refined for the data for which its error is
    larger than `tolerance`, in nats. A peak that leaves no trace in the log-density on the grid is not seen: one far
    narrower than the spacing, on a smooth shoulder.
    """

    def log_density_at(points: Tensor, rows: Tensor | None) -> Tensor:
        pairs = chunk_size if points.shape[1] == 1 else min(chunk_size, OWN_PAIRS_PER_CHUNK)
        parts = points.to(like).split(max(1, pairs // num_data))
        return torch.cat([log_density(part, rows).expand(-1, num_data) for part in parts])

    while True:
        grid = _SharedGrid(log_density_at, like, num_data, limit, num_points, chunk_size)
        found = grid.integral()
        # A density that visibly reaches beyond the limits is not worth a finer grid.
        beyond = ~(found.edge < found.peak - VANISHED)
        found = replace(found, error=torch.where(beyond & ~grid.resolved, math.inf, found.error))
        unresolved = (~beyond & ~(grid.resolved & (found.error < tolerance))).nonzero().flatten()
        if len(unresolved) == 0:
            return found
        finer, dim = 2 * num_points - 1, like.shape[-1]
        if finer**dim * num_data > SHARED_POINTS**dim * len(unresolved):
            break
        num_points = finer
    refined = AdaptiveCells(
        log_density_at, like, num_data, unresolved, limit, num_points, chunk_size, tolerance / SAFETY
    ).integral()
    pairs = [(getattr(found, field.name), getattr(refined, field.name)) for field in fields(found)]
    return LogIntegral(*(whole.index_copy(0, unresolved, part) for whole, part in pairs))


class _SharedGrid:
    """Integrates by the trapezoidal rule on a grid that all data share, and judges the result."""

    def __init__(
        self, log_density_at: LogDensity, like: Tensor, num_data: int, limit: float, num_points: int, chunk_size: int
    ) -> None:
        dim, device = like.shape[-1], like.device
        spacing = 2 * limit / (num_points - 1)
        spectrum = _Spectrum(dim, num_points, like)
        axis = torch.linspace(-limit, limit, num_points, dtype=torch.float64, device=device)
        inner = torch.zeros((num_points,) * dim, dtype=torch.bool, device=device)
        inner[(slice(1, -1),) * dim] = True
        self.peak = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        self.edge, self.steep = self.peak, self.peak
        total = torch.zeros(num_data, dtype=torch.float64, device=device)
        parts = torch.zeros(num_data, len(spectrum.share), dtype=torch.complex128, device=device)
        last = None  # of the points before, along the first axis
        step = max(1, chunk_size // (num_data * num_points ** (dim - 1)))
        for place in torch.arange(num_points, device=device).split(step):
            points = torch.cartesian_prod(axis[place], *[axis] * (dim - 1)).reshape(-1, 1, dim)
            values = log_density_at(points, None).unflatten(0, (len(place), *[num_points] * (dim - 1)))
            for d in range(dim):
                along = values if d or last is None else torch.cat((last, values))
                if (pairs := along.shape[d] - 1) > 0:
                    rise = rise_between(along.narrow(d, 1, pairs), along.narrow(d, 0, pairs))
                    self.steep = torch.maximum(self.steep, rise.flatten(0, -2).amax(0))
            last = values[-1:]
            if (border := ~inner[place]).any():
                self.edge = torch.maximum(self.edge, values[border].amax(0))
            peak = torch.maximum(self.peak, values.flatten(0, -2).amax(0))
            shift = torch.where(peak == -math.inf, 0.0, peak)
            density, fall = (values - shift.to(values)).exp(), (self.peak - shift).exp()
            total = fall * total + density.double().flatten(0, -2).sum(0)
            parts = fall[:, None] * parts + spectrum.parts(density, place)
            self.peak = peak
        self.value = total.log() + self.peak + dim * math.log(spacing)
        self.alias = (spectrum.share * parts.abs() / total[:, None]).amax(1).nan_to_num(nan=math.inf)

    @property
    def resolved(self) -> Tensor:
        """True where no peak can be between points."""
        return self.steep < self.peak - NEGLIGIBLE

    def integral(self) -> LogIntegral:
        """Returns the integrals of all data, with bounds on their errors."""
        share = ALIAS_SAFETY * self.alias
        error = torch.where(share < 1, -torch.log1p(-share.clamp(max=1)), math.inf)
        return LogIntegral(self.value, error, self.edge, self.peak)


class _Spectrum:
    """Holds waves over a grid, of the frequencies that are watched.

    An integrand falls with the frequency: by the first power at jumps, the second at kinks, and exponentially if it is
    smooth. So an alias is at most about as large as a part at a lower frequency on its ray, times `share`, the ratio of
    the two frequencies, `(waves,)`.
    """

    def __init__(self, dim: int, num_points: int, like: Tensor) -> None:
        aliases = torch.tensor(ALIASES[dim], dtype=torch.float64, device=like.device)
        share = torch.tensor(WATCHED, dtype=torch.float64, device=like.device)[:, None] / aliases.abs().amax(-1)
        frequencies = (share[..., None] * aliases).flatten(0, 1)  # cycles per point
        self.share = share.flatten()
        self.first = self._waves(frequencies[:, 0], num_points, like)
        different, self.which = frequencies[:, -1].unique(return_inverse=True)
        self.second = self._waves(different, num_points, like)

    def _waves(self, frequency: Tensor, num_points: int, like: Tensor) -> Tensor:
        cycles = torch.arange(num_points, device=like.device)[:, None] * frequency % 1
        waves = torch.polar(torch.ones_like(cycles), 2 * math.pi * cycles)
        return waves.to(torch.promote_types(like.dtype, torch.complex64))

    def parts(self, density: Tensor, place: Tensor) -> Tensor:
        """Returns the sums of a density times each wave, `(data, waves)`.

        The density is `(points, data)` or `(points, points, data)`, at the indices `place` on the first axis.
        """
        waves = self.first[place]
        density = density.to(waves.real).transpose(-1, -2)
        if density.dim() == 2:
            return torch.view_as_complex((density @ torch.view_as_real(waves).flatten(1)).unflatten(1, (-1, 2)))
        sums = density @ torch.view_as_real(self.second).flatten(1)
        sums = torch.view_as_complex(sums.unflatten(-1, (-1, 2)))[..., self.which]
        return (sums * waves[:, None]).sum(0)
