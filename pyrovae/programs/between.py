"""Numbers between bounds of which some may be infinite, and the bijection from real numbers to them."""

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to
from torch.nn.functional import logsigmoid

ROUNDINGS = 4  # units in the last place, by which bounds that are meant to be equal may differ


class Between(constraints.Constraint):
    """Holds for numbers from a lower to an upper bound: tensors, any of whose elements may be infinite."""

    def __init__(self, lower_bound: Tensor, upper_bound: Tensor) -> None:
        self.lower_bound, self.upper_bound = lower_bound, upper_bound
        super().__init__()

    def __repr__(self) -> str:
        ends = (self.lower_bound, self.upper_bound)
        known = [f"{end.flatten()[0].item():g}" if (end == end.flatten()[:1]).all() else "..." for end in ends]
        return f"Between({', '.join(known)})"

    def check(self, value: Tensor) -> Tensor:
        return (self.lower_bound <= value) & (value <= self.upper_bound)

    @property
    def is_everything(self) -> bool:
        """True if no bound is finite; to know it waits for a GPU."""
        return not bool((self.lower_bound.isfinite() | self.upper_bound.isfinite()).any())

    def within(self, value: Tensor) -> Tensor:
        """Returns values that lie some roundings or more inside: a transform's inverse might round one of them out."""
        low, high = self.lower_bound.to(value), self.upper_bound.to(value)
        largest = torch.maximum(*(torch.where(end.isfinite(), end, 0.0).abs() for end in (low, high)))
        away = ROUNDINGS * torch.finfo(value.dtype).eps * largest
        return torch.minimum(torch.maximum(value, low + away), high - away)


class OntoBetween(Transform):
    """Takes real numbers to those of a `Between`: by a sigmoid, by exp from the one finite bound, or as they are."""

    domain = constraints.real
    bijective = True

    def __init__(self, support: Between) -> None:
        super().__init__()
        self.support = support

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.support

    def _call(self, x: Tensor) -> Tensor:
        low, high, has_low, has_high = self._bounds(x)
        one = torch.where(has_low, low + x.exp(), high - x.exp())
        return self._chosen(low + (high - low) * x.sigmoid(), one, x, has_low, has_high)

    def _inverse(self, y: Tensor) -> Tensor:
        low, high, has_low, has_high = self._bounds(y)
        below, above = (torch.where(has, length, 1.0) for has, length in ((has_low, y - low), (has_high, high - y)))
        return self._chosen(below.log() - above.log(), torch.where(has_low, below, above).log(), y, has_low, has_high)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        low, high, has_low, has_high = self._bounds(x)
        width = torch.where(has_low & has_high, high - low, 1.0)
        two = width.log() + logsigmoid(x) + logsigmoid(-x)
        return self._chosen(two, x, torch.zeros_like(x), has_low, has_high)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns both bounds, 0 in place of those that are infinite, and which are finite."""
        low, high = self.support.lower_bound.to(like), self.support.upper_bound.to(like)
        has_low, has_high = low.isfinite(), high.isfinite()
        return torch.where(has_low, low, 0.0), torch.where(has_high, high, 0.0), has_low, has_high

    @staticmethod
    def _chosen(two: Tensor, one: Tensor, none: Tensor, has_low: Tensor, has_high: Tensor) -> Tensor:
        return torch.where(has_low & has_high, two, torch.where(has_low | has_high, one, none))


for registry in (biject_to, transform_to):
    registry.register(Between, OntoBetween)
