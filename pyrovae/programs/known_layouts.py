"""Remembers of each pair how its last run was laid out, so that the next run need not find it out.

A step of plain SVI is to cost what it costs in Pyro. What a run's layout and the checks of its sites look at is the
sites' *outline*: while that stays the same, they would find the same again.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from pyrovae.common import WeakByIdentity
from pyrovae.programs.data_plates import DataPlate
from pyrovae.programs.layout import Layout, Reading
from pyrovae.programs.random_choices import owner_of
from pyrovae.programs.sites import base_of, is_discrete, is_masked


class LastRun(NamedTuple):
    """Holds the layout of a pair's last run, its data plates, and the outline of its sites, None if it has none."""

    layout: Layout
    plates: tuple[DataPlate, ...] = ()
    outline: tuple | None = None


def outline_of(model_sites: dict[str, dict], guide_sites: dict[str, dict]) -> tuple | None:
    """Returns names, plates, kinds and shapes of the sites, or None if a site is masked or marked by `infer`."""
    outline: list[tuple] = []
    for program, sites in enumerate((model_sites, guide_sites)):
        for name, site in sites.items():
            if site["infer"] or is_masked(site):
                return None
            fn, frames = site["fn"], tuple(map(tuple, site["cond_indep_stack"]))  # frames equal others of any full size
            kinds = type(fn), type(base_of(fn)), is_discrete(fn), fn.batch_shape, fn.event_shape
            outline.append((program, name, site["is_observed"], frames, kinds, site["value"].shape))
    return tuple(outline)


_known: WeakByIdentity[WeakByIdentity[dict]] = WeakByIdentity()


def _known_of(model: Callable, guide: Callable) -> dict:
    """Returns what is known of a pair; it is forgotten with the objects that its programs belong to."""
    return _known.setdefault(owner_of(model), WeakByIdentity).setdefault(owner_of(guide), dict)


def _key(model: Callable, guide: Callable, reading: Reading, modes: tuple | None = None) -> tuple:
    """Returns what a layout is kept under. Batch normalisation takes particles in evaluation and not in training."""
    names = getattr(model, "__name__", ""), getattr(guide, "__name__", "")
    return *names, reading, _modes(model, guide) if modes is None else modes


def _modes(model: Callable, guide: Callable) -> tuple:
    return tuple(getattr(owner_of(program), "training", None) for program in (model, guide))


def last_run(model: Callable, guide: Callable, reading: Reading) -> LastRun | None:
    """Returns what is known of the pair's last run, or None if it has not been run."""
    try:
        return _known_of(model, guide).get(_key(model, guide, reading))
    except TypeError:  # a program that cannot be referred to weakly
        return None


def known_layout(model: Callable, guide: Callable, reading: Reading) -> Layout | None:
    """Returns the layout of the pair's last run, or None if it has not been run."""
    found = last_run(model, guide, reading)
    return None if found is None else found.layout


def remember(model: Callable, guide: Callable, reading: Reading, run: LastRun) -> None:
    """Keeps what is known of a run for the next run of the pair."""
    with suppress(TypeError):
        _known_of(model, guide)[_key(model, guide, reading)] = run


def run_one_by_one(
    model: Callable,
    guide: Callable,
    reading: Reading,
    layout: Layout,
    why: str | None = None,
    in_any_mode: bool = False,
) -> Layout:
    """Returns the layout for particles one after another, from now on; `why` is kept for `reason_unsaid`.

    It holds for the mode that the programs are in, training or evaluation, or with `in_any_mode` for both.
    """
    layout = replace(layout, is_vectorized=False)
    all_modes = product(*([mode] if mode is None else [True, False] for mode in _modes(model, guide)))
    with suppress(TypeError):
        for modes in all_modes if in_any_mode else [None]:
            _known_of(model, guide)[_key(model, guide, reading, modes)] = LastRun(layout)
    if why is not None:
        with suppress(TypeError):
            _known_of(model, guide)["why", *_key(model, guide, reading)] = why
    return layout


def reason_unsaid(model: Callable, guide: Callable, reading: Reading) -> str | None:
    """Returns why particles run one after another, or None if there is no reason or one was returned before.

    In training and in evaluation it may be found in other words.
    """
    try:
        known = _known_of(model, guide)
        why = known.pop(("why", *_key(model, guide, reading)), None)
    except TypeError:
        return None
    said = ("said", *_key(model, guide, reading, ()))
    return why if why is not None and known.setdefault(said, why) == why else None
