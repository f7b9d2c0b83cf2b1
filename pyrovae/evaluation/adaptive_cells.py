"""Adaptive cubature: the square is cut into cells, each datum's own, and cells that may hold an error are cut again."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

STEEP_RISE = 10.0  # nats between neighbouring points, beyond which a peak may be between them
POINTS_PER_SIDE = 17  # of a cell, its borders among them: a jump between the points of two cells would leave no trace
SPACINGS_PER_CELL = 10  # of the grid: the 17 points of a cell are then no further apart than those of the grid
UNTRIED_ERROR = 0.05  # share of its mass that a cell may be off before it has been cut and compared with its parts
SAFETY = 10  # times the error of the cells: at kinks, where rules may agree by chance, it was up to 6 times too small
# Points that all data share are decoded once, but their density is taken at all data. So the first cells share theirs
# only where more than one datum in FEW_OF is refined.
FEW_OF = 8
POINTS_PER_DATUM, PAIRS_IN_ALL = 2**18, 2**27  # budgets: points of one datum, and pairs of a point and a datum

LogDensity = Callable[[Tensor, Tensor | None], Tensor]
"""Returns log-densities `(points, data)`, in nats, at points `(points, 1, dim)`, the same for every datum, or
`(points, data, dim)`. The second argument holds the indices of the data, as many as there are; None is all in order."""


@dataclass(frozen=True)
class LogIntegral:
    """Holds the log of the integral for each datum, `(data,)`, and a bound on its error.

    `edge` is the largest log-density at the border of the square, `peak` the largest of all.
    """

    value: Tensor
    error: Tensor
    edge: Tensor
    peak: Tensor


def rise_between(one: Tensor, other: Tensor) -> Tensor:
    """Returns how high the log-density may be near two neighbouring points if it is steep between them, else -inf.

    It may rise from the larger value by as much as it falls to the smaller one. If the smaller one is -inf (outside a
    support), the density is taken to jump and not to rise.
    """
    larger, fall = torch.maximum(one, other), (one - other).abs()
    return torch.where(fall > STEEP_RISE, torch.where(fall.isinf(), larger, larger + fall), -math.inf)


def _log_distance(one: Tensor, other: Tensor) -> Tensor:
    """Returns log |exp(one) - exp(other)|."""
    larger = torch.maximum(one, other)
    return torch.where(larger == -math.inf, larger, larger + torch.log(-torch.expm1(-(one - other).abs())))


def _rules(device: torch.device) -> tuple[Tensor, ...]:
    """Returns nodes on [-1, 1] and the weights there of three rules, each `(POINTS_PER_SIDE,)`.

    These are Clenshaw and Curtis's rule of all nodes, that of every second node, and Fejer's first rule of the others.
    Each integrates the polynomial through its own nodes exactly.

    Source:
        Waldvogel 2006, "Fast construction of the Fejer and Clenshaw-Curtis quadrature rules", BIT 46.
    """
    intervals = POINTS_PER_SIDE - 1
    angle = torch.arange(intervals + 1, dtype=torch.float64, device=device) * (math.pi / intervals)

    def weights(angle: Tensor, num: int, at_ends: bool) -> Tensor:
        orders = torch.arange(1, num // 2 + 1, dtype=torch.float64, device=device)[:, None]
        terms = 2 * (2 * orders * angle).cos() / (4 * orders**2 - 1)
        if at_ends:
            terms[-1] /= 2
        found = 2 / num * (1 - terms.sum(0))
        if at_ends:
            found[[0, -1]] /= 2
        return found

    half, others = (torch.zeros_like(angle) for _ in range(2))
    half[::2] = weights(angle[::2], intervals // 2, True)
    others[1::2] = weights(angle[1::2], intervals // 2, False)
    return -angle.cos(), weights(angle, intervals, True), half, others


def _product_rules(dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the nodes on [-1, 1]^dim, `(nodes, dim)`, and the weights there of three rules, `(3, nodes)`."""
    nodes, *rules = (torch.cartesian_prod(*[column] * dim).reshape(-1, dim) for column in _rules(device))
    return nodes, torch.stack(rules).prod(-1)


def _entries(column: Tensor, index: Tensor) -> Tensor:
    """Returns the entries of a column at `index` `(some, data)`."""
    index = index.reshape(index.shape + (1,) * (column.dim() - 2))
    return column.gather(0, index.expand(-1, -1, *column.shape[2:]))


class AdaptiveCells:
    """Integrates over the cells of the data at the indices `rows`, each of which has cells of its own.

    A column of the cells is `(cells, data)`, or `(cells, data, dim)` for the centres. Cells are cut where the errors
    are.
    """

    def __init__(
        self,
        log_density: LogDensity,
        like: Tensor,
        num_data: int,
        rows: Tensor,
        limit: float,
        num_points: int,
        chunk_size: int,
        tolerance: float,
    ) -> None:
        self.log_density, self.num_data, self.rows = log_density, num_data, rows
        self.limit, self.chunk_size = limit, chunk_size
        self.dim, device = like.shape[-1], like.device

        self.nodes, self.rules = _product_rules(self.dim, device)
        self.corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], device=device)] * self.dim)
        self.corners = self.corners.reshape(-1, self.dim).double()
        # The points of a cell must be distinct numbers of their dtype.
        self.smallest = 1_000 * torch.finfo(like.dtype).eps * limit
        self.tolerance, self.eps = tolerance, torch.finfo(like.dtype).eps

        count = math.ceil((num_points - 1) / SPACINGS_PER_CELL)
        half = limit / count
        axis = half * (2 * torch.arange(count, dtype=torch.float64, device=device) + 1) - limit
        centre = torch.cartesian_prod(*[axis] * self.dim).reshape(-1, 1, self.dim)
        self.used = 0
        self.columns = self._columns(centre, centre.new_full((len(centre), 1), half))
        self.columns["error"] = torch.maximum(self.columns["error"], self.columns["mass"] + math.log(UNTRIED_ERROR))

    def integral(self) -> LogIntegral:
        """Returns the integrals of the data, once their cells are good enough or the budget is spent."""
        places, parts = torch.arange(len(self.rows), device=self.rows.device), []
        while len(self.rows):
            wanted, divisible = self._cells_to_cut()
            budget = (min(POINTS_PER_DATUM, PAIRS_IN_ALL // len(places)) - self.used) // (
                len(self.corners) * len(self.nodes)
            )
            done = ~wanted.any(0) if budget > 0 else wanted.new_ones(len(self.rows))
            if done.any():
                parts.append((places[done], self._result(done)))
                places, self.rows = places[~done], self.rows[~done]
                wanted, divisible = wanted[:, ~done], divisible[:, ~done]
                self.columns = {name: column[:, ~done] for name, column in self.columns.items()}
            if len(self.rows):
                self._cut(divisible.topk(min(int(wanted.sum(0).max()), budget), 0).indices)
        order = torch.cat([place for place, _ in parts]).argsort()
        found = [result for _, result in parts]
        return LogIntegral(
            *(torch.cat([getattr(r, field.name) for r in found])[order] for field in fields(LogIntegral))
        )

    def _result(self, done: Tensor) -> LogIntegral:
        """Returns the integrals of the data that are `done`, with SAFETY times the errors of their cells."""
        total, _, share = (part[..., done] for part in self._state())
        share = SAFETY * share
        error = torch.where(share < 1, -torch.log1p(-share.clamp(max=1)), math.inf)
        return LogIntegral(total, error, *(self.columns[name].amax(0)[done] for name in ("edge", "peak")))

    def _state(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the log of the integral, the log-error of each cell, and the share of all errors in the integral."""
        total, error = self.columns["mass"].logsumexp(0), self.columns["error"]
        return total, error, (error.logsumexp(0) - total).exp().nan_to_num(nan=math.inf)

    def _cells_to_cut(self) -> tuple[Tensor, Tensor]:
        """Returns which cells have to be cut, `(cells, data)`, and the log-errors of those that can be, else -inf."""
        total, error, share = self._state()
        tolerance = (4 * self.eps * self.columns["peak"].amax(0).abs()).clamp(min=self.tolerance)
        divisible = torch.where(self.columns["half"] > self.smallest, error, -math.inf)
        # The cells that matter, and among these the worst, down to e^-7 of the largest error. As long as nothing but
        # errors is known, these are all cells.
        worst = torch.minimum(divisible.amax(0) - 7, total)
        smallest_error = torch.maximum(total + tolerance.log() - math.log(len(error)), worst)
        return (divisible > smallest_error) & (share > tolerance), divisible

    def _cut(self, index: Tensor) -> None:
        """Cuts the cells at `index` `(some, data)` in half along each dimension."""
        num = len(index)
        self.used += num * len(self.corners) * len(self.nodes)
        centre, half = (_entries(self.columns[name], index) for name in ("centre", "half"))
        half = half / 2
        children = centre.unsqueeze(1) + 2 * half[:, None, :, None] * self.corners[:, None]
        new = self._columns(children.flatten(0, 1), half.repeat_interleave(len(self.corners), 0))
        # Two rules may agree by chance where the density has a kink. The whole cell was off by at most its distance
        # from the sum of its parts, and the parts together are better than that.
        parts = new["mass"].unflatten(0, (num, len(self.corners))).logsumexp(1)
        off = _log_distance(parts, _entries(self.columns["mass"], index)) - math.log(len(self.corners))
        new["error"] = torch.maximum(new["error"], off.repeat_interleave(len(self.corners), 0))
        for name, column in self.columns.items():
            first, *others = new[name].unflatten(0, (num, len(self.corners))).unbind(1)
            where = index.reshape(index.shape + (1,) * (column.dim() - 2)).expand_as(first)
            self.columns[name] = torch.cat((column.scatter(0, where, first), *others))

    def _columns(self, centre: Tensor, half: Tensor) -> dict[str, Tensor]:
        """Returns the columns of cells at `centre` `(cells, data or 1, dim)` that reach `half` to either side.

        These are the logs of mass and error, and the largest log-density in the cell and at the limits.
        """
        num = len(self.rows)
        step = max(1, self.chunk_size // (num * len(self.nodes)))
        parts = [self._evaluated(c, h) for c, h in zip(centre.split(step), half.split(step), strict=True)]
        return {
            "centre": centre.expand(-1, num, -1).contiguous(),
            "half": half.expand(-1, num).contiguous(),
            **{name: torch.cat([part[name] for part in parts]) for name in ("mass", "error", "edge", "peak")},
        }

    def _evaluated(self, centre: Tensor, half: Tensor) -> dict[str, Tensor]:
        """Returns the columns of these cells that take the log-density: mass, error, edge and peak."""
        z = centre.unsqueeze(1) + half[:, None, :, None] * self.nodes[:, None]  # (cells, nodes, data or 1, dim)
        points = z.flatten(0, 1)
        shared = z.shape[2] < len(self.rows) and self.num_data < FEW_OF * len(self.rows)
        values = self.log_density(points, None)[:, self.rows] if shared else self._at_own_points(points)
        values = values.unflatten(0, z.shape[:2])
        shaped, rises = values.unflatten(1, [POINTS_PER_SIDE] * self.dim), []
        for d in range(1, self.dim + 1):
            inner, outer = shaped.narrow(d, 1, shaped.shape[d] - 1), shaped.narrow(d, 0, shaped.shape[d] - 1)
            rises.append(rise_between(inner, outer).flatten(1, self.dim).amax(1))
        peak, log_area = values.amax(1), self.dim * half.log()
        shift = torch.where(peak.isinf(), 0.0, peak)
        mass, *rough = (self.rules @ (values - shift[:, None]).exp().double()).unbind(1)
        off = torch.stack([(mass - one).abs() for one in rough]).amax(0).log() + shift + log_area
        steep = torch.stack(rises).amax(0) + self.dim * math.log(2) + log_area
        at_limit = (z.abs() > self.limit - 0.01 * half[:, None, :, None]).any(-1)
        return {
            "mass": mass.log() + shift + log_area,
            "error": torch.maximum(off, steep),
            "edge": torch.where(at_limit, values, -math.inf).amax(1).double(),
            "peak": peak.double(),
        }

    def _at_own_points(self, points: Tensor) -> Tensor:
        """Returns the log-density of these data alone at points of their own, `(points, rows)`.

        The model needs as many data as it was given, so that the data and their points fill the batch in turns.
        """
        num = len(self.rows)
        turns = self.num_data // num
        rounds = math.ceil(len(points) / turns)
        filled = points.new_zeros(rounds, self.num_data, self.dim)
        padded = points.new_zeros(rounds * turns, num, self.dim)
        padded[: len(points)] = points
        filled[:, : turns * num] = padded.reshape(rounds, turns * num, self.dim)
        repeated = self.rows[torch.arange(self.num_data, device=self.rows.device) % num]
        return self.log_density(filled, repeated)[:, : turns * num].reshape(rounds * turns, num)[: len(points)]
