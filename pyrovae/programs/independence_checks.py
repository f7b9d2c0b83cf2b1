"""Checks what plates declare: the terms of a datum depend on its own latents and on no other datum's.

A graph's nodes whose edges read the latents of both ends break it, and so does a series whose steps lie in one plate.
Their log-density is still a sum over the data, so that the ELBO stays what it is; a logarithm of a mean of weights for
each datum alone is no bound then.
"""

from collections.abc import Callable
from dataclasses import replace

import pyro
import torch
from torch import Tensor

from pyrovae.programs.enumerated_guide import state_dims
from pyrovae.programs.layout import frames_of
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import restore_generators, saved_generators
from pyrovae.programs.reruns import pair_at

ALLOWED_NATS = 1e-3
ALLOWED_ROUNDINGS = 100  # a term may move by this many times the effect of a few roundings of the latents

Terms = dict[str, Tensor]
"""The log-densities of each local site, `(num_particles, batch)`, by a description of the site."""


def coupled_data(pair: Pair, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> str | None:
    """Returns a site whose terms of some datum depend on another datum's latents, or None if there is none.

    Half of the data get the latents of another particle, and then the other half: no term of the rest may move. `pair`
    is a run of the two programs with two particles.
    """
    halves = [half for half in _halves(pair) if bool(half.any()) and not bool(half.all())]
    if not halves or state_dims(pair.guide_sites):
        return None
    start = saved_generators()

    def run(latents: dict[str, Tensor]) -> Terms:
        restore_generators(start)  # whatever the programs draw besides latents is the same each time
        return _terms(pair_at(model, guide, latents, *args, like=pair, **kwargs))

    with torch.no_grad(), pyro.validation_enabled(False):
        draws = pair.draws()
        before, rounding = run(draws), None
        for half in halves:
            after = run(_with_others_latents(pair, draws, half))
            for site, term in before.items():
                moved = torch.where(half, term, after[site])
                if torch.allclose(moved, term, rtol=1e-3, atol=ALLOWED_NATS, equal_nan=True):
                    continue
                if rounding is None:
                    again, rounded = run(draws), run({name: _rounded(z) for name, z in draws.items()})
                    if any(not torch.equal(again[name], one) for name, one in before.items()):
                        return None  # no two runs have one density
                    rounding = {name: (rounded[name] - one).abs().max().item() for name, one in before.items()}
                if not (moved - term).abs().max().item() <= ALLOWED_NATS + ALLOWED_ROUNDINGS * rounding[site]:
                    return site
    return None


def _terms(pair: Pair) -> Terms:
    if pair.layout.sums:  # whose sites have no terms of their own
        terms = pair.terms()
        return {"the model": terms.log_likelihood + terms.log_prior, "the guide": terms.log_posterior}
    found: Terms = {}
    for program in ("model_sites", "guide_sites"):
        for name, site in getattr(pair, program).items():
            if pair.is_local(site):
                runs = [replace(run, others=()) for run in pair.runs]
                each = [run.total({name: getattr(run, program)[name]}) for run in runs]
                found[f'site "{name}" of the {program.partition("_")[0]}'] = torch.cat(each)
    return found


def _halves(pair: Pair) -> list[Tensor]:
    """Returns two complementary halves of the columns of all plates, as masks.

    They follow the sequence of Thue and Morse, which has no period: neighbours at any distance are parted somewhere.
    """
    if not pair.plates:
        return []
    first = torch.tensor([_is_odd(n + shift) for shift, plate in enumerate(pair.plates) for n in range(plate.size)])
    return [first, ~first]


def _is_odd(number: int) -> bool:
    return number.bit_count() % 2 == 1


def _with_others_latents(pair: Pair, draws: dict[str, Tensor], half: Tensor) -> dict[str, Tensor]:
    """Returns the draws in which the data of one half have, in every particle, the latents of the last particle."""
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
        moved[name] = torch.where(own, z[-1:], z)
    return moved


def _rounded(z: Tensor) -> Tensor:
    return z * (1 - 4 * torch.finfo(z.dtype).eps) if z.is_floating_point() else z
