"""The likelihood of a table's rows, whose columns have families of their own."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common import InputError, require
from pyrovae.models.column_distributions import EachColumn, columns_of
from pyrovae.models.likelihoods.base import Likelihood


class Columns(Likelihood):
    """The likelihood of a row of a table, p(x|z) = prod_j p_j(x_j|z), with a family p_j for each column.

    x has shape `(batch, num_columns)`: each cell is a number, and that of a category is 0, 1, 2, ... The decoder's
    output is flat, the outputs of the families one after another, and so is what the encoder sees. Columns that are
    given the same object share its parameters, such as a learned scale, and are computed together. The mean of a column
    of categories is that of their numbers.

    Args:
        families: A likelihood for each column by its name, in the order of the columns.

    Raises:
        InputError: If there is no column, a family is not a likelihood of single numbers, or x has another number of
            columns.

    Example:
        >>> likelihood = pv.Columns(
        ...     {
        ...         "age": pv.Gaussian(1.0, learn_scale=True),
        ...         "sex": pv.Bernoulli(),
        ...         "visits": pv.Poisson(),
        ...         "town": pv.Categorical(5),
        ...     }
        ... )
        >>> likelihood.output_shape((4,))
        (8,)
        >>> vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=likelihood)
        >>> vae.check_data(torch.tensor([[0.3, 1.0, 12.0, 4.0], [-1.2, 0.0, 0.5, 0.0]]))
        Traceback (most recent call last):
        pyrovae...InputError: column "visits": x must be a whole number >= 0 under Poisson, got 0.5 at index (1,)
    """

    fillers: Tensor

    def __init__(self, families: Mapping[str, Likelihood]) -> None:
        super().__init__()
        rule = "families must map the name of each column to a likelihood of single numbers"
        require(isinstance(families, Mapping) and len(families) > 0, f"{rule}, got {families!r}")
        for name, family in families.items():
            fits = isinstance(family, Likelihood) and not isinstance(family, Columns)
            require(fits, f'{rule}, got {type(family).__name__} for column "{name}"')
        self.names = tuple(families)
        groups: dict[int, list[int]] = {}
        for index, family in enumerate(families.values()):
            groups.setdefault(id(family), []).append(index)
        self.groups = tuple(map(tuple, groups.values()))
        of_columns = list(families.values())
        self.families = cast(Sequence[Likelihood], nn.ModuleList(of_columns[indices[0]] for indices in self.groups))
        fillers = torch.tensor([float(family.filler) for family in of_columns])
        self.register_buffer("fillers", fillers, persistent=False)

    @property
    def filler(self) -> Tensor:  # type: ignore[override]
        return self.fillers

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        num, shape = len(self.names), tuple(event_shape)
        require(shape == (num,), f"x must have {num} columns under Columns, got event shape {shape}")
        return (sum(len(indices) * math.prod(family.output_shape(())) for indices, family in self._groups()),)

    def output_bias(self, mean: Tensor) -> Tensor:
        biases = [family.output_bias(mean[index]) for indices, family in self._groups() for index in indices]
        return torch.cat([bias.reshape(-1) for bias in biases])

    def encoder_input(self, x: Tensor, event_dim: int) -> Tensor:
        seen = [family.encoder_input(columns_of(x, indices), 0) for indices, family in self._groups()]
        return torch.cat([columns.reshape(*x.shape[:-1], -1) for columns in seen], -1)

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        parts, start = [], 0
        for indices, family in self._groups():
            shape = (len(indices), *family.output_shape(()))
            own = outputs.narrow(-1, start, math.prod(shape))
            part = family(own.reshape(*outputs.shape[:-1], *shape), event_dim=0)
            rule = f'the likelihood of column "{self.names[indices[0]]}" must be one of single numbers'
            require(not part.event_shape, f"{rule}, got events of shape {tuple(part.event_shape)}")
            parts.append((indices, part))
            start += math.prod(shape)
        return EachColumn(parts).to_event(1)

    def check(self, x: Tensor) -> None:
        for indices, family in self._groups():
            for index in indices:
                try:
                    family.check(x[..., index])
                except InputError as error:
                    raise InputError(f'column "{self.names[index]}": {error}') from error

    def has_density(self, x: Tensor) -> bool:
        return all(family.has_density(columns_of(x, indices)) for indices, family in self._groups())

    def _groups(self) -> Iterator[tuple[tuple[int, ...], Likelihood]]:
        return zip(self.groups, self.families, strict=True)
