"""The ELBO of discrete latents as a sum over all of their values."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily

from pyrovae.common import InputError, require
from pyrovae.objectives.base import DifferentiableELBO, Program, WeightedTerms, weighted_terms
from pyrovae.programs import (
    Pair,
    at_every_datum,
    base_of,
    check_masks,
    check_no_zero_weights,
    pair_at,
    warn_of_never_drawn,
)

MAX_STATES = 2**16


@dataclass(frozen=True)
class EnumeratedELBO(DifferentiableELBO):
    """sum_z q(z|x) (log p(x, z) - log q(z|x)) over every value of all latents: the ELBO and its gradient, exactly.

    For sites of discrete distributions that can be enumerated, vectors of them too (`to_event`), which Pyro's
    `TraceEnum_ELBO` does not take; of several sites each may depend on the others. Memory grows with the number of
    values, at most 65,536: those of ten bits are 1,024, at each of which the likelihood of each datum is taken. A beta
    on the latents multiplies the KL.
    """

    def _differentiable_loss(self, program: Program) -> Tensor:
        drawn = program.run(1, once=True)  # for its sites

        def run(latents: dict[str, Tensor]) -> WeightedTerms:
            return weighted_terms(pair_at(program.model, program.guide, latents, *program.args, **program.kwargs))

        terms = at_every_datum(run, states(drawn.guide_sites), drawn.batch_shape[1])
        possible = terms.score > -math.inf  # else 0 log 0, which is 0, would be nan
        no_weight = possible & (terms.log_weights == -math.inf)  # the bound is then -inf, and the rest has a gradient
        log_w = torch.where(possible & ~no_weight, terms.log_weights, 0.0)
        bound = (torch.where(possible, torch.where(possible, terms.score, 0.0).exp(), 0.0) * log_w).sum()
        return -terms.scale * (bound - torch.where(no_weight.any(), math.inf, 0.0))

    def check(self, pair: Pair) -> None:
        """Raises `InputError` where the latents are not discrete, too many, or masked."""
        weighted_terms(pair)
        check_masks(pair, False, "enumeration needs latents without a mask")
        states(pair.guide_sites)
        check_no_zero_weights(pair)
        warn_of_never_drawn(pair)


def states(sites: dict[str, dict]) -> dict[str, Tensor]:
    """Every joint value of discrete latent sites, for each site `(num_states, 1, *event)`.

    Raises `InputError` where a site cannot be enumerated, or there are more than 65,536 values.
    """
    require(len(sites) > 0, "enumeration needs a latent site, and there is none")
    each = {name: _elements(name, site["fn"]) for name, site in sites.items()}
    num_states = math.prod(len(values) ** math.prod(shape) for values, shape in each.values())
    rule = f"latents to be enumerated must have at most {MAX_STATES:,} values"
    require(num_states <= MAX_STATES, f"{rule}, got {_size(each)}")
    device = next(iter(each.values()))[0].device
    numbers = [
        torch.arange(len(values), device=device) for values, shape in each.values() for _ in range(math.prod(shape))
    ]
    columns = torch.cartesian_prod(*numbers).reshape(num_states, -1)
    result, start = {}, 0
    for name, (values, shape) in each.items():
        stop = start + math.prod(shape)
        index = columns[:, start:stop]
        result[name] = values[index].reshape(num_states, 1, *shape, *values.shape[1:])
        start = stop
    return result


def _elements(name: str, fn) -> tuple[Tensor, torch.Size]:
    """The values of one element of a site, and the shape that its event has of such elements."""
    base = base_of(fn)
    while isinstance(base, MixtureSameFamily):  # whose values are its components'
        base = base_of(base.component_distribution)
    try:
        values = base.enumerate_support(expand=False).reshape(-1, *base.event_shape)
    except NotImplementedError as error:  # of real numbers, say, or a Binomial of several counts
        rule = "enumeration needs discrete latents of the same finitely many values"
        raise InputError(f'{rule}, got {type(base).__name__} at site "{name}"') from error
    return values, fn.event_shape[: fn.event_dim - base.event_dim]


def _size(each: dict[str, tuple[Tensor, torch.Size]]) -> str:
    sizes = (f'{len(values)} for each of {math.prod(shape)} at site "{name}"' for name, (values, shape) in each.items())
    return ", ".join(sizes)
