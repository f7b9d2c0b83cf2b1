"""Finds programs that draw the same latents in every run, as they have a seed of their own.

Several runs of such a program are no more draws than one: a standard error over them goes to 0 at a wrong number. A run
is watched at two seeds. A program that sets torch's generator has it, at a site or at the end, where the other run has
it; and one that makes a generator of its own each time has the same values and moves no other. Chance brings neither
about: a draw of few values, or one whose scale is lost to rounding, is none of them.
"""

from collections.abc import Callable, Mapping

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from pyrovae.common import fixed_generators, generator_states, require
from pyrovae.programs.layout import is_random
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import random_mark
from pyrovae.programs.running import traces_of
from pyrovae.programs.sites import is_discrete, sample_sites

REMEDY = "take out the seed of guide or model (poutine.seed, set_rng_seed)"


def repeated_site(pair: Pair, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> str | None:
    """Returns a latent that the guide draws as before when the pair is run again, or None. `pair` is a run of it."""
    num_particles = pair.num_particles if pair.layout.is_vectorized else None

    def run() -> Mapping[str, dict]:
        return sample_sites(traces_of(model, guide, args, kwargs, num_particles, pair.layout)[1])

    return _repeated(run)


def require_new_draws(program: Callable, *args: object) -> None:
    """Raises `InputError` if a program that is run alone, a model, draws its latents as before."""
    found = _repeated(lambda: sample_sites(poutine.trace(program).get_trace(*args)))
    require(found is None, f'the model must draw anew in every run, and draws the same at site "{found}": {REMEDY}')


def require_no_seed(run: Callable[[], object]) -> None:
    """Raises `InputError` if a run of programs leaves torch's generator at a place of its own."""

    def watched() -> Mapping[str, dict]:
        run()
        return {}

    is_set = _Watched(0, watched).end == _Watched(1, watched).end
    require(not is_set, f"a run of the programs sets torch's generator, whose draws then repeat: {REMEDY}")


def _repeated(run: Callable[[], Mapping[str, dict]]) -> str | None:
    """Returns the first random latent whose draw is the same at two seeds, or will be in a run that follows."""
    one, other = (_Watched(seed, run) for seed in (0, 1))
    is_set = one.end == other.end
    for name, site in one.sites.items():
        if not is_random(site) or not site["value"].numel() or name not in other.sites:
            continue
        if is_set or one.before[name][0] == other.before[name][0]:
            return name
        own = one.before[name] == one.after[name] and other.before[name] == other.after[name]
        if own and not is_discrete(site["fn"]) and torch.equal(site["value"], other.sites[name]["value"]):
            return name
    return None


class _Watched(Messenger):
    """Runs programs at a seed, and keeps where the generators are before and after each site, and torch's at the end.

    Of a site that is visited twice the first visit counts: a guide is run before its model.
    """

    def __init__(self, seed: int, run: Callable[[], Mapping[str, dict]]) -> None:
        super().__init__()
        self.before: dict[str, tuple] = {}
        self.after: dict[str, tuple] = {}
        with fixed_generators(seed), pyro.validation_enabled(False), self:
            self.sites = run()
            self.end = [bytes(state.numpy()) for state in generator_states()]

    def _pyro_sample(self, msg) -> None:
        if msg["name"] not in self.before:
            self.before[msg["name"]] = random_mark()

    def _pyro_post_sample(self, msg) -> None:
        if msg["name"] not in self.after:
            self.after[msg["name"]] = random_mark()
