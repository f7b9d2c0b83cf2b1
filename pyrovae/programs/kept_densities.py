"""Computes each log-density of the pair that is being checked once: its checks ask for it half a dozen times."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

if TYPE_CHECKING:
    from pyrovae.programs.pair import Pair


class _Kept:
    """Keeps the log-densities of a site in one run of a pair, with a gradient (True) or without."""

    def __init__(self, site: dict, run: "Pair") -> None:
        self.site, self.run = site, run  # whose addresses then are no other objects'
        self.found: dict[bool, Tensor] = {}

    def of(self, run: "Pair", compute: Callable[[], Tensor]) -> Tensor:
        if run.layout is not self.run.layout or run.guide_sites is not self.run.guide_sites:
            return compute()
        learns = torch.is_grad_enabled()
        if learns not in self.found:
            if not learns and True in self.found:
                return self.found[True].detach()
            if not is_validation_enabled():  # it may be refused when it is validated
                return compute()
            self.found[learns] = compute()
        return self.found[learns]


_KEPT: ContextVar[dict[int, _Kept] | None] = ContextVar("kept densities", default=None)


@contextmanager
def kept_densities() -> Iterator[None]:
    """Keeps the log-densities of the pair that `keep_densities_of` names, within the block."""
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def keep_densities_of(pair: "Pair") -> None:
    """Keeps the log-densities of this pair from now on, and those of no pair before it."""
    kept = _KEPT.get()
    if kept is not None:
        kept.clear()
        for run in pair.runs:
            kept.update({id(site): _Kept(site, run) for site in (*run.model_sites.values(), *run.guide_sites.values())})


def once_while_kept(log_density: Callable[["Pair", str, dict], Tensor]) -> Callable[["Pair", str, dict], Tensor]:
    """Lets `Pair.log_density` take what is kept."""

    @wraps(log_density)
    def of_site(pair: "Pair", name: str, site: dict) -> Tensor:
        all_kept = _KEPT.get()
        kept = all_kept.get(id(site)) if all_kept else None
        return log_density(pair, name, site) if kept is None else kept.of(pair, lambda: log_density(pair, name, site))

    return of_site
