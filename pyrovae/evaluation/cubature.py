"""The integral of a density over a line or a square, for many data at once, refined where its mass is.

A grid first, the same for all data: the trapezoidal rule converges faster than any power of the spacing for a smooth
integrand that vanishes at the limits. Whether it has, the grid itself tells: by how the rule differs between coarser
grids that lie within it, and by how steep the log-density is from point to point. Where it has not, the square is cut
into cells, each datum's own, and those that may hold an error are cut again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

STEEP = 10.0  # nats between neighbouring points, beyond which a peak may be between them
VANISHED = 10.0  # nats below the largest density, at the limits
NEGLIGIBLE = 15.0  # nats below the largest density
CELL = 10  # spacings of the grid: the 15 points of a cell are then no further apart than those of the grid
UNTRIED = 1e-3  # of its mass, that a cell may be off before it has been cut and compared with its parts
SAFETY = 10  # times the error of cells: at kinks, where two rules may agree by chance, it was too small by up to 8
BUDGET, BUDGET_OF_ALL = 2**18, 2**27  # points of a datum, and pairs of a point and a datum

# Gauss and Kronrod's rules of 7 and 15 points on [-1, 1], from the middle outwards.
_NODES = (
    0.0, 0.207784955007898468, 0.405845151377397167, 0.586087235467691130,
    0.741531185599394440, 0.864864423359769073, 0.949107912342758525, 0.991455371120812640,
)  # fmt: skip
_KRONROD = (
    0.209482141084727828, 0.204432940075298892, 0.190350578064785410, 0.169004726639267903,
    0.140653259715525919, 0.104790010322250184, 0.063092092629978553, 0.022935322010529225,
)  # fmt: skip
_GAUSS = (0.417959183673469388, 0.0, 0.381830050505118945, 0.0, 0.279705391489276668, 0.0, 0.129484966168869693, 0.0)

SHARED = 360  # points in a dimension: a grid of fewer that all data share costs less than cells of each datum's own

LogDensity = Callable[[Tensor, Tensor | None], Tensor]
"""Of points `(points, 1, dim)`, the same for every datum, or `(points, data, dim)`: `(points, data)`, in nats. The data
are those at the indices given second, as many as there are; None is all in their order."""


@dataclass(frozen=True)
class LogIntegral:
    """The log of the integral for each datum, `(data,)`, and a bound on its error.

    `edge` is the largest log-density at the border of the square, `peak` the largest of all.
    """

    value: Tensor
    error: Tensor
    edge: Tensor
    peak: Tensor


def log_integral(
    log_density: LogDensity,
    like: Tensor,
    num_data: int,
    limit: float,
    num_points: int,
    chunk_size: int,
    tolerance: float,
) -> LogIntegral:
    """log of the integral of exp(`log_density`) over [-limit, limit]^dim, at points of the kind of `like` `(..., dim)`.

    `num_points` are those of the grid in a dimension, and `chunk_size` pairs of a point and a datum are taken at a
    time. A grid whose error is larger than `tolerance`, in nats, is refined. What has no trace at all
    in the log-density on the grid is not seen: a peak far narrower than its spacing on a smooth shoulder.
    """

    def at(points: Tensor, rows: Tensor | None = None) -> Tensor:
        parts = points.to(like).split(max(1, chunk_size // num_data))
        return torch.cat([log_density(part, rows).expand(-1, num_data) for part in parts])

    while True:
        grid = _Grid(at, like, num_data, limit, num_points, chunk_size)
        found = grid.integral()
        # What reaches beyond the limits, as far as is seen, is not worth a finer grid.
        beyond = ~(found.edge < found.peak - VANISHED)
        found = replace(found, error=torch.where(beyond & ~grid.resolved, math.inf, found.error))
        bad = (~beyond & ~(grid.resolved & (found.error < tolerance))).nonzero().flatten()
        if len(bad) == 0:
            return found
        finer, dim = 2 * num_points - 1, like.shape[-1]
        if finer**dim * num_data > SHARED**dim * len(bad):
            break
        num_points = finer
    refined = _Cells(at, like, num_data, bad, limit, num_points, chunk_size, tolerance / SAFETY).integral()
    pairs = [(getattr(found, field.name), getattr(refined, field.name)) for field in fields(found)]
    return LogIntegral(*(whole.index_copy(0, bad, part) for whole, part in pairs))


class _Grid:
    """The trapezoidal rule on a grid that all data share, and what it says of itself."""

    def __init__(
        self, at: LogDensity, like: Tensor, num_data: int, limit: float, num_points: int, chunk_size: int
    ) -> None:
        dim, device = like.shape[-1], like.device
        self.dim, self.spacing = dim, 2 * limit / (num_points - 1)
        axis = torch.linspace(-limit, limit, num_points, dtype=torch.float64, device=device)
        points = torch.cartesian_prod(*[axis] * dim).reshape(-1, 1, dim)
        index = torch.cartesian_prod(*[torch.arange(num_points, device=device)] * dim).reshape(-1, dim)
        # One of every four points in each dimension: 4^dim grids, which share none.
        place = ((index % 4) * torch.tensor([4**d for d in range(dim)], device=device)).sum(-1)
        on_edge = ((index == 0) | (index == num_points - 1)).any(-1)
        self.peak = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        self.edge, self.steep = self.peak, self.peak
        sums = torch.zeros(4**dim, num_data, dtype=torch.float64, device=device)
        before = torch.empty(0, num_data, device=device)
        step = max(1, chunk_size // num_data)
        parts = (part.split(step) for part in (points, index, place, on_edge))
        for z, where, grid, border in zip(*parts, strict=True):
            values = at(z)
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
                    rise = _rise(known[first:], known[first - back : -back])
                    rise[where[first - len(before) :, d] == 0] = -math.inf
                    self.steep = torch.maximum(self.steep, rise.amax(0))
            before = known[-num_points:]
        self.totals = sums.log() + torch.where(self.peak == -math.inf, 0.0, self.peak)

    @property
    def resolved(self) -> Tensor:
        """Whether the rule converges: the grids of every fourth point nearly agree, and no peak can be between."""
        return (self.steep < self.peak - NEGLIGIBLE) & (self._spread(4) < 0.5)

    def integral(self) -> LogIntegral:
        # A rule of order 2, the least to be expected without jumps, would be better by 16 on the whole grid.
        error = torch.maximum(self._spread(2), self._spread(4) / 8)
        return LogIntegral(self._fine(), error, self.edge, self.peak)

    def _fine(self) -> Tensor:
        return self.totals.logsumexp(0) + self.dim * math.log(self.spacing)

    def _spread(self, every: int) -> Tensor:
        """How far the rule on one of `every` points in each dimension is from that on all, at most over such grids."""
        totals = self.totals.unflatten(0, [4 // every, every] * self.dim)
        totals = totals.logsumexp([2 * d for d in range(self.dim)]).flatten(0, self.dim - 1)
        off = (totals + self.dim * math.log(every * self.spacing) - self._fine()).abs()
        return off.amax(0).nan_to_num(nan=math.inf)


class _Cells:
    """Cells of some data, which each has of its own: `(cells, data)`, cut further where their errors are."""

    def __init__(
        self,
        at: LogDensity,
        like: Tensor,
        num_data: int,
        bad: Tensor,
        limit: float,
        num_points: int,
        chunk_size: int,
        tolerance: float,
    ) -> None:
        self.at, self.num_data, self.bad, self.limit, self.chunk_size = at, num_data, bad, limit, chunk_size
        self.dim, device = like.shape[-1], like.device

        def mirrored(values: tuple[float, ...], sign: int) -> Tensor:
            values = torch.tensor(values, dtype=torch.float64, device=device)
            return torch.cat((sign * values[1:].flip(0), values))

        self.nodes = torch.cartesian_prod(*[mirrored(_NODES, -1)] * self.dim).reshape(-1, self.dim)
        kronrod, gauss = (mirrored(values, 1) for values in (_KRONROD, _GAUSS))
        self.log_kronrod, self.log_gauss = (
            torch.cartesian_prod(*[rule] * self.dim).reshape(-1, self.dim).prod(-1).log() for rule in (kronrod, gauss)
        )
        self.corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], device=device)] * self.dim)
        self.corners = self.corners.reshape(-1, self.dim).double()
        # Points of a cell must be told apart by the numbers that they are written in.
        self.smallest = 1_000 * torch.finfo(like.dtype).eps * limit
        self.tolerance, self.eps = tolerance, torch.finfo(like.dtype).eps

        count = math.ceil((num_points - 1) / CELL)
        half = limit / count
        axis = half * (2 * torch.arange(count, dtype=torch.float64, device=device) + 1) - limit
        centre = torch.cartesian_prod(*[axis] * self.dim).reshape(-1, 1, self.dim)
        self.used = 0
        self.columns = self._columns(centre, centre.new_full((len(centre), 1), half))
        self.columns["error"] = torch.maximum(self.columns["error"], self.columns["mass"] + math.log(UNTRIED))

    def integral(self) -> LogIntegral:
        places, parts = torch.arange(len(self.bad), device=self.bad.device), []
        while len(self.bad):
            wanted, able = self._wanted()
            budget = (min(BUDGET, BUDGET_OF_ALL // len(places)) - self.used) // (len(self.corners) * len(self.nodes))
            done = ~wanted.any(0) if budget > 0 else wanted.new_ones(len(self.bad))
            if done.any():
                parts.append((places[done], self._result(done)))
                places, self.bad, wanted, able = places[~done], self.bad[~done], wanted[:, ~done], able[:, ~done]
                self.columns = {name: column[:, ~done] for name, column in self.columns.items()}
            if len(self.bad):
                self._cut(able.topk(min(int(wanted.sum(0).max()), budget), 0).indices)
        order = torch.cat([place for place, _ in parts]).argsort()
        found = [result for _, result in parts]
        return LogIntegral(
            *(torch.cat([getattr(r, field.name) for r in found])[order] for field in fields(LogIntegral))
        )

    def _result(self, done: Tensor) -> LogIntegral:
        total, _, share = (part[..., done] for part in self._state())
        share = SAFETY * share
        error = torch.where(share < 1, -torch.log1p(-share.clamp(max=1)), math.inf)
        return LogIntegral(total, error, *(self.columns[name].amax(0)[done] for name in ("edge", "peak")))

    def _state(self) -> tuple[Tensor, Tensor, Tensor]:
        """The log of the integral, that of the error of each cell, and what share of the integral they are in all."""
        total, error = self.columns["mass"].logsumexp(0), self.columns["error"]
        return total, error, (error.logsumexp(0) - total).exp().nan_to_num(nan=math.inf)

    def _wanted(self) -> tuple[Tensor, Tensor]:
        """The cells that have to be cut, `(cells, data)`, and the errors of those that can be."""
        total, error, share = self._state()
        tolerance = (4 * self.eps * self.columns["peak"].amax(0).abs()).clamp(min=self.tolerance)
        able = torch.where(self.columns["half"] > self.smallest, error, -math.inf)
        # Those that matter, and of these the worst, to e^7; all where there is as yet nothing known but their errors.
        worst = torch.minimum(able.amax(0) - 7, total)
        least = torch.maximum(total + tolerance.log() - math.log(len(error)), worst)
        return (able > least) & (share > tolerance), able

    def _cut(self, index: Tensor) -> None:
        """Cuts the cells at `index` `(some, data)` into halves in each dimension."""
        num = len(index)
        self.used += num * len(self.corners) * len(self.nodes)
        centre, half = (self._taken(self.columns[name], index) for name in ("centre", "half"))
        half = half / 2
        children = centre.unsqueeze(1) + 2 * half[:, None, :, None] * self.corners[:, None]
        new = self._columns(children.flatten(0, 1), half.repeat_interleave(len(self.corners), 0))
        # Two rules may agree by chance where the density has a kink. The whole was off by its distance from its parts,
        # or less, and they are together better than that.
        parts = new["mass"].unflatten(0, (num, len(self.corners))).logsumexp(1)
        off = _log_distance(parts, self._taken(self.columns["mass"], index)) - math.log(len(self.corners))
        new["error"] = torch.maximum(new["error"], off.repeat_interleave(len(self.corners), 0))
        for name, column in self.columns.items():
            first, *others = new[name].unflatten(0, (num, len(self.corners))).unbind(1)
            where = index.reshape(index.shape + (1,) * (column.dim() - 2)).expand_as(first)
            self.columns[name] = torch.cat((column.scatter(0, where, first), *others))

    @staticmethod
    def _taken(column: Tensor, index: Tensor) -> Tensor:
        index = index.reshape(index.shape + (1,) * (column.dim() - 2))
        return column.gather(0, index.expand(-1, -1, *column.shape[2:]))

    def _columns(self, centre: Tensor, half: Tensor) -> dict[str, Tensor]:
        """Of cells at `centre` `(cells, data or 1, dim)`, `half` as wide: the logs of mass and error, each `(cells,
        data)`, and the largest log-density in all and at the limits."""
        num = len(self.bad)
        step = max(1, self.chunk_size // (num * len(self.nodes)))
        parts = [self._part(c, h) for c, h in zip(centre.split(step), half.split(step), strict=True)]
        return {
            "centre": centre.expand(-1, num, -1).contiguous(),
            "half": half.expand(-1, num).contiguous(),
            **{name: torch.cat([part[name] for part in parts]) for name in ("mass", "error", "edge", "peak")},
        }

    def _part(self, centre: Tensor, half: Tensor) -> dict[str, Tensor]:
        z = centre.unsqueeze(1) + half[:, None, :, None] * self.nodes[:, None]  # (cells, nodes, data or 1, dim)
        points = z.flatten(0, 1)
        values = self.at(points)[:, self.bad] if z.shape[2] < len(self.bad) else self._at_own(points)
        values = values.unflatten(0, z.shape[:2]).double()
        log_half, rises = half.log(), []
        shaped = values.unflatten(1, [len(_NODES) * 2 - 1] * self.dim)
        for d in range(1, self.dim + 1):
            inner, outer = shaped.narrow(d, 1, shaped.shape[d] - 1), shaped.narrow(d, 0, shaped.shape[d] - 1)
            rises.append(_rise(inner, outer).flatten(1, self.dim).amax(1))
        steep = torch.stack(rises).amax(0) + self.dim * (math.log(2) + log_half)
        mass, rough = (
            (values + rule[:, None]).logsumexp(1) + self.dim * log_half for rule in (self.log_kronrod, self.log_gauss)
        )
        at_limit = (z.abs() > self.limit - 0.01 * half[:, None, :, None]).any(-1)
        return {
            "mass": mass,
            "error": torch.maximum(_log_distance(mass, rough), steep),
            "edge": torch.where(at_limit, values, -math.inf).amax(1),
            "peak": values.amax(1),
        }

    def _at_own(self, points: Tensor) -> Tensor:
        """The log-density of these data alone at points of their own, `(points, bad)`: they fill the batch in turns."""
        num = len(self.bad)
        turns = self.num_data // num
        rounds = math.ceil(len(points) / turns)
        filled = points.new_zeros(rounds, self.num_data, self.dim)
        padded = torch.cat((points, points.new_zeros(rounds * turns - len(points), num, self.dim)))
        filled[:, : turns * num] = padded.reshape(rounds, turns * num, self.dim)
        rows = self.bad[torch.arange(self.num_data, device=self.bad.device) % num]
        return self.at(filled, rows)[:, : turns * num].reshape(rounds * turns, num)[: len(points)]


def _log_distance(one: Tensor, other: Tensor) -> Tensor:
    """log |exp(one) - exp(other)|."""
    larger = torch.maximum(one, other)
    return torch.where(larger == -math.inf, larger, larger + torch.log(-torch.expm1(-(one - other).abs())))


def _rise(one: Tensor, other: Tensor) -> Tensor:
    """What the log-density may be near two neighbouring points between which it is steep; -inf where it is not.

    It may rise from the larger by as much as it falls to the smaller one; where that is none (outside of a support),
    it is taken to jump.
    """
    larger, fall = torch.maximum(one, other), (one - other).abs()
    return torch.where(fall > STEEP, torch.where(fall.isinf(), larger, larger + fall), -math.inf)
