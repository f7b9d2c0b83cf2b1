"""The integral of a density over a line or a square, for many data at once, refined where its mass is.

First comes a grid, the same for all data: the trapezoidal rule converges faster than any power of the spacing for a
smooth integrand that vanishes at the limits. The grid itself shows whether the rule has converged, by how the rule
differs between the coarser grids within it, and by how steep the log-density is from point to point. If it has not, the
square is cut into adaptive cells.
"""

import math
from dataclasses import fields, replace

import torch
from torch import Tensor

from pyrovae.evaluation.adaptive_cells import SAFETY, AdaptiveCells, LogDensity, LogIntegral, rise_between

VANISHED = 10.0  # nats below the largest density, at the limits
NEGLIGIBLE = 15.0  # nats below the largest density
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
        parts = points.to(like).split(max(1, chunk_size // num_data))
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
        self.dim, self.spacing = dim, 2 * limit / (num_points - 1)
        axis = torch.linspace(-limit, limit, num_points, dtype=torch.float64, device=device)
        points = torch.cartesian_prod(*[axis] * dim).reshape(-1, 1, dim)
        index = torch.cartesian_prod(*[torch.arange(num_points, device=device)] * dim).reshape(-1, dim)
        # Every fourth point in each dimension: 4^dim grids that share no point.
        place = ((index % 4) * torch.tensor([4**d for d in range(dim)], device=device)).sum(-1)
        on_edge = ((index == 0) | (index == num_points - 1)).any(-1)
        self.peak = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        self.edge, self.steep = self.peak, self.peak
        sums = torch.zeros(4**dim, num_data, dtype=torch.float64, device=device)
        before = torch.empty(0, num_data, device=device)
        step = max(1, chunk_size // num_data)
        parts = (part.split(step) for part in (points, index, place, on_edge))
        for z, where, grid, border in zip(*parts, strict=True):
            values = log_density_at(z, None)
            peak = torch.maximum(self.peak, values.amax(0))
            shift = torch.where(peak == -math.inf, 0.0, peak)
            sums = (sums * (self.peak - shift).exp()).index_add(0, grid, (values - shift.to(values)).exp().double())
            self.peak = peak
            if border.any():
                self.edge = torch.maximum(self.edge, values[border].amax(0))
            known = torch.cat((before.to(values), values))
            for d in range(dim):
                back = num_points ** (dim - 1 - d)  # to the neighbour in this dimension
                first = max(len(before), back)
                if first < len(known):
                    rise = rise_between(known[first:], known[first - back : -back])
                    rise[where[first - len(before) :, d] == 0] = -math.inf
                    self.steep = torch.maximum(self.steep, rise.amax(0))
            before = known[-num_points:]
        self.totals = sums.log() + torch.where(self.peak == -math.inf, 0.0, self.peak)

    @property
    def resolved(self) -> Tensor:
        """True where the rule converges: grids of every fourth point agree, and no peak can be between points."""
        return (self.steep < self.peak - NEGLIGIBLE) & (self._spread(4) < 0.5)

    def integral(self) -> LogIntegral:
        """Returns the integrals of all data, with the errors that the coarser grids suggest."""
        # At kinks, where the rule is of order 2, the coarser grids would be off 4 and 16 times as much. But the errors
        # of several kinks may cancel on one of these grids, and not on the whole.
        error = torch.maximum(4 * self._spread(2), self._spread(4) / 2)
        return LogIntegral(self._on_all_points(), error, self.edge, self.peak)

    def _on_all_points(self) -> Tensor:
        """Returns the log of the integral by the rule on all points, `(data,)`."""
        return self.totals.logsumexp(0) + self.dim * math.log(self.spacing)

    def _spread(self, every: int) -> Tensor:
        """Returns the largest distance of the rule on every `every`-th point per dimension from that on all points."""
        totals = self.totals.unflatten(0, [4 // every, every] * self.dim)
        totals = totals.logsumexp([2 * d for d in range(self.dim)]).flatten(0, self.dim - 1)
        off = (totals + self.dim * math.log(every * self.spacing) - self._on_all_points()).abs()
        return off.amax(0).nan_to_num(nan=math.inf)
