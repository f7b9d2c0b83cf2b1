"""One gate for every entrance: checks that a pair can give what is asked of it, in training or in measuring.

An objective's loss, `fit`, `CompiledSVI`, `compare`, `race` and all estimates of log p(x) come through here. A check
takes several runs of the pair, and is done once for each structure: the pair's programs, the kinds of its sites, and
what is asked. A step of plain SVI only asks whether the structure is known.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyro
from torch.nn.modules.batchnorm import _NormBase

from pyrovae.common import CapturedState, evaluation_mode, kept_generators, require
from pyrovae.programs.auxiliary_sites import check_auxiliary
from pyrovae.programs.enumerated_guide import is_marked
from pyrovae.programs.pair import Pair
from pyrovae.programs.particle_checks import check_pair
from pyrovae.programs.random_choices import is_traced, owner_of
from pyrovae.programs.sites import base_of
from pyrovae.programs.stored_parameters import check_parameters, own_and_stored
from pyrovae.programs.support_checks import check_no_zero_weights, never_drawn


class Needs(Protocol):
    """States what is asked of a pair: an objective does, and an estimate of log p(x)."""

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if the pair does not give it."""


@dataclass(frozen=True)
class Weights:
    """Asks for importance weights of a density, for an estimate of log p(x) or of a bound on it.

    - `densities`: the data have a density (no grey pixels under a Bernoulli).
    - `everywhere`: the guide draws wherever the prior can, or the estimate converges too low. A bound with finitely
      many particles stays valid.
    - `zeros`: a weight may be 0, as it may be in a mean of weights and not in a mean of their logarithms.
    """

    densities: bool = True
    everywhere: bool = True
    zeros: bool = True

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if the pair does not give such weights."""
        if self.densities:
            pair.check_densities(auxiliary=True)
        if not self.zeros:
            check_no_zero_weights(pair)
        if self.everywhere:
            missing = never_drawn(pair)
            require(missing is None, f"{missing}: log p(x) would come out too low; see proposals.defensive")


def check(model: Callable, guide: Callable, needs: Needs | None, *args, **kwargs) -> Pair:
    """Returns two particles of the pair, run in evaluation mode, after a check that it gives what `needs` asks for.

    With None the pair must only keep the contract. Raises `InputError` otherwise, in one line that says why.
    """
    with evaluation_mode(model, guide), kept_generators(), pyro.validation_enabled(True):
        pair = check_pair(model, guide, *args, **kwargs)
        if not _is_known(model, guide, None, pair):
            check_parameters(pair.parameters, model, guide, args, kwargs)
            check_auxiliary(pair, guide, args, kwargs)
            _remember(model, guide, None, pair)
        if needs is not None:
            needs.check(pair)
            _remember(model, guide, needs, pair)
    return pair


def check_once(model: Callable, guide: Callable, needs: Needs | None, pair: Pair, args: tuple, kwargs: dict) -> None:
    """Calls `check` unless a pair of this structure has passed it; `pair` is a run of it as it is now."""
    if is_traced():  # the eager step before it was checked
        return
    if not _is_known(model, guide, needs, pair):
        check(model, guide, needs, *args, **kwargs)
        _remember(model, guide, needs, pair)


# Structures that were checked -----------------------------------------------------------------------------------------

_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _structure(pair: Pair) -> tuple:
    return tuple(
        (name, type(site["fn"]), type(base_of(site["fn"])), site["fn"].event_dim, site["mask"] is None, is_marked(site))
        for sites in (pair.model_sites, pair.guide_sites)
        for name, site in sites.items()
    )


def _known_of(model: Callable, guide: Callable) -> dict:
    """Returns what is known of a pair; it is forgotten with the objects that its programs belong to."""
    of_guides = _known.setdefault(owner_of(model), weakref.WeakKeyDictionary())
    return of_guides.setdefault(owner_of(guide), {})


def _key(model: Callable, guide: Callable, needs: Needs | None, pair: Pair) -> tuple:
    names = getattr(model, "__name__", ""), getattr(guide, "__name__", "")
    differing = tuple((id(own), id(stored)) for _, own, stored in own_and_stored(pair.parameters))
    return (*names, needs, _structure(pair), differing)


def _is_known(model: Callable, guide: Callable, needs: Needs | None, pair: Pair) -> bool:
    try:
        return _key(model, guide, needs, pair) in _known_of(model, guide)
    except TypeError:  # a program or an objective that cannot be hashed, or not be referred to weakly
        return False


def _remember(model: Callable, guide: Callable, needs: Needs | None, pair: Pair) -> None:
    try:
        _known_of(model, guide)[_key(model, guide, needs, pair)] = True
    except TypeError:
        return


def running_statistics(model: Callable, guide: Callable) -> list[tuple[dict, str]]:
    """Returns where the pair's batch normalisation keeps its running statistics: a dictionary and a key for each."""
    try:
        known = _known_of(model, guide)
    except TypeError:
        known = {}
    if "statistics" not in known:
        modules = [module for module in CapturedState((model, guide)).modules if isinstance(module, _NormBase)]
        names = ((module._buffers, name) for module in modules for name in module._buffers)
        known["statistics"] = [(container, name) for container, name in names if container[name] is not None]
    return known["statistics"]
