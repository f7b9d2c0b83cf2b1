"""The running statistics of batch normalisation: they move once per step, however often a step runs the pair."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from pyrovae.common import WeakByIdentity, modules_within
from pyrovae.programs.random_choices import owner_of

_known: WeakByIdentity[WeakByIdentity[list]] = WeakByIdentity()


def running_statistics(model: Callable, guide: Callable) -> list[tuple[dict, str]]:
    """Returns where the pair's batch normalisation keeps its running statistics: a dictionary and a key for each."""
    try:
        of_guides = _known.setdefault(owner_of(model), WeakByIdentity)
        return of_guides.setdefault(owner_of(guide), lambda: _found(model, guide))
    except TypeError:  # a program that cannot be referred to weakly
        return _found(model, guide)


def _found(model: Callable, guide: Callable) -> list[tuple[dict, str]]:
    modules = [module for module in modules_within((model, guide)) if isinstance(module, _NormBase)]
    names = ((module._buffers, name) for module in modules for name in module._buffers)
    return [(container, name) for container, name in names if container[name] is not None]


@contextmanager
def kept_statistics(model: Callable, guide: Callable) -> Iterator[None]:
    """Lets copies of the running statistics move within the block: their own move once a step, in the first run."""
    places = running_statistics(model, guide)
    own = [container[name] for container, name in places]
    for (container, name), tensor in zip(places, own, strict=True):
        container[name] = tensor.clone()
    try:
        yield
    finally:
        for (container, name), tensor in zip(places, own, strict=True):
            container[name] = tensor


def saved_statistics(model: Callable, guide: Callable) -> list[tuple[Tensor, Tensor]]:
    """Returns each running statistic and a copy of it, for `restore_statistics`."""
    own = [container[name] for container, name in running_statistics(model, guide)]
    return [(tensor, tensor.clone()) for tensor in own]


@torch.no_grad()
def restore_statistics(saved: list[tuple[Tensor, Tensor]]) -> None:
    """Sets the running statistics back to what `saved_statistics` returned.

    Those that have not moved are not written to: the backward pass of a run before would find them changed.
    """
    for tensor, copy in saved:
        if not torch.equal(tensor, copy):
            tensor.copy_(copy)
