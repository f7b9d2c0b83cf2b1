"""Checks that each particle of a vectorised run is what the pair gives without a particle dimension.

A network that does something across its leading dimensions (a softmax over dim 1, batch normalisation) runs with
particles, and gives other numbers.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.common import InputError, warn
from pyrovae.programs.independence_checks import Woven
from pyrovae.programs.known_layouts import run_one_by_one
from pyrovae.programs.layout import Reading, frames_of
from pyrovae.programs.one_way_transforms import NoInverse
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import random_mark
from pyrovae.programs.reruns import pair_at
from pyrovae.programs.running import does_not_run, run_pair
from pyrovae.programs.sites import is_discrete

ALLOWED_NATS = 1e-3
ALLOWED_ROUNDINGS = 100  # two runs may differ by this many times the effect of a few roundings of the latents


def check_pair(model: Callable, guide: Callable, reading: Reading, args: tuple, kwargs: dict) -> Pair:
    """Returns two particles of the pair, after a check that each is what the pair gives without a particle dimension.

    If they are not, particles are run one after another from now on, or `InputError` is raised if `reading` says that
    they must not be. It is also raised if the model observes nothing, the guide draws straight through, or a density
    does not take its values. It is done for all data that are asked about: others of the same structure may show what
    these do not, for example at a weight that was 0.
    """
    try:
        pair = _two_particles(model, guide, reading, args, kwargs)
        pair.terms()  # which looks at the values of these data
        if not pair.layout.is_vectorized:
            return replace(pair, coupled=_coupled(*pair.runs[:2]))
        try:
            return replace(pair, **_alone(pair, model, guide, args, kwargs))
        except _Differs as found:
            if reading.vectorize_particles not in (False, "auto"):
                raise InputError(
                    f"the {found.program} must give each particle the density that it has alone, and {found}"
                ) from None
            warn(f"particles run one after another: with several at once the density of the {found.program} {found}")
            run_one_by_one(model, guide, reading, pair.layout, in_any_mode=True)
            return run_pair(model, guide, *args, num_particles=2, reading=reading, **kwargs)
    except InputError:
        raise
    except ValueError as error:  # Pyro's validation, in many lines, for example on a value outside a support
        raise InputError(does_not_run(error)) from error


class _Differs(Exception):
    """Says by how much a program gives a particle another density among others than alone."""

    def __init__(self, program: str, off: float) -> None:
        super().__init__(f"differs by up to {off:.3g} nats: something in it works across leading dimensions")
        self.program = program


def _two_particles(model: Callable, guide: Callable, reading: Reading, args: tuple, kwargs: dict) -> Pair:
    pair = run_pair(model, guide, *args, num_particles=2, reading=reading, **kwargs)
    if not pair.observed:
        raise InputError("model must observe the data at a site, and observes none")
    for name, site in pair.guide_sites.items():
        if hasattr(site["value"], "_unquantize"):
            raise InputError(
                f'site "{name}" draws straight through: its density is taken at another value than the one it draws, '
                "so that the weights are of no model"
            )
    return pair


def _alone(pair: Pair, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Returns fields of `Pair` that a run without a dimension of particles tells, or raises `_Differs`."""
    # One run tells what the one below does, and what `coupled` does, if all is well. Two data of two particles may be
    # transposed, and the terms that are compared are the same.
    before, woven = random_mark(), Woven.of(pair) if pair.batch > 2 else None
    if woven is not None:
        latents = {name: first_particle(pair, pair.guide_sites[name], z) for name, z in woven.latents.items()}
        # A program may need gradients, or not run at the latents of another particle: then the run below tells.
        with suppress(Exception), torch.no_grad(), pyro.validation_enabled(False):
            alone = _without_particles(model, guide, latents, pair, args, kwargs)
            if random_mark() == before and woven.agrees(alone):
                return {"is_independent": True}
    before = random_mark()
    latents = {name: first_particle(pair, site) for name, site in pair.guide_sites.items()}
    alone = _without_particles(model, guide, latents, pair, args, kwargs)
    if random_mark() != before:  # a program that draws more than its latents: no two runs have one density
        return {}
    try:
        alone.terms()
    except NoInverse:  # alone, a transform makes other draws of the same numbers
        raise _Differs("guide", math.inf) from None
    rounding = None
    for program, ours, theirs in (
        ("model", _log_p(pair)[0], _log_p(alone)),
        ("guide", pair.total(pair.guide_sites)[0], alone.total(alone.guide_sites)),
    ):
        if torch.allclose(ours, theirs, rtol=1e-3, atol=ALLOWED_NATS, equal_nan=True):
            continue
        if rounding is None:
            again = _without_particles(model, guide, latents, pair, args, kwargs)
            if not torch.equal(again.terms().log_weights, alone.terms().log_weights):
                return {"coupled": _coupled(pair, alone), "is_repeatable": False}
            rounding = _rounding(model, guide, latents, alone, args, kwargs)
        off = (ours - theirs).abs().max().item()
        if not off <= ALLOWED_NATS + ALLOWED_ROUNDINGS * rounding[program]:
            raise _Differs(program, off)
    return {"coupled": _coupled(pair, alone)}


def _without_particles(
    model: Callable, guide: Callable, latents: dict[str, Tensor], like: Pair, args: tuple, kwargs: dict
) -> Pair:
    """Runs the pair at given latents without a dimension of particles."""
    layout = replace(like.layout, is_vectorized=False)
    stacked = {name: z.unsqueeze(0) if like.is_local(like.guide_sites[name]) else z for name, z in latents.items()}
    return pair_at(model, guide, stacked, *args, like=replace(like, num_particles=1, layout=layout), **kwargs)


def first_particle(pair: Pair, site: dict, value: Tensor | None = None) -> Tensor:
    """Returns a site's value, or another one, for the first particle, as it would be without their dimension."""
    value = site["value"] if value is None else value
    if not (pair.layout.is_vectorized and pair.is_local(site)):
        return value
    dims = [-frame.dim for frame in frames_of(site) if frame.dim is not None]
    num_dims = max(dims, default=0) + site["fn"].event_dim
    return value[0].reshape(value.shape[value.dim() - num_dims :])


def _rounding(
    model: Callable, guide: Callable, latents: dict[str, Tensor], alone: Pair, args: tuple, kwargs: dict
) -> dict[str, float]:
    """Returns how far the log-densities of model and guide move when the latents move by a few roundings."""
    moved = {
        name: z * (1 - 4 * torch.finfo(z.dtype).eps)
        if z.is_floating_point() and not is_discrete(alone.guide_sites[name]["fn"])
        else z
        for name, z in latents.items()
    }
    there = _without_particles(model, guide, moved, alone, args, kwargs)
    return {
        "model": (_log_p(alone) - _log_p(there)).abs().max().item(),
        "guide": (alone.total(alone.guide_sites) - there.total(there.guide_sites)).abs().max().item(),
    }


def _coupled(pair: Pair, other: Pair) -> str | None:
    """Returns a global site whose density is another one at other local draws, or None if there is none.

    The two runs have the same global draws; local ones differ, or are of two particles and of one.
    """
    for sites, others in ((pair.model_sites, other.model_sites), (pair.guide_sites, other.guide_sites)):
        for name, site in sites.items():
            if not pair.is_local(site):
                ours, theirs = (run.log_density(name, one[name]).sum() for run, one in ((pair, sites), (other, others)))
                if not torch.allclose(ours, theirs, rtol=1e-3, atol=ALLOWED_NATS, equal_nan=True):
                    return name
    return None


def _log_p(pair: Pair) -> Tensor:
    terms = pair.terms()
    return terms.log_likelihood + terms.log_prior
