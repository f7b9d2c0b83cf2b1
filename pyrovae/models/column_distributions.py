"""A distribution of the cells of a table's row, whose columns have families of their own."""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size


class EachColumn(TorchDistribution):
    """Independent cells `(..., num_columns)`, each block of neighbouring columns under a distribution of its own.

    The columns are the last batch dimension and not an event, so that each cell has its own log-density and can be
    masked. `.to_event(1)` makes a row the event.

    Args:
        blocks: A distribution for each block, with a batch shape `(..., columns of the block)` and scalar events.
        sizes: The number of columns in each block.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self, blocks: Sequence[TorchDistribution], sizes: Sequence[int], validate_args: bool | None = None
    ) -> None:
        leading = torch.broadcast_shapes(*(block.batch_shape[:-1] for block in blocks))
        self.sizes = tuple(sizes)
        self.blocks = self._expanded(blocks, leading)
        super().__init__(torch.Size((*leading, sum(sizes))), validate_args=validate_args)

    def _expanded(self, blocks: Sequence[TorchDistribution], leading: Sequence[int]) -> tuple[TorchDistribution, ...]:
        shapes = [torch.Size((*leading, size)) for size in self.sizes]
        pairs = zip(blocks, shapes, strict=True)
        return tuple(block if block.batch_shape == shape else block.expand(shape) for block, shape in pairs)

    @property
    def support(self) -> constraints.Constraint:
        return _EachSupport([block.support for block in self.blocks], self.sizes)  # type: ignore[misc]

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        new = self._get_checked_instance(EachColumn, _instance)
        new.sizes, new.blocks = self.sizes, self._expanded(self.blocks, batch_shape[:-1])
        super(EachColumn, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        pairs = zip(self.blocks, value.split(self.sizes, -1), strict=True)
        return torch.cat([block.log_prob(columns) for block, columns in pairs], -1)

    @property
    def mean(self) -> Tensor:
        return torch.cat([block.mean for block in self.blocks], -1)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return torch.cat([block.sample(sample_shape) for block in self.blocks], -1)


class _EachSupport(constraints.Constraint):
    """The cells of which each lies in the support of its column."""

    def __init__(self, supports: Sequence[constraints.Constraint], sizes: Sequence[int]) -> None:
        self.supports, self.sizes = supports, sizes

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return all(support.is_discrete for support in self.supports)

    def check(self, value: Tensor) -> Tensor:
        pairs = zip(self.supports, value.split(self.sizes, -1), strict=True)
        return torch.cat([support.check(columns) for support, columns in pairs], -1)
