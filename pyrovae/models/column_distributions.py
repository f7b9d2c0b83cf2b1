"""A distribution of the cells of a table's row, whose columns have families of their own."""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

Parts = Sequence[tuple[tuple[int, ...], TorchDistribution]]


class EachColumn(TorchDistribution):
    """Independent cells `(..., num_columns)`, those of each group of columns under a distribution of their own.

    The columns are the last batch dimension and not an event, so that each cell has its own log-density and can be
    masked. `.to_event(1)` makes a row the event.

    Args:
        parts: For each group the indices of its columns, and a distribution with a batch shape `(..., len(indices))`
            and scalar events. Each column is in one group.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, parts: Parts, validate_args: bool | None = None) -> None:
        leading = torch.broadcast_shapes(*(part.batch_shape[:-1] for _, part in parts))
        self.parts = tuple((indices, _expanded(part, (*leading, len(indices)))) for indices, part in parts)
        num_columns = sum(len(indices) for indices, _ in self.parts)
        super().__init__(torch.Size((*leading, num_columns)), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return _EachSupport([(indices, part.support) for indices, part in self.parts])  # type: ignore[misc]

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        new = self._get_checked_instance(EachColumn, _instance)
        leading = tuple(batch_shape[:-1])
        new.parts = tuple((indices, _expanded(part, (*leading, len(indices)))) for indices, part in self.parts)
        super(EachColumn, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        return _side_by_side([(i, part.log_prob(columns_of(value, i))) for i, part in self.parts])

    @property
    def mean(self) -> Tensor:
        return _side_by_side([(i, part.mean) for i, part in self.parts])

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return _side_by_side([(i, part.sample(sample_shape)) for i, part in self.parts])


class _EachSupport(constraints.Constraint):
    """The cells of which each lies in the support of its column."""

    def __init__(self, parts: Sequence[tuple[tuple[int, ...], constraints.Constraint]]) -> None:
        self.parts = parts

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return all(support.is_discrete for _, support in self.parts)

    def check(self, value: Tensor) -> Tensor:
        return _side_by_side([(i, support.check(columns_of(value, i))) for i, support in self.parts])


def _expanded(part: TorchDistribution, batch_shape: tuple[int, ...]) -> TorchDistribution:
    return part if part.batch_shape == batch_shape else part.expand(batch_shape)


def columns_of(value: Tensor, indices: tuple[int, ...]) -> Tensor:
    """Returns the columns of these indices, `(..., len(indices))`; neighbours without a copy."""
    first, num = indices[0], len(indices)
    if indices == tuple(range(first, first + num)):
        return value.narrow(-1, first, num)
    return torch.stack([value[..., index] for index in indices], -1)


def _side_by_side(parts: Sequence[tuple[tuple[int, ...], Tensor]]) -> Tensor:
    """Returns the columns of all groups in their own order, `(..., num_columns)`; leading dimensions broadcast."""
    leading = torch.broadcast_shapes(*(columns.shape[:-1] for _, columns in parts))
    joined = torch.cat([columns.expand(*leading, -1) for _, columns in parts], -1)
    order = [index for indices, _ in parts for index in indices]
    if order == sorted(order):
        return joined
    places = [order.index(column) for column in range(len(order))]
    return torch.stack([joined[..., place] for place in places], -1)
