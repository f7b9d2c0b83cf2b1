"""The likelihood of a table's rows, whose columns have families of their own."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common import InputError, require, shown
from pyrovae.models.column_distributions import EachColumn
from pyrovae.models.likelihoods.base import Likelihood


class Columns(Likelihood):
    """The likelihood of a row of a table, p(x|z) = prod_j p_j(x_j|z), with a family p_j for each column.

    x has shape `(batch, num_columns)`: each cell is a number, and that of a category is 0, 1, 2, ... The decoder's
    output is flat, the outputs of the families one after another, and so is what the encoder sees. The mean of a column
    of categories is that of their numbers.

    Args:
        families: A likelihood for each column by its name, in the order of the columns. The key may be a tuple of names
            of neighbouring columns: these share the parameters of their likelihood, such as a learned scale, and are
            computed together, which is faster for many. `Columns` copies the likelihoods.

    Raises:
        InputError: If there is no column, a name comes twice, a family is not a likelihood of single numbers, or x has
            another number of columns.

    Example:
        >>> likelihood = pv.Columns(
        ...     {
        ...         "age": pv.Gaussian(1.0, learn_scale=True),
        ...         "sex": pv.Bernoulli(),
        ...         ("visits", "children"): pv.Poisson(),
        ...         "town": pv.Categorical(5),
        ...     }
        ... )
        >>> likelihood.output_shape((5,))
        (9,)
        >>> vae = pv.VAE((5,), latent_dim=2, hidden=(8,), likelihood=likelihood)
        >>> vae.check_data(torch.tensor([[0.3, 1.0, 12.0, 1.0, 4.0], [-1.2, 0.0, 0.5, 0.0, 0.0]]))
        Traceback (most recent call last):
        pyrovae...InputError: column "visits": x must be a whole number >= 0 under Poisson, got 0.5 at index (1,)
    """

    fillers: Tensor

    def __init__(self, families: Mapping[str | tuple[str, ...], Likelihood]) -> None:
        super().__init__()
        rule = "families must map the name of each column to a likelihood of single numbers"
        require(isinstance(families, Mapping) and len(families) > 0, f"{rule}, got {shown(families)}")
        for key, family in families.items():
            fits = isinstance(family, Likelihood) and not isinstance(family, Columns)
            require(fits, f"{rule}, got {type(family).__name__} for {shown(key)}")
        blocks = [key if isinstance(key, tuple) else (key,) for key in families]
        self.names = tuple(name for block in blocks for name in block)
        require(all(isinstance(name, str) for name in self.names), f"{rule}, got the names {self.names}")
        require(len(set(self.names)) == len(self.names), f"families must name each column once, got {self.names}")
        self.sizes = tuple(map(len, blocks))
        require(min(self.sizes) > 0, f"{rule}, got () for a name")
        self.families = cast(Sequence[Likelihood], nn.ModuleList(map(copy.deepcopy, families.values())))
        fillers = [float(family.filler) for size, family in self._blocks() for _ in range(size)]
        self.register_buffer("fillers", torch.tensor(fillers), persistent=False)

    def _blocks(self) -> Iterator[tuple[int, Likelihood]]:
        """Yields the number of columns of each block, and their likelihood."""
        return zip(self.sizes, self.families, strict=True)

    @property
    def filler(self) -> Tensor:  # type: ignore[override]
        return self.fillers

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        num, shape = len(self.names), tuple(event_shape)
        require(shape == (num,), f"x must have {num} columns under Columns, got event shape {shape}")
        return (sum(size * math.prod(family.output_shape(())) for size, family in self._blocks()),)

    def output_bias(self, mean: Tensor) -> Tensor:
        pairs = zip(self.families, mean.split(self.sizes), strict=True)
        return torch.cat([family.output_bias(one).reshape(-1) for family, means in pairs for one in means])

    def encoder_input(self, x: Tensor, event_dim: int) -> Tensor:
        pairs = zip(self.families, x.split(self.sizes, -1), strict=True)
        seen = [family.encoder_input(columns, 0) for family, columns in pairs]
        return torch.cat([columns.reshape(*x.shape[:-1], -1) for columns in seen], -1)

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        shapes = [(size, *family.output_shape(())) for size, family in self._blocks()]
        blocks = []
        for family, shape, own in zip(self.families, shapes, outputs.split([*map(math.prod, shapes)], -1), strict=True):
            block = family(own.reshape(*outputs.shape[:-1], *shape), event_dim=0)  # its columns are part of the batch
            rule = f"{type(family).__name__} must be a likelihood of single numbers"
            require(not block.event_shape, f"{rule} in Columns, got events of shape {tuple(block.event_shape)}")
            blocks.append(block)
        return EachColumn(blocks, self.sizes).to_event(1)

    def check(self, x: Tensor) -> None:
        families = [family for size, family in self._blocks() for _ in range(size)]
        for name, family, column in zip(self.names, families, x.unbind(-1), strict=True):
            try:
                family.check(column)
            except InputError as error:
                raise InputError(f'column "{name}": {error}') from error

    def has_density(self, x: Tensor) -> bool:
        pairs = zip(self.families, x.split(self.sizes, -1), strict=True)
        return all(family.has_density(columns) for family, columns in pairs)
