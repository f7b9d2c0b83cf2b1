"""Enumerates discrete latent sites: every joint value of them, at which densities can be summed exactly."""

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import MixtureSameFamily

from pyrovae.common import InputError, require
from pyrovae.programs.sites import base_of

# The number of joint values of discrete latents up to which they are summed over.
MAX_STATES = 2**16


def enumerated_states(sites: dict[str, dict]) -> dict[str, Tensor]:
    """Returns every joint value of discrete latent sites, for each site `(num_states, 1, *event)`.

    Raises `InputError` if a site cannot be enumerated, or if there are more than 65,536 values.
    """
    require(len(sites) > 0, "enumeration needs a latent site, and there is none")
    each = {name: elements_of(name, site["fn"]) for name, site in sites.items()}
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


def elements_of(name: str, fn: TorchDistribution) -> tuple[Tensor, torch.Size]:
    """Returns the values of one element of a site, and the shape in which its event holds such elements.

    Raises `InputError` if there are not finitely many.
    """
    base = base_of(fn)
    while isinstance(base, MixtureSameFamily):  # whose values are its components'
        base = base_of(base.component_distribution)
    try:
        values = base.enumerate_support(expand=False).reshape(-1, *base.event_shape)
    except NotImplementedError as error:  # for example real numbers, or a Binomial of several counts
        rule = "enumeration needs discrete latents of the same finitely many values"
        raise InputError(f'{rule}, got {type(base).__name__} at site "{name}"') from error
    return values, fn.event_shape[: fn.event_dim - base.event_dim]


def _size(each: dict[str, tuple[Tensor, torch.Size]]) -> str:
    sizes = (f'{len(values)} for each of {math.prod(shape)} at site "{name}"' for name, (values, shape) in each.items())
    return ", ".join(sizes)
