"""The ELBO of discrete latents as a sum over all of their values."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.errors import InputError, require
from pyrovae.objectives.base import DifferentiableELBO, weighted_terms
from pyrovae.objectives.pair import Pair, base_of, pair_at, run_pair

MAX_STATES = 2**16


@dataclass(frozen=True)
class EnumeratedELBO(DifferentiableELBO):
    """sum_z q(z|x) (log p(x, z) - log q(z|x)) over every value of all latents: the ELBO and its gradient, exactly.

    For sites of discrete distributions that can be enumerated, vectors of them too (`to_event`), which Pyro's
    `TraceEnum_ELBO` does not take; of several sites each may depend on the others. Memory grows with the number of
    values, at most 65,536: those of ten bits are 1,024, each of which is decoded for each datum. A beta on the latents
    multiplies the KL.
    """

    takes_masked = False

    def differentiable_loss(self, model: Callable, guide: Callable, *args, **kwargs) -> Tensor:
        sites = run_pair(model, guide, *args, **kwargs).guide_sites
        values = {name: value.expand(-1, len(args[0]), *value.shape[2:]) for name, value in states(sites).items()}
        terms = weighted_terms(pair_at(model, guide, values, *args, **kwargs))
        return -terms.scale * (terms.score.exp() * terms.log_weights).sum()

    def check(self, pair: Pair) -> None:
        """Raises `InputError` where the latents are not discrete, or too many."""
        weighted_terms(pair)
        states(pair.guide_sites)


def states(sites: dict[str, dict]) -> dict[str, Tensor]:
    """Every joint value of discrete latent sites, for each site `(num_states, 1, *event)`.

    Raises `InputError` where a site cannot be enumerated, or there are more than 65,536 values.
    """
    each = {name: _elements(name, site["fn"]) for name, site in sites.items()}
    num_states = math.prod(len(values) ** math.prod(shape) for values, shape in each.values())
    rule = f"latents to be enumerated must have at most {MAX_STATES:,} values"
    require(num_states <= MAX_STATES, f"{rule}, got {_size(each)}")
    numbers = [torch.arange(len(values)) for values, shape in each.values() for _ in range(math.prod(shape))]
    columns = torch.cartesian_prod(*numbers).reshape(num_states, -1)
    result, start = {}, 0
    for name, (values, shape) in each.items():
        stop = start + math.prod(shape)
        index = columns[:, start:stop].to(values.device)
        result[name] = values[index].reshape(num_states, 1, *shape, *values.shape[1:])
        start = stop
    return result


def _elements(name: str, fn) -> tuple[Tensor, torch.Size]:
    """The values of one element of a site, and the shape that its event has of such elements."""
    base = base_of(fn)
    if not base.has_enumerate_support:
        kind = type(base).__name__
        raise InputError(f'enumeration needs discrete latents of finitely many values, got {kind} at site "{name}"')
    values = base.enumerate_support(expand=False).reshape(-1, *base.event_shape)
    return values, fn.event_shape[: fn.event_dim - base.event_dim]


def _size(each: dict[str, tuple[Tensor, torch.Size]]) -> str:
    sizes = (f'{len(values)} for each of {math.prod(shape)} at site "{name}"' for name, (values, shape) in each.items())
    return ", ".join(sizes)
