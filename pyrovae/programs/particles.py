"""Checks that each particle of a vectorised run is what the pair gives without a particle dimension.

A network that does something across its leading dimensions (a softmax over dim 1, batch normalisation) runs with
particles, and gives other numbers.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import InputError, first_line
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import random_mark
from pyrovae.programs.running import run_pair, traces_of
from pyrovae.programs.sites import sample_sites

ALLOWED_NATS = 1e-3
ALLOWED_ROUNDINGS = 100  # two runs may differ by this many times the effect of a few roundings of the latents


def check_pair(model: Callable, guide: Callable, *args, **kwargs) -> Pair:
    """Returns two particles of the pair, after a check that each is what the pair gives without a particle dimension.

    Raises `InputError` otherwise, and if the model observes nothing or the guide draws straight through.
    """
    try:
        return _checked(model, guide, args, kwargs)
    except InputError:
        raise
    except ValueError as error:  # Pyro's validation, in many lines, for example on a value outside a support
        raise InputError(f"the pair does not run: {first_line(error)}") from error


def _checked(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Pair:
    pair = run_pair(model, guide, *args, num_particles=2, **kwargs)
    if not pair.observed:
        raise InputError("model must observe the data at a site, and observes none")
    for name, site in pair.guide_sites.items():
        if hasattr(site["value"], "_unquantize"):
            raise InputError(
                f'site "{name}" draws straight through: its density is taken at another value than the one it draws, '
                "so that the weights are of no model"
            )
    latents = {name: site["value"][0] for name, site in pair.guide_sites.items()}
    before = random_mark()
    alone = _without_particles(model, guide, latents, args, kwargs)
    if random_mark() != before:  # a program that draws more than its latents: no two runs have one density
        return pair
    rounding = None
    for program, ours, theirs in (
        ("model", pair.total(pair.model_sites)[0], alone.total(alone.model_sites)),
        ("guide", pair.total(pair.guide_sites)[0], alone.total(alone.guide_sites)),
    ):
        if torch.allclose(ours, theirs, rtol=1e-3, atol=ALLOWED_NATS, equal_nan=True):
            continue
        if rounding is None:
            again = _without_particles(model, guide, latents, args, kwargs)
            if not torch.equal(again.terms().log_weights, alone.terms().log_weights):
                return replace(pair, is_repeatable=False)
            rounding = _rounding(model, guide, latents, alone, args, kwargs)
        off = (ours - theirs).abs().max().item()
        if not off <= ALLOWED_NATS + ALLOWED_ROUNDINGS * rounding[program]:
            raise InputError(
                f"the {program} must give each particle the density that it has alone, and differs by up to "
                f"{off:.3g} nats: something in it works across leading dimensions"
            )
    return pair


def _without_particles(model: Callable, guide: Callable, latents: dict[str, Tensor], args: tuple, kwargs: dict) -> Pair:
    """Runs the pair at given latents without a dimension of particles."""
    model, guide = (poutine.condition(program, data=latents) for program in (model, guide))
    sites = []
    for trace in traces_of(model, guide, args, kwargs, None):
        found = {name: s for name, s in sample_sites(trace).items() if name in latents or s["is_observed"]}
        sites.append({name: {**s, "is_observed": name not in latents} for name, s in found.items()})
    model_sites, guide_sites = sites
    return Pair(model_sites, guide_sites, next(iter(model_sites.values()))["fn"].batch_shape[-1:])


def _rounding(
    model: Callable, guide: Callable, latents: dict[str, Tensor], alone: Pair, args: tuple, kwargs: dict
) -> dict[str, float]:
    """Returns how far the log-densities of model and guide move when the latents move by a few roundings."""
    moved = {
        name: z * (1 - 4 * torch.finfo(z.dtype).eps) if z.is_floating_point() else z for name, z in latents.items()
    }
    there = _without_particles(model, guide, moved, args, kwargs)
    both = {"model": (alone.model_sites, there.model_sites), "guide": (alone.guide_sites, there.guide_sites)}
    return {name: (alone.total(a) - there.total(b)).abs().max().item() for name, (a, b) in both.items()}
