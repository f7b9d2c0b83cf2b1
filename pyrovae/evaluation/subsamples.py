"""Refuses data that an estimate needs in every run, each once, and that a plate leaves out or a scale weighs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from pyrovae.common import InputError, local_seed, require
from pyrovae.evaluation.chunks import Opened
from pyrovae.programs import Pair, counted_otherwise, subsampled_outside


def check_subsamples(
    name: str, model: Callable, guide: Callable, found: Opened, takes_terms: bool = False, of_all: bool = True
) -> None:
    """Does what `check_subsamples_of` does, with the pair and the data that were opened."""
    check_subsamples_of(name, (model, guide), found.pair, found.data.args, takes_terms, of_all)


def check_subsamples_of(
    name: str,
    programs: Sequence[Callable],
    pair: Pair,
    args: tuple,
    takes_terms: bool = False,
    of_all: bool = True,
) -> None:
    """Raises `InputError`, on behalf of the function called `name`, if a plate leaves out terms that it needs.

    These are terms of a datum, unless `takes_terms` says that a part of them will do; all data, each counted once,
    where there are latents that they share, unless the estimate is not `of_all`; and in any case data that stay the
    same from run to run. The indices of a subsample may be given to a data plate.
    """
    for inner in () if takes_terms else pair.subsampled_plates:
        raise InputError(f'{name} needs all terms of a datum, and the plate "{inner}" subsamples them')
    counted = counted_otherwise(pair) if of_all else None
    require(counted is None, f"{name} takes {counted}")
    outside = subsampled_outside(pair) if of_all else []
    for plate in (*pair.plates, *outside):
        if plate.size == plate.full_size:
            continue
        holds = f'and the plate "{plate.name}" holds a subsample of {plate.size} of the {plate.full_size}'
        shared = of_all and pair.layout.has_globals
        require(not shared, f"{name} needs all of the data that share a latent, {holds}")
        is_drawn = any(_draws_a_subsample(program, plate.name, args) for program in programs)
        require(not is_drawn, f"{name} needs the same data in every run, {holds}, drawn anew each time")


@torch.no_grad()
def _draws_a_subsample(program: Callable, plate: str, args: tuple) -> bool:
    """Returns True if a program's plate draws its subsample: some of three seeds then give different ones."""
    indices = []
    for seed in (0, 1, 2):
        with local_seed(seed):
            site: Any = poutine.trace(program).get_trace(*args).nodes.get(plate)
        if site is None or not site_is_subsample(site):
            return False
        indices.append(torch.as_tensor(site["value"]))
    return not all(torch.equal(index, indices[0]) for index in indices)
