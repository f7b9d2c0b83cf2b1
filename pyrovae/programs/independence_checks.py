"""Checks what plates declare: a datum's terms depend on its own latents alone, and sites outside on none of them.

A graph's nodes whose edges read the latents of both ends break it, and so does a series whose steps lie in one plate.
Their log-density is still a sum over the data, so that the ELBO stays what it is; a logarithm of a mean of weights for
each datum alone is no bound then. A site outside the plate that reads local draws has a density for each particle.
"""

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.common import InputError
from pyrovae.programs.enumerated_guide import state_dims
from pyrovae.programs.enumeration import elements_of
from pyrovae.programs.layout import frames_of
from pyrovae.programs.one_way_transforms import NoInverse
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import restore_generators, saved_generators
from pyrovae.programs.reruns import pair_at
from pyrovae.programs.sites import is_discrete

ALLOWED_NATS = 1e-3
ALLOWED_ROUNDINGS = 100  # a term may move by this many times the effect of a few roundings of the latents


class Coupled(NamedTuple):
    """Names what depends on latents that it must not depend on; None stands for nothing.

    - `outside`: the name of a site outside the data plates that depends on latents inside.
    - `inside`: a site, in words, whose terms of some datum depend on another datum's latents.
    """

    outside: str | None = None
    inside: str | None = None


class _Terms(NamedTuple):
    """Holds the log-densities of sites inside the data plates, `(num_particles, batch)`, and outside, each a sum."""

    inside: dict[str, Tensor]
    outside: dict[str, Tensor]


class Woven(NamedTuple):
    """Holds latents of which half of the data have the first particle's, and the others the last one's.

    A pair whose terms are what its plates declare has in a run at these the terms that it has in the two particles.

    - `terms`: the terms of the two particles.
    - `half`: the data with the last particle's latents, a mask `(batch,)`.
    - `latents`: the latents of two particles by name; those of the first are woven.
    """

    terms: _Terms
    half: Tensor
    latents: dict[str, Tensor]

    @classmethod
    def of(cls, pair: Pair) -> "Woven | None":
        """Returns what is woven of the two particles of a pair, or None if there is nothing to weave."""
        halves = _usable_halves(pair)
        if not halves:
            return None
        draws = pair.draws()
        return cls(_terms(pair), halves[0], _with_others_latents(pair, draws, _last_latents(pair, draws), halves[0]))

    def agrees(self, run: Pair) -> bool:
        """Returns whether a run at these latents, which may have the first particle alone, has these terms."""
        found, count = _terms(run), run.num_particles
        inside = {
            name: torch.where(self.half.to(term.device), term[-1:], term[:count])
            for name, term in self.terms.inside.items()
        }
        outside = {name: term[: len(found.outside[name])] for name, term in self.terms.outside.items()}
        expected, there = ({"": sum(terms.values(), torch.zeros(()))} for terms in (inside, found.inside))
        # The sum by itself, too, as of large terms that cancel much more is allowed to move.
        moved = _moved(inside, found.inside), _moved(expected, there), _moved(outside, found.outside)
        return moved == (None, None, None)


def coupled(pair: Pair, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> Coupled:
    """Returns which sites of the pair depend on what their plates say that they do not.

    Half of the data get the latents of the other particle: the terms must be those of the two particles. What differs
    may have another reason, such as what a program draws for itself, and is told by more runs, in which each half is
    moved alone. With discrete latents that is done again at other states. `pair` is a run of the two programs with two
    particles.
    """
    halves = _usable_halves(pair)
    if not halves:
        return Coupled()
    draws = pair.draws()
    others = _others_latents(pair, draws)
    start = saved_generators()

    def run(latents: dict[str, Tensor]) -> Pair:
        restore_generators(start)  # whatever the programs draw besides latents is the same each time
        return pair_at(model, guide, latents, *args, like=pair, **kwargs)

    with torch.no_grad(), pyro.validation_enabled(False):
        woven = None if pair.is_independent else Woven.of(pair)
        if woven is None or _agrees(woven, run):
            del others[0]
        if not others:
            return Coupled()
        try:
            before, rounded = _terms(run(draws)), None
        except NoInverse:
            return Coupled()  # no two runs have one density
        for half, other in itertools.product(halves, others):
            try:
                after = _terms(run(_with_others_latents(pair, draws, other, half)))
            except NoInverse as error:  # beside these latents, the transform makes other draws of the same numbers
                return Coupled(inside=f'site "{error.site}" of the guide')
            inside = {
                name: torch.where(half.to(term.device), term, after.inside[name])
                for name, term in before.inside.items()
            }
            moved = _moved(before.inside, inside), _moved(before.outside, after.outside)
            if moved == (None, None):
                continue
            if rounded is None:
                rounded = _terms(run({name: _rounded(z) for name, z in draws.items()}))
                again = _terms(run(draws))
                if _moved(before.inside, again.inside, 0.0) or _moved(before.outside, again.outside, 0.0):
                    return Coupled()  # no two runs have one density
            found = Coupled(
                _moved(before.outside, after.outside, rounded=rounded.outside),
                _moved(before.inside, inside, rounded=rounded.inside),
            )
            if found != Coupled():
                return found
    return Coupled()


def _agrees(woven: Woven, run: Callable[[dict[str, Tensor]], Pair]) -> bool:
    with suppress(NoInverse):
        return woven.agrees(run(woven.latents))
    return False


def _moved(
    before: dict[str, Tensor], after: dict[str, Tensor], allowed: float = 1.0, rounded: dict[str, Tensor] | None = None
) -> str | None:
    """Returns the first name whose term has moved by more than is allowed.

    That is 1e-3 nats, or as much of the term, or where `rounded` is given what some roundings of the latents move.
    """
    for name, term in before.items():
        if torch.allclose(after[name], term, rtol=1e-3 * allowed, atol=ALLOWED_NATS * allowed, equal_nan=True):
            continue
        rounding = 0.0 if rounded is None else (rounded[name] - term).abs().max().item()
        if not (after[name] - term).abs().max().item() <= ALLOWED_NATS * allowed + ALLOWED_ROUNDINGS * rounding:
            return name
    return None


def _terms(pair: Pair) -> _Terms:
    runs = [replace(run, others=()) for run in pair.runs]
    inside, outside = {}, {}
    if pair.layout.sums:  # whose sites have no terms of their own
        terms = pair.terms()
        inside = {"the model": terms.log_likelihood + terms.log_prior, "the guide": terms.log_posterior}
    for program in ("model_sites", "guide_sites"):
        for name, site in getattr(pair, program).items():
            if not pair.is_local(site):
                each = [run.log_density(name, getattr(run, program)[name]).sum() for run in runs]
                outside[name] = torch.stack(each)
            elif not pair.layout.sums:
                each = [run.total({name: getattr(run, program)[name]}) for run in runs]
                inside[f'site "{name}" of the {program.partition("_")[0]}'] = torch.cat(each)
    return _Terms(inside, outside)


def _halves(pair: Pair) -> list[Tensor]:
    """Returns two complementary halves of the columns of all plates, as masks.

    They follow the sequence of Thue and Morse, which has no period: neighbours at any distance are parted somewhere.
    """
    if not pair.plates:
        return []
    first = torch.tensor([_is_odd(n + shift) for shift, plate in enumerate(pair.plates) for n in range(plate.size)])
    return [first, ~first]


def _usable_halves(pair: Pair) -> list[Tensor]:
    """Returns the halves that may be given other latents, which says nothing where all data are."""
    if state_dims(pair.guide_sites):
        return []
    halves = [half for half in _halves(pair) if bool(half.any())]
    return halves if pair.layout.has_globals else [half for half in halves if not bool(half.all())]


def _is_odd(number: int) -> bool:
    return number.bit_count() % 2 == 1


def _others_latents(pair: Pair, draws: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Returns the latents of the last particle, and these with the discrete ones at an extreme state each.

    Draws of few values may repeat each other, and would hide what depends on them.
    """
    last = _last_latents(pair, draws)
    discrete = [name for name in last if is_discrete(pair.guide_sites[name]["fn"])]
    extremes = [{name: _extreme(pair, name, draws[name], end) for name in discrete} for end in (0, -1)]
    return [last, *({**last, **new} for new in extremes)] if discrete else [last]


def _last_latents(pair: Pair, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: z[-1:] for name, z in draws.items() if pair.is_local(pair.guide_sites[name])}


def _extreme(pair: Pair, name: str, z: Tensor, end: int) -> Tensor:
    """Returns the first or the last value of a discrete site's elements, or draws if there is none."""
    fn = pair.guide_sites[name]["fn"]
    try:
        return elements_of(name, fn)[0][end].to(z).expand_as(z)
    except InputError:  # counts without an end
        drawn = [run.guide_sites[name]["fn"].sample() for run in pair.runs]
        return drawn[0] if pair.layout.is_vectorized else torch.stack(drawn)


def _with_others_latents(
    pair: Pair, draws: dict[str, Tensor], other: dict[str, Tensor], half: Tensor
) -> dict[str, Tensor]:
    """Returns the draws in which the data of one half have the other latents."""
    of_plates = dict(zip((plate.name for plate in pair.plates), half.split([p.size for p in pair.plates]), strict=True))
    moved = {}
    for name, z in draws.items():
        site = pair.guide_sites[name]
        frame = next((frame for frame in frames_of(site) if frame.name in of_plates), None)
        if frame is None:
            moved[name] = z
            continue
        own = of_plates[frame.name].to(z.device)
        if frame.dim is None:  # one step of a sequential plate
            own = own[frame.counter - 1]
        else:
            own = own.reshape(-1, *(1,) * (site["fn"].event_dim - frame.dim - 1))
        moved[name] = torch.where(own, other[name], z)
    return moved


def _rounded(z: Tensor) -> Tensor:
    return z * (1 - 4 * torch.finfo(z.dtype).eps) if z.is_floating_point() else z
