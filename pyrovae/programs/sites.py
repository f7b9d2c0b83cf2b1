"""Reads the sample sites of a trace: which there are, their families, supports and masks."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import (
    Delta,
    ExpandedDistribution,
    ImproperUniform,
    Independent,
    MaskedDistribution,
    TorchDistribution,
    TransformedDistribution,
)
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrovae.common import InputError, first_line
from pyrovae.programs.distribution_supports import support_of
from pyrovae.programs.supports import described

WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)


def sample_sites(trace: poutine.Trace) -> dict[str, dict]:
    """Returns the sample sites of a trace by name, without those of plates and of `pyro.deterministic`."""
    nodes: dict[str, Any] = prune_subsample_sites(trace).nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not site["infer"].get("_deterministic")
    }


def drawn_sites(model: Callable, *args, **kwargs) -> dict[str, dict]:
    """Returns the sample sites of a run of a model that draws its latents; `InputError` if a prior has no draws."""
    try:
        return sample_sites(poutine.trace(model).get_trace(*args, **kwargs))
    except NotImplementedError as error:  # of an improper prior
        raise InputError(f"model must draw its latents, and one has no draws: {first_line(error)}") from error


def base_of(fn: TorchDistribution) -> TorchDistribution:
    """Returns the family of a distribution, without its `to_event`, `mask` and `expand`."""
    while _is_wrapper(type(fn)):
        fn = fn.base_dist
    return fn


@lru_cache(maxsize=1024)
def _is_wrapper(kind: type) -> bool:
    """Returns what `isinstance` says, which is slow for Pyro's classes, as they are abstract."""
    return issubclass(kind, WRAPPERS)


def is_discrete(fn: TorchDistribution) -> bool | None:
    """Returns True for a mass and False for a density.

    Returns None for a point, which goes with either, and for a distribution that does not declare its support.
    """
    base = base_of(fn)
    try:
        return None if isinstance(base, Delta) else base.support.is_discrete  # type: ignore[union-attr]
    except NotImplementedError:
        return None


def is_improper(fn: TorchDistribution) -> bool:
    """Returns True for a density that does not integrate to 1, or a transformation of one."""
    base = base_of(fn)
    while isinstance(base, TransformedDistribution):
        base = base_of(base.base_dist)
    return isinstance(base, ImproperUniform)


def outside_support(site: dict) -> str | None:
    """Describes the first element of a site's value that lies outside the support and that no mask excludes.

    Returns None if there is no such element.
    """
    fn = site["fn"]
    support = support_of(base_of(fn))
    inside = support.check(site["value"])
    for mask, depth in masks_of(site):
        mask = torch.as_tensor(mask)
        inside = inside | ~mask.reshape(mask.shape + (1,) * (depth if mask.dim() else 0))
    if bool(inside.all()):
        return None
    index = tuple((~inside).nonzero()[0].tolist())
    value = site["value"].expand(inside.shape + site["value"].shape[site["value"].dim() - support.event_dim :])
    return f"{str(value[index].tolist())[:80]} at index {index} is outside {described(support)}"


def masks_of(site: dict) -> list[tuple[Tensor | bool, int]]:
    """Returns the masks of a site, from handlers and from its distribution, each with a number of dimensions.

    The number is how many dimensions an element of the value has to the right of the mask's own.
    """
    fn, found, depth = site["fn"], [(site["mask"], 0)], 0
    while isinstance(fn, WRAPPERS):
        if isinstance(fn, MaskedDistribution):
            found.append((fn._mask, depth))
        if isinstance(fn, Independent):
            depth += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    return [(mask, depth - outside) for mask, outside in found if mask is not None and mask is not True]


def is_masked(site: dict) -> bool:
    """Returns True if a handler or the distribution itself masks the site."""
    if site["mask"] is not None and site["mask"] is not True:
        return True
    fn = site["fn"]
    while isinstance(fn, WRAPPERS):
        if isinstance(fn, MaskedDistribution) and fn._mask is not True:
            return True
        fn = fn.base_dist
    return False


def is_autoencoder(site: dict) -> bool:
    """Returns True for the code of an autoencoder: a masked latent that `infer={"is_autoencoder": True}` marks."""
    return bool(site["infer"].get("is_autoencoder")) and is_masked(site)


def seen(site: dict) -> Tensor:
    """Returns which elements of a site's value no mask excludes, of a shape that broadcasts with the value's."""
    found = None
    for mask, depth in masks_of(site):
        mask, right = torch.as_tensor(mask), depth + base_of(site["fn"]).event_dim
        mask = mask.reshape(mask.shape + (1,) * right) if mask.dim() and right else mask
        found = mask if found is None else found & mask
    return torch.tensor(True) if found is None else found


def without_mask(site: dict) -> dict:
    """Returns the site without its masks, those of handlers and those of its distribution."""
    return {**site, "mask": None, "fn": _without_mask(site["fn"])} if is_masked(site) else site


def without_masks_of_latents(program: Callable) -> Callable:
    """Returns the program with the masks of its latents taken off."""

    def unmasked(*args, **kwargs) -> None:
        with _MasksOff():
            program(*args, **kwargs)

    return unmasked


class _MasksOff(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg.update(without_mask(msg))


def _without_mask(fn: TorchDistribution) -> TorchDistribution:
    match fn:
        case MaskedDistribution():
            return _without_mask(fn.base_dist)
        case Independent():
            return _without_mask(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
        case ExpandedDistribution():
            return _without_mask(fn.base_dist).expand(fn.batch_shape)
    return fn
