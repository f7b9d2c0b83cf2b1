"""Compares constraints, which are supports of distributions, and finds values inside them."""

import math
from functools import reduce
from typing import Any

import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.distributions import constraints, transform_to

from pyrovae.programs.between import ROUNDINGS, Between

_INTERVALS = (
    Between,
    constraints._Real,
    constraints._GreaterThan,
    constraints._GreaterThanEq,
    constraints._LessThan,
    constraints._Interval,
    constraints._HalfOpenInterval,
)
_INTEGERS = (
    constraints._Boolean,
    constraints._IntegerInterval,
    constraints._IntegerLessThan,
    constraints._IntegerGreaterThan,
    type(pyro_constraints.integer),
)
_BOUNDS = ("lower_bound", "upper_bound")


def base_support(support: constraints.Constraint) -> constraints.Constraint:
    """Returns the constraint on single elements, without those of events and of a mixture's components."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def bounds(support: constraints.Constraint) -> list[Tensor]:
    """Returns the bounds of a support that are tensors: only those may depend on a latent."""
    return [bound for bound in vars(base_support(support)).values() if isinstance(bound, Tensor)]


def contains(
    outer: constraints.Constraint, inner: constraints.Constraint, compare_tensors: bool = False
) -> bool | None:
    """Returns True if almost every value of `inner` lies in `outer`, False if some do not, None if unknown.

    Bounds that are tensors are compared only with `compare_tensors`: it waits for a GPU, and a graph cannot.
    """
    if isinstance(outer, EitherOf):
        found = [contains(part, inner, compare_tensors) for part in outer.parts]
        return True if True in found else None
    outer, inner = base_support(outer), base_support(inner)
    kinds = kind_of(outer), kind_of(inner)
    if kinds == ("interval", "interval") or kinds == ("integers", "integers"):
        (low, high), (inner_low, inner_high) = ends_of(outer), ends_of(inner)
        if _is_everything(outer):
            return True
        if not any(isinstance(end, Tensor) for end in (low, high, inner_low, inner_high)):
            return low <= inner_low and inner_high <= high
        if not compare_tensors:
            return None
        return _within(*(torch.as_tensor(end) for end in (low, high, inner_low, inner_high)))
    if kinds[0] == "interval" and _is_everything(outer) and not _is_discrete(inner):
        return True
    return True if type(outer) is type(inner) and not vars(outer) and not vars(inner) else None


def interior(support: constraints.Constraint, value: Tensor, other: bool = False) -> Tensor | None:
    """Returns values inside the support, of a shape that `value` broadcasts to, or None if none can be given.

    With `other` they are further ones, unless the support has a single value.
    """
    base = base_support(support)
    if kind_of(base) == "integers":
        low, high = _given_ends_of(base)
        start = low if low is not None else high if high is not None else 0
        found = torch.zeros_like(value) + start
        if not other:
            return found
        return found - 1 if low is None and high is not None else found + (1 if high is None else found < high)
    if isinstance(base, constraints._OneHot):
        index = torch.full((1,), int(other and value.shape[-1] > 1), device=value.device)
        return torch.zeros_like(value).index_fill(-1, index, 1)
    try:
        found = transform_to(base)(torch.ones_like(value) if other else torch.zeros_like(value))
        fits = torch.broadcast_shapes(found.shape, value.shape) == found.shape
    except (NotImplementedError, RuntimeError, IndexError):  # for example a Cholesky factor, made of fewer numbers
        return None
    return found if fits else None


def described(support: constraints.Constraint) -> str:
    """Returns the support in a few words, without bounds that are tensors of several different numbers."""
    base = base_support(support)
    numbers = {
        name: bound.flatten()[0] if isinstance(bound, Tensor) else bound
        for name, bound in vars(base).items()
        if not isinstance(bound, Tensor) or (bound.numel() and bool((bound == bound.flatten()[0]).all()))
    }
    kind = type(base).__name__.strip("_")
    inner = ", ".join(
        f"{name}={float(bound):g}" for name, bound in numbers.items() if isinstance(bound, float | int | Tensor)
    )
    return f"{kind}({inner})"


class EitherOf(constraints.Constraint):
    """Holds for the values of either of two constraints with equal event dimensions."""

    def __init__(self, *parts: constraints.Constraint) -> None:
        self.parts = parts

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return self.parts[0].is_discrete

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return self.parts[0].event_dim

    def check(self, value: Tensor) -> Tensor:
        first, second = (part.check(value) for part in self.parts)
        return first | second


def kind_of(support: constraints.Constraint) -> str | None:
    return "interval" if isinstance(support, _INTERVALS) else "integers" if isinstance(support, _INTEGERS) else None


def _is_discrete(support: constraints.Constraint) -> bool:
    try:
        return support.is_discrete
    except NotImplementedError:
        return True


def _given_ends_of(support: constraints.Constraint) -> tuple[Any, Any]:
    """Returns the lower and the upper bound, None for one that is missing."""
    if isinstance(support, constraints._Boolean):
        return 0, 1
    low, high = (vars(support).get(name) for name in _BOUNDS)
    return low, high


def ends_of(support: constraints.Constraint) -> tuple[Any, Any]:
    """Returns the lower and the upper bound as numbers or tensors, infinite if missing."""
    low, high = _given_ends_of(support)
    return -math.inf if low is None else low, math.inf if high is None else high


def _within(low: Tensor, high: Tensor, inner_low: Tensor, inner_high: Tensor) -> bool:
    """Returns True if inner bounds lie nowhere outside the others, but for rounding."""
    ends = low, high, inner_low, inner_high
    unit = max((torch.finfo(end.dtype).eps for end in ends if end.is_floating_point()), default=0.0)
    low, high, inner_low, inner_high = exact = [end.double() for end in ends]
    sizes = (torch.where(end.isfinite(), end.abs(), 0.0) for end in exact)
    away = ROUNDINGS * unit * reduce(torch.maximum, sizes)
    return bool(((low <= inner_low + away) & (inner_high <= high + away)).all())


def _is_everything(support: constraints.Constraint) -> bool:
    return _given_ends_of(support) == (None, None)
