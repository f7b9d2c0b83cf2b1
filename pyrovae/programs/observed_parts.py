"""Lets a pair observe a part of its data: cells that are NaN are left out of the model, and hidden from the guide.

A pair of which the model says `missing = "mask"`, as a VAE may, does so by itself, and gets x with its NaN. Of any
other model the observed sites are rewritten: where a value is NaN, the element is masked, below the `to_event` that
sums it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Independent
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.common import (
    InputError,
    first_line,
    is_out_of_memory,
    is_validation_error,
    kept_generators,
    local_seed,
    require,
    scale_hint,
    setting,
    takes_missing,
)
from pyrovae.programs.distribution_supports import support_of
from pyrovae.programs.random_choices import is_traced
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.supports import interior

FIRST = 1_000_003  # the number of the first cell: no label is so large by chance
MOST_NUMBERS = 2**22  # which float32 still holds


def observing_parts(model: Callable, guide: Callable) -> tuple[Callable, Callable]:
    """Returns the two programs as such that take x with NaN where it is not observed.

    A guide with an argument `mask` gets x with 0 in those places and, as `mask`, where x is observed; any other one
    gets x with its NaN. A model that has this argument gets the mask, too.
    """
    return (model if takes_missing(model) else _model_of_parts(model)), guide_of_parts(guide)


def _model_of_parts(model: Callable) -> Callable:
    def run(x: Tensor, *y: Any) -> None:
        with LeavesOut():
            model(x, *y, **({"mask": ~x.isnan()} if takes_mask(model, 1 + len(y)) else {}))

    run.missing = "mask"  # type: ignore[attr-defined]
    owner = getattr(model, "__self__", model)
    if isinstance(owner, torch.nn.Module):  # whose parameters say on which device the model runs
        run.__self__ = owner  # type: ignore[attr-defined]
    return run


def guide_of_parts(guide: Callable) -> Callable:
    """Returns the guide as one that takes x with NaN where it is not observed."""
    if not takes_mask(guide):
        return guide

    def run(x: Tensor, *y: Any) -> None:
        if takes_mask(guide, 1 + len(y)):
            guide(torch.where(x.isnan(), 0.0, x), *y, mask=~x.isnan())
        else:
            guide(x, *y)

    return run


def takes_mask(program: Callable, num_args: int = 1) -> bool:
    """Returns True if a program has an argument `mask`, which says what of x is observed.

    One of that name that is among the first `num_args`, which are given in order, is something else (padding).
    """
    try:
        found = inspect.signature(program).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False
    is_free = "mask" in found and found["mask"].kind == inspect.Parameter.KEYWORD_ONLY
    return is_free or "mask" in list(found)[num_args:]


@torch.no_grad()
def check_guide_sees_parts(guide: Callable, part: tuple, whole: tuple | None = None) -> None:
    """Raises `InputError`, which names the guide, unless it takes a part of the data.

    `part` and `whole` are the arguments of a pair; x of the first has NaN where that of the second has none. A guide
    that neither has an argument `mask` nor says `missing = "mask"` must then draw something else of the part: one that
    has its own numbers for each datum, as an autoguide, stays where it was fitted.
    """
    if takes_missing(guide):
        rule = f'the guide "{name_of(guide)}" must draw numbers for a part of the data'
    elif hasattr(getattr(guide, "__self__", None), "missing"):  # a VAE of ours
        rule = f"the VAE must take a part of the data, as it does with {setting('missing', 'mask')}"
    else:
        rule = f'the guide "{name_of(guide)}" must take a part of the data: an argument "mask", or NaN in x'
    run = guide_of_parts(guide)
    try:
        if whole is not None:
            _draws(run, whole)  # an autoguide starts with its first run
        found = _draws(run, part)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        why = "it draws nan" if is_validation_error(error) else f"it fails ({first_line(error)})"
        large = scale_hint(guide, error, *part)
        raise InputError(f"{large}{rule}; where cells are left out, {why}") from error
    numbers = any(value.isnan().any() for value in found.values())
    require(not numbers, f"{rule}; where cells are left out, it draws nan")
    if not (whole is None or takes_mask(guide, len(whole)) or takes_missing(guide)):
        before = _draws(run, whole)
        moves = any(not torch.equal(before[name], value) for name, value in found.items())
        require(moves, f"{rule}; it draws the same whatever is left out")


def name_of(program: Callable) -> str:
    """Returns what a program is called where it is written."""
    name = getattr(program, "__qualname__", type(program).__name__)
    return name.rsplit("<locals>.", 1)[-1]


def _draws(guide: Callable, args: tuple) -> dict[str, Tensor]:
    with kept_generators(), local_seed(0):
        sites = sample_sites(poutine.trace(guide).get_trace(*args))
    return {name: site["value"] for name, site in sites.items()}


class LeavesOut(Messenger):
    """Masks the elements of observed values that are NaN, and puts a number inside the support in their place.

    Args:
        numbers: For a check: cells have these numbers, and elements with one of them are left out instead of NaN.
        other: Puts another number of the support there.
    """

    def __init__(self, numbers: "Numbers | None" = None, other: bool = False) -> None:
        super().__init__()
        self.numbers, self.other = numbers, other
        self.cells: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not msg["is_observed"] or site_is_subsample(msg) or not value.is_floating_point() or not value.numel():
            return
        cells, hidden = msg["fn"], value.isnan()
        if self.numbers is not None:
            self.cells[msg["name"]] = self.numbers.read(value)
            hidden = self.cells[msg["name"]] >= 0
        while isinstance(cells, Independent):
            cells = cells.base_dist
        size = cells.event_dim
        events = hidden.flatten(-size) if size else hidden.unsqueeze(-1)
        if (self.numbers is not None or is_validation_enabled()) and not is_traced():
            rule = (
                f'the site "{msg["name"]}" is a {type(cells).__name__}, whose elements have no densities of their own'
            )
            whole = bool((events.any(-1) == events.all(-1)).all())
            require(whole, f"{rule}, and must be observed whole or not at all")
        try:
            inside = interior(support_of(cells), torch.where(hidden, 0.0, value), self.other)
        except NotImplementedError:
            inside = None
        if inside is None:
            raise InputError(
                f'the site "{msg["name"]}" must have a support with a known number in it, to leave out NaN'
            )
        msg["fn"] = cells.mask(~events.any(-1)).to_event(msg["fn"].event_dim - size)
        msg["value"] = torch.where(hidden, inside.to(value), value)


@dataclass(frozen=True)
class Numbers:
    """Numbers the cells of x that are NaN, so that each is found again where it is observed."""

    start: int
    count: int
    backwards: bool = False

    @classmethod
    def of(cls, x: Tensor, backwards: bool = False) -> "Numbers":
        """Returns numbers that no other cell of x has."""
        count, there = min(int(x.isnan().sum()), MOST_NUMBERS), x[~x.isnan()]
        is_below = not there.numel() or bool(there.max() < FIRST)
        return cls(FIRST if is_below else -FIRST - count, count, backwards)

    def put(self, x: Tensor) -> Tensor:
        """Returns x with numbers in place of NaN; of very many cells several have the same."""
        at = torch.arange(int(x.isnan().sum()), device=x.device) % self.count
        return x.masked_scatter(x.isnan(), (self.start + (self.count - 1 - at if self.backwards else at)).to(x))

    def read(self, value: Tensor) -> Tensor:
        """Returns the index of the cell that each element is, and -1 where it is none."""
        at = value.double() - self.start
        at = torch.where((at >= 0) & (at < self.count) & (at == at.floor()), at, -1.0).long()
        return torch.where(at >= 0, self.count - 1 - at, at) if self.backwards else at
