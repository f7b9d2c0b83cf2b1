"""Checks what plates declare: a datum's terms depend on its own latents alone, and sites outside on none of them.

A graph's nodes whose edges read the latents of both ends break it, and so does a series whose steps lie in one plate.
Their log-density is still a sum over the data, so that the ELBO stays what it is; a logarithm of a mean of weights for
each datum alone is no bound then. A site outside the plate that reads local draws has a density for each particle.
"""

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.common import InputError, is_out_of_memory
from pyrovae.programs.enumerated_guide import state_dims
from pyrovae.programs.enumeration import elements_of
from pyrovae.programs.layout import frames_of
from pyrovae.programs.one_way_transforms import NoInverse
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import restore_generators, saved_generators
from pyrovae.programs.reruns import pair_at
from pyrovae.programs.sites import is_discrete

ALLOWED_NATS = 1e-3
MOST_HALVES = 8  # by which data are parted: more would take longer than many an estimate
MOST_NUMBERS = 2**16  # of the largest parameter of a site in a run by which data are parted, of more than two halves
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
    - `half`: the data with the last particle's latents, a mask `(batch,)`, or `(particles, batch)`.
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
        found, count = _terms(run), run.num_particles if self.half.dim() == 1 else 1
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
    moved alone. With discrete latents that is done again at other states. Then the data are halved by each binary digit
    of their numbers, as two data of one half may read each other. `pair` is a run of the two programs with two
    particles.
    """
    halves = _usable_halves(pair)
    if not halves:
        return Coupled()
    draws = pair.draws()
    extremes = _extremes(pair, draws)
    others = [{**_last_latents(pair, draws), **end} for end in extremes]
    start = saved_generators()

    def run(latents: dict[str, Tensor], like: Pair = pair) -> Pair:
        restore_generators(start)  # whatever the programs draw besides latents is the same each time
        return pair_at(model, guide, latents, *args, like=like, **kwargs)

    with torch.no_grad(), pyro.validation_enabled(False):
        woven = None if pair.is_independent else Woven.of(pair)
        if woven is not None and not _agrees(woven, run):
            others = _drawn(pair, draws) + others
        found = _moved_alone(pair, run, draws, halves, others)
        return found if found != Coupled() else _coupled_in_a_half(pair, run, draws, extremes)


Run = Callable[..., Pair]  # of latents, and of a pair like which it is to be


def _moved_alone(
    pair: Pair, run: Run, draws: dict[str, Tensor], halves: list[Tensor], others: list[dict[str, Tensor]]
) -> Coupled:
    """Returns what moves as each of the halves by itself gets the other latents, and not by rounding or by chance."""
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
            name: torch.where(half.to(term.device), term, after.inside[name]) for name, term in before.inside.items()
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


def _coupled_in_a_half(pair: Pair, run: Run, draws: dict[str, Tensor], extremes: list[dict[str, Tensor]]) -> Coupled:
    """Returns what `coupled` does, of data that the first halves do not part: any two are parted by a digit."""
    apart = {name: torch.cat([z[:1], extremes[-1][name][-1:]]) for name, z in (extremes[0] if extremes else {}).items()}
    for latents in [draws, {**draws, **apart}] if apart else [draws]:
        last = _last_latents(pair, latents)
        first = {name: z[:1] if name in last else z for name, z in latents.items()}
        terms: _Terms | None = None
        parts = _parted(pair)
        while parts:
            rows = parts.pop(0)
            terms = terms or _terms(pair if latents is draws else run(latents))
            woven = Woven(terms, rows, _with_others_latents(pair, first, last, rows))
            try:
                agrees = _agrees(woven, partial(run, like=replace(pair, num_particles=len(rows), others=())))
            except Exception as error:
                if len(rows) <= 2 or not is_out_of_memory(error):
                    raise
                parts = [*rows.split(2), *parts]  # as many particles as have been run
                continue
            if not agrees:
                halves = [half for row in rows for half in (row, ~row)]
                found = _moved_alone(pair, run, latents, halves, _drawn(pair, latents))
                if found != Coupled():
                    return found
    return Coupled()


def _agrees(woven: Woven, run: Run) -> bool:
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
    first = torch.cat([_are_odd(torch.arange(plate.size) + shift) for shift, plate in enumerate(pair.plates)])
    return [first, ~first]


def _parted(pair: Pair) -> list[Tensor]:
    """Returns halves of the data by each binary digit of their numbers, as `(particles, batch)` for each of some runs.

    Each particle of a run has a half of its own. Of more than 256 data, a pair in 256 is not parted. Of fewer, there
    are complements, too, since by chance two latents may give a reader one density, with which other latents of its
    own would differ.
    """
    if pair.batch < 3:
        return []
    numbers = torch.randperm(pair.batch, generator=torch.Generator().manual_seed(0))
    digits = torch.arange(min((pair.batch - 1).bit_length(), MOST_HALVES)).unsqueeze(-1)
    halves = (numbers >> digits) % 2 == 1
    halves = torch.cat([halves, ~halves])[:MOST_HALVES]
    most = max(2, MOST_NUMBERS // (pair.batch * pair.outputs)) if pair.layout.is_vectorized else 1
    return list(halves.split(most))


def _usable_halves(pair: Pair) -> list[Tensor]:
    """Returns the halves that may be given other latents, which says nothing where all data are."""
    if state_dims(pair.guide_sites):
        return []
    halves = [half for half in _halves(pair) if bool(half.any())]
    return halves if pair.layout.has_globals else [half for half in halves if not bool(half.all())]


def _are_odd(numbers: Tensor) -> Tensor:
    """Returns which numbers have an odd number of binary digits that are 1."""
    for digits in (32, 16, 8, 4, 2, 1):
        numbers = numbers ^ (numbers >> digits)
    return numbers % 2 == 1


def _drawn(pair: Pair, draws: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Returns the last particle's latents for both, and the two particles' exchanged.

    One of them may give two latents the same density, or two particles the same sum.
    """
    exchanged = {name: z.flip(0) for name, z in draws.items() if pair.is_local(pair.guide_sites[name])}
    return [_last_latents(pair, draws), exchanged]


def _extremes(pair: Pair, draws: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Returns the discrete latents at their first and at their last states, or nothing if there are none.

    Draws of few values may repeat each other, and would hide what depends on them.
    """
    discrete = [name for name in _last_latents(pair, draws) if is_discrete(pair.guide_sites[name]["fn"])]
    ends = (0, -1) if discrete else ()
    return [{name: _extreme(pair, name, draws[name], end) for name in discrete} for end in ends]


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
    """Returns the draws in which the data of one half have the other latents.

    `half` is `(batch,)`, or `(particles, batch)` for draws of one particle that become as many.
    """
    parts = half.split([plate.size for plate in pair.plates], -1)
    of_plates = dict(zip((plate.name for plate in pair.plates), parts, strict=True))
    moved = {}
    for name, z in draws.items():
        site = pair.guide_sites[name]
        frame = next((frame for frame in frames_of(site) if frame.name in of_plates), None)
        if frame is None:
            moved[name] = z
            continue
        own = of_plates[frame.name].to(z.device)
        if frame.dim is None:  # one step of a sequential plate
            own = own[..., frame.counter - 1, None]
        right = 0 if frame.dim is None else site["fn"].event_dim - frame.dim - 1
        rows = half.numel() // half.shape[-1]
        own = own.reshape(rows, *(1,) * (z.dim() - 2 - right), -1, *(1,) * right)
        moved[name] = torch.where(own, other[name], z)
    return moved


def _rounded(z: Tensor) -> Tensor:
    return z * (1 - 4 * torch.finfo(z.dtype).eps) if z.is_floating_point() else z
