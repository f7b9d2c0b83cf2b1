"""What is known of the structures of pairs that were checked, and of the steps that they have taken."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from torch import Tensor

from pyrovae.common import WeakByIdentity
from pyrovae.programs.enumerated_guide import mark_of
from pyrovae.programs.layout import frames_of
from pyrovae.programs.mask_checks import exposed
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import owner_of
from pyrovae.programs.sites import base_of, is_autoencoder, is_masked
from pyrovae.programs.stored_parameters import own_and_stored

CHECKED_FROM = 16  # the number of the first step that is checked again

_known: WeakByIdentity[WeakByIdentity[dict]] = WeakByIdentity()


def _structure(pair: Pair) -> tuple:
    of_sites = tuple(
        (name, type(site["fn"]), type(base_of(site["fn"])), site["fn"].event_dim, *_marks(site))
        for sites in (pair.model_sites, pair.guide_sites)
        for name, site in sites.items()
    )
    frames = [f for s in (*pair.model_sites.values(), *pair.guide_sites.values()) for f in frames_of(s)]
    subsampled = frozenset(frame.name for frame in frames if frame.full_size not in (None, -1, frame.size))
    return (pair.layout, subsampled, _trained(pair), *of_sites)


def _trained(pair: Pair) -> frozenset[str]:
    """Returns the names of trained parameters where it counts: a map of auxiliary sites may be frozen at first."""
    if not pair.guide_only:
        return frozenset()
    return frozenset(p["name"] for p in pair.parameters if p["value"].unconstrained().requires_grad)


def _marks(site: dict) -> tuple:
    return is_masked(site), is_autoencoder(site), mark_of(site)


def _known_of(model: Callable, guide: Callable) -> dict:
    """Returns what is known of a pair; it is forgotten with the objects that its programs belong to."""
    return _known.setdefault(owner_of(model), WeakByIdentity).setdefault(owner_of(guide), dict)


def _key(model: Callable, guide: Callable, needs: object, pair: Pair) -> tuple:
    differing = tuple((id(own), id(stored)) for _, own, stored in own_and_stored(pair.parameters))
    return (*_names(model, guide), needs, _structure(pair), differing)


def is_known(model: Callable, guide: Callable, needs: object, pair: Pair) -> bool:
    try:
        shown, most = _known_of(model, guide).get(_key(model, guide, needs, pair), (None, 0))
        return pair.batch < 2 * most and _is_part(exposed(pair), shown)
    except TypeError:  # a program that cannot be referred to weakly, or an objective that cannot be hashed
        return False


def is_due(model: Callable, guide: Callable, needs: object) -> bool:
    """Counts the steps of a pair, and returns whether this one is to be checked, whatever was found before."""
    with suppress(TypeError):
        known, key = _known_of(model, guide), ("steps", *_names(model, guide), needs)
        known[key] = number = known.get(key, 0) + 1
        return _checks_again.get() or (number >= CHECKED_FROM and number & (number - 1) == 0)
    return True


def is_last(model: Callable, guide: Callable, needs: object, pair: Pair) -> bool:
    """Returns True if the pair's outline is the one that came here last: it says more than the structure does."""
    try:
        if pair.outline is None or own_and_stored(pair.parameters):
            return False
        return _known_of(model, guide).get(_key_of_last(model, guide, needs)) is pair.outline
    except TypeError:
        return False


def remember_last(model: Callable, guide: Callable, needs: object, pair: Pair) -> None:
    with suppress(TypeError):
        _known_of(model, guide)[_key_of_last(model, guide, needs)] = pair.outline


def _key_of_last(model: Callable, guide: Callable, needs: object) -> tuple:
    return "last", *_names(model, guide), needs


def drawn_outside(model: Callable, guide: Callable) -> set[tuple]:
    """Returns the families of sites, drawn outside the prior, at which a pair has passed; a check adds to it."""
    try:
        return _known_of(model, guide).setdefault(("outside", *_names(model, guide)), set())
    except TypeError:  # a program that cannot be referred to weakly
        return set()


def _names(model: Callable, guide: Callable) -> tuple[str, str]:
    return getattr(model, "__name__", ""), getattr(guide, "__name__", "")


def remember(model: Callable, guide: Callable, needs: object, pair: Pair) -> None:
    with suppress(TypeError):
        known, key = _known_of(model, guide), _key(model, guide, needs, pair)
        shown, (before, most) = exposed(pair), known.get(key, (None, 0))
        known[key] = shown if shown is None or before is None else shown | before, max(pair.batch, most)


def _is_part(shown: Tensor | None, known: Tensor | None) -> bool:
    """Returns True if a batch has no latent masked beside an unmasked site that no batch before had."""
    return shown is None or (known is not None and not bool((shown & ~known.to(shown.device)).any()))


@contextmanager
def checking_again() -> Iterator[None]:
    """Lets every step within the block be checked, as those of a graph are not seen here and cannot be counted."""
    token = _checks_again.set(True)
    try:
        yield
    finally:
        _checks_again.reset(token)


_checks_again: ContextVar[bool] = ContextVar("_checks_again", default=False)
