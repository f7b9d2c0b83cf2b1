"""Holds a program as a user brings it: a model, a guide and the arguments of one call."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from helpers import suite_seed
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn


@dataclass(frozen=True)
class Program:
    """Holds a model and a guide with the arguments of one call of both.

    Attributes:
        model: The generative program.
        guide: The inference program.
        args: What both take.
        num_data: How many numbers log p(x) has: one for each datum, or a single one for the evidence of all data.
        plate: The data plate, where the program alone does not tell which of its plates that is.
        pyro_loss: The loss of Pyro that the program was written for.
        log_px: Returns the exact log p(x), `(num_data,)`, at the present parameters, where it is known.
        untrained: Parameters that no objective moves, by the beginnings of their names.
        same_draws: True if our ELBO and Pyro's are one number on the same draws. They are not where batch normalisation
            sees the copies that Pyro enumerates, and where the guide observes.
    """

    model: Callable
    guide: Callable
    args: tuple = ()
    num_data: int = 1
    plate: str | None = None
    pyro_loss: ELBO = field(default_factory=Trace_ELBO)
    log_px: Callable[[], Tensor] | None = None
    untrained: tuple[str, ...] = ()
    same_draws: bool = True


def source(number: int) -> torch.Generator:
    """Returns the generator of a program's data."""
    return torch.Generator().manual_seed(suite_seed(number))


def bits(generator: torch.Generator, *shape: int) -> Tensor:
    """Returns zeros and ones."""
    return torch.randint(2, shape, generator=generator).float()


def normals(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


class TwoHeads(nn.Module):
    """Returns a location and a positive scale, each with `out_dim` elements."""

    def __init__(self, in_dim: int, out_dim: int, hidden: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(in_dim, hidden), nn.Softplus())
        self.loc = nn.Linear(hidden, out_dim)
        self.log_scale = nn.Linear(hidden, out_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x)
        return self.loc(hidden), self.log_scale(hidden).exp()


def mlp(*sizes: int) -> nn.Sequential:
    """Returns linear layers of these sizes with Softplus between them."""
    layers: list[nn.Module] = []
    for one, other in itertools.pairwise(sizes):
        layers += [nn.Linear(one, other), nn.Softplus()]
    return nn.Sequential(*layers[:-1])


def joined(*parts: Tensor) -> Tensor:
    """Concatenates along the last dimension, once all other dimensions are broadcast: an enumerated one has more."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


def log_normal(x: Tensor, scale: Tensor | float) -> Tensor:
    """Returns log Normal(x; 0, scale)."""
    return -0.5 * (x / scale) ** 2 - math.log(2 * math.pi) / 2 - torch.as_tensor(scale).log()
