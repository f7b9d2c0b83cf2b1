"""Checks that a model which observes a part of its data leaves out the other cells, and nothing else.

The hidden cells are numbered, so that each is found again where it is observed, and the model is run three times at the
same latents and random numbers: with NaN there, and at two numberings with two values inside the supports in their
place. All runs must leave out the same elements, every hidden cell among them, and no other term may move. It is then
log p of the observed cells: what is left out integrates to 1.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import InputError, first_line, is_out_of_memory, kept_generators, local_seed, require, takes_missing
from pyrovae.programs.layout import frames_of
from pyrovae.programs.mask_checks import density_of, differ
from pyrovae.programs.observed_parts import LeavesOut, Numbers, guide_of_parts, takes_mask
from pyrovae.programs.sites import sample_sites, seen

ROWS = 128  # with different cells left out, which are enough

_RULE = 'the model must observe cells of x as they are, or say missing = "mask" and leave out those of NaN'


@torch.no_grad()
def check_model_sees_parts(model: Callable, guide: Callable, part: tuple) -> None:
    """Raises `InputError` unless the model's log-density of a part of x is that of the cells which are not NaN.

    A model that says `missing = "mask"` is believed.
    """
    if takes_missing(model) or not bool(part[0].isnan().any()):
        return
    few = _rows_of_each_kind(part)
    if few is not None:
        with suppress(Exception):  # it may be due to the cut, and then the run of all tells
            _check(model, guide, few)
            return
    _check(model, guide, part)


def _check(model: Callable, guide: Callable, part: tuple) -> None:
    x, *y = part
    with kept_generators(), local_seed(0), pyro.validation_enabled(False):
        latents = poutine.trace(guide_of_parts(guide)).get_trace(*part)
    ways = [Numbers.of(x), Numbers.of(x, backwards=True)]
    known = {"mask": ~x.isnan()} if takes_mask(model, len(part)) else {}
    subsamples: dict[str, str] = {}

    def run(x: Tensor, leaves_out: LeavesOut) -> dict[str, tuple[Tensor, Tensor]]:
        def program(*args: Any) -> None:
            with leaves_out:
                model(*args, **known)

        with kept_generators(), local_seed(0), pyro.validation_enabled(False):
            sites = sample_sites(poutine.trace(poutine.replay(program, trace=latents)).get_trace(x, *y))
        for frame in (frame for site in sites.values() for frame in frames_of(site)):
            if frame.full_size not in (None, -1, frame.size):
                held = f'as the plate "{frame.name}" holds a subsample of {frame.size} of {frame.full_size}'
                subsamples[frame.name] = held
        return {name: (_term(site), seen(site)) for name, site in sites.items()}

    leave = [LeavesOut(numbers, other=numbers.backwards) for numbers in ways]
    try:
        terms = run(x, LeavesOut())
        others = [run(numbers.put(x), one) for numbers, one in zip(ways, leave, strict=True)]
    except (IndexError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error) or isinstance(error, InputError):
            raise
        raise InputError(
            f"the model must run where cells of x are left out, and fails ({first_line(error)})"
        ) from error
    one, other = (leaves_out.cells for leaves_out in leave)
    alike = one.keys() == other.keys() and all(torch.equal(cells, other[name]) for name, cells in one.items())
    require(alike and all(found.keys() == terms.keys() for found in others), f"{_RULE}; it observes a function of them")
    _require_all_found(one, x, ways[0], ", ".join(subsamples.values()))
    for found in others:
        for name, term in terms.items():
            same_mask = _same(term[1], found[name][1])
            require(same_mask, f'{_RULE}; at the site "{name}" it observes a function of them')
            rule = f'the site "{name}" of the model must not depend on cells of x that are left out'
            require(not differ(term, found[name]), f"{rule}: log p of the others would be that at a value made up")


def _require_all_found(cells: dict[str, Tensor], x: Tensor, numbers: Numbers, why_not: str) -> None:
    """Raises `InputError`, which says `why_not` if that is known, unless each number is observed as often as in x."""
    at = torch.cat([torch.zeros(0, dtype=torch.long, device=x.device), *(one[one >= 0] for one in cells.values())])
    often = torch.bincount(at, minlength=numbers.count)
    wanted = torch.bincount(numbers.read(numbers.put(x)[x.isnan()]), minlength=numbers.count)
    missed = "one is at none of its sites" + (why_not and f", {why_not}")
    require(bool((often >= wanted).all()), f"{_RULE}; {missed}")


def _term(site: dict) -> Tensor:
    term = density_of(site)
    mask = site["mask"]
    return term if mask is None or mask is True else torch.where(torch.as_tensor(mask), term, 0.0)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _rows_of_each_kind(part: tuple) -> tuple | None:
    """Returns some rows of the arguments, for each set of cells that is left out one; None to take all rows."""
    x = part[0]
    if len(x) <= ROWS:
        return None
    hidden = x.isnan().reshape(len(x), -1)
    keys = hidden.float() @ torch.rand(hidden.shape[1], generator=torch.Generator().manual_seed(0)).to(x.device)
    _, kind = keys.unique(return_inverse=True)
    first = torch.full((int(kind.max()) + 1,), len(x), device=x.device)
    first = first.scatter_reduce(0, kind, torch.arange(len(x), device=x.device), "amin").sort().values[:ROWS]
    each = hidden.int().argmax(0)[hidden.any(0)]  # of each cell, the first row that lacks it
    rows = torch.cat([first, each]).unique()
    is_data = [isinstance(one, Tensor) and one.shape[:1] == x.shape[:1] for one in part]
    return tuple(one[rows] if cut else one for one, cut in zip(part, is_data, strict=True))
