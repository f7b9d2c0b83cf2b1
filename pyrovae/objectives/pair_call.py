"""Runs a pair for an objective: once, again at the same random choices, or in chunks of particles."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from torch import Tensor

from pyrovae.common import generator_states, kept_generators
from pyrovae.programs import (
    Choices,
    Needs,
    Pair,
    Playback,
    common_choices,
    gate,
    is_traced,
    kept_statistics,
    known_layout,
    pair_at,
    random_mark,
    restore_generators,
    restore_statistics,
    run_pair,
    saved_generators,
    saved_statistics,
)


@dataclass
class PairCall:
    """Holds a pair, the arguments of one call of it, and the objective that it must fit.

    Two fields are for chunks of particles: `shared_draws` is what the programs draw for all particles of all chunks, if
    they draw more than latents, and `other_generators` are the states of Python's and NumPy's generators at the start
    of every chunk.
    """

    model: Callable
    guide: Callable
    args: tuple
    kwargs: dict
    needs: Needs
    choices: Choices = field(init=False)
    shared_draws: list | None = None
    other_generators: tuple | None = None
    has_run: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.choices = Choices(self.model, self.guide)

    def run(self, num_particles: int, once: bool = False) -> Pair:
        """Runs the pair; with `once` this is the only run, and `run_at` does not follow."""
        known = known_layout(self.model, self.guide, self.needs.reading)
        start = None if known or is_traced() else saved_generators()
        statistics = [] if is_traced() else saved_statistics(self.model, self.guide)
        with nullcontext() if once else self.choices.first():
            pair = self._run(num_particles)
        if known is not None and not known.fits(pair.layout):
            restore_statistics(statistics)
            return self.run(num_particles, once)  # the plates have changed, and what was found out took random numbers
        is_new_step, self.has_run = not self.has_run, True
        if gate.check_once(self.model, self.guide, self.needs, pair, self.args, self.kwargs, is_new_step):
            return pair
        restore_statistics(statistics)
        if start is not None:
            restore_generators(start)
        return self.run(num_particles, once)  # one particle after another: several at once had other densities

    def run_at(self, latents: dict[str, Tensor], like: Pair) -> Pair:
        """Runs the pair at given latents, with all other random choices those of `like`, the last run."""

        def run(redraw: bool) -> Pair:
            with self._repeating():
                return pair_at(self.model, self.guide, latents, *self.args, like=like, redraw=redraw, **self.kwargs)

        with self.kept_statistics():
            return self.choices.again(run)

    def _run(self, num_particles: int) -> Pair:
        with self._repeating():
            return run_pair(
                self.model,
                self.guide,
                *self.args,
                num_particles=num_particles,
                reading=self.needs.reading,
                sums_marked=getattr(self.needs, "sums_marked", False),
                **self.kwargs,
            )

    def _repeating(self) -> AbstractContextManager[object]:
        return nullcontext() if self.shared_draws is None else Playback(self.shared_draws)

    def kept_statistics(self) -> AbstractContextManager[None]:
        """Lets copies of the running statistics move within the block: their own move once a step, in the first run."""
        return kept_statistics(self.model, self.guide)

    # Chunks of particles ----------------------------------------------------------------------------------------------

    def draw_for_all_chunks(self) -> None:
        """Draws once what the programs draw for all particles, if they draw more than latents."""
        with self.kept_statistics():
            with kept_generators():
                pair = self._run(1)
                before = random_mark()
                pair_at(self.model, self.guide, pair.draws(), *self.args, like=pair, **self.kwargs)
                shares = pair.layout.draws_globally or len(pair.indices) > 0
                draws_more = self.choices.draws_more or shares or random_mark() != before
            if draws_more:
                self.choices.mark_as_drawing_more()
                self.other_generators = saved_generators()[1:]
                self.shared_draws = common_choices(self._run)

    def start_of_chunk(self) -> tuple:
        """Returns the states of the generators from which a chunk is run, and run again."""
        if self.other_generators is not None:
            restore_generators((generator_states(), *self.other_generators))
        return saved_generators()
