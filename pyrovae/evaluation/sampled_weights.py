"""Log-weights of the guide's draws for all data, and what else is wanted of the draws, chunk by chunk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import pyro
import torch
from torch import Tensor

from pyrovae.common import (
    Workers,
    generator_states,
    is_out_of_memory,
    local_seed,
    progress_bar,
    set_generator_states,
    warn,
)
from pyrovae.compilation import Replay
from pyrovae.evaluation.arguments import changeable, home_of, with_tensors
from pyrovae.evaluation.chunks import COMPILE_PAIRS, DATA_PER_CHUNK, Data, Opened, check_chunk
from pyrovae.evaluation.cuts import cut, rows_of_draws
from pyrovae.programs import Pair, gate, guide_draws, one_way_site, pair_at, run_pair

WEIGHTS_IN_MEMORY = 2**24  # numbers that are kept of draws at a time: 128 MB of log-weights

Place = tuple[slice, slice]  # particles and data
Tensors = tuple[Tensor, ...]
Take = Callable[[Pair], Tensors]


def weights_of(pair: Pair) -> Tensors:
    """Returns the log-weights of a run, `(num_particles, batch)`."""
    return (pair.terms().log_weights,)


def sampled_log_weights(
    model: Callable,
    guide: Callable,
    found: Opened,
    num_samples: int,
    compile: bool | str,
    progress: bool | None,
    needs: gate.Weights,
) -> Iterator[Tensor]:
    """Yields the log-weights of one run of data after another, `(num_samples, data)`, float64, drawn chunk by chunk.

    Data and pairs that do not give what `needs` asks for are refused. See `Sampler` and `joined`.
    """
    sampler = Sampler(model, guide, found, num_samples, compile, needs)
    return (log_w for (log_w,) in sampler.drawn(progress, "log p(x)"))


class Sampler:
    """Draws from the guide for one run of data after another, the same draws each time that it is asked.

    Each run of data has a seed of its own from the caller's generator, so that its draws are the same whichever of
    several processes draws them, and as often as they are drawn.

    Args:
        model: The model.
        guide: The guide.
        found: The pair and its data, as `opened` returns them.
        num_samples: The number of draws S of each datum.
        compile: See `log_marginal`.
        needs: What is asked of the pair.
        take: What is wanted of a run: tensors `(num_particles, batch, ...)`, of which the first are the log-weights.
        numbers: How many numbers that is for one particle and one datum.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        found: Opened,
        num_samples: int,
        compile: bool | str,
        needs: gate.Weights,
        take: Take = weights_of,
        numbers: int = 1,
    ) -> None:
        most = max(1, WEIGHTS_IN_MEMORY // (num_samples * numbers))
        size = min(DATA_PER_CHUNK, found.pairs_at_a_time, found.data.size, most)
        self.data, self.num_samples = cut(model, guide, found, size), num_samples
        self.data_size = self.data.size if self.data.is_whole else size
        self.sample_size = max(1, found.pairs_at_a_time // self.data_size)
        if found.pair.subsampled_plates:
            self.sample_size = 1  # the draws of one run share its subsample
        compiles = pays(compile, self.data.size * num_samples) and found.pair.layout.is_vectorized
        self._runs = _ChunkRuns(model, guide, found, (self.sample_size, self.data_size), compiles, take)
        self.chunks = list(self.data.in_chunks(self.data_size))
        in_runs = len(self.chunks) > 1 or num_samples > self.sample_size
        self._check = partial(check_chunk, model, guide, found, needs=replace(needs, in_runs=in_runs))
        self.seeds = [int(torch.randint(2**62, ())) for _ in self.chunks]

    @property
    def own(self) -> list[tuple[Data, int]]:
        """The runs of data that this process draws, each with its seed."""
        runs = enumerate(zip(self.chunks, self.seeds, strict=True))
        return [run for index, run in runs if Workers().owns(index)]

    def drawn(self, progress: bool | None, name: str, again: bool = False) -> Iterator[Tensors]:
        """Yields what `take` takes of the draws of each run of data of this process, `(num_samples, data, ...)`.

        The log-weights are float64. The second time data need no check: say `again`.
        """
        with progress_bar(progress, self.data.size, name, "datum") as bar:
            for index, (chunk, seed) in enumerate(zip(self.chunks, self.seeds, strict=True)):
                if Workers().owns(index):
                    with torch.no_grad(), local_seed(seed):
                        if not again:
                            self._check(chunk)
                        drawn = self._drawn(chunk)
                    yield drawn
                bar.update(chunk.size)

    def _drawn(self, data: Data) -> Tensors:
        whole: Tensors = ()
        for start in range(0, self.num_samples, self.sample_size):
            num_particles = min(self.sample_size, self.num_samples - start)
            part = self._runs(data, num_particles, validated=start == 0)
            whole = whole or _empty_like(part, self.num_samples, data.size)
            _put(whole, slice(start, start + num_particles), part)
        return whole


def _empty_like(part: Tensors, num_samples: int, num_data: int) -> Tensors:
    # Filled in place: chunks that are kept side by side would split the heap between the decoder's large outputs.
    shape = (num_samples, num_data)
    kinds = [torch.float64, *(tensor.dtype for tensor in part[1:])]
    return tuple(t.new_empty(*shape, *t.shape[2:], dtype=kind) for t, kind in zip(part, kinds, strict=True))


def _put(whole: Tensors, at: slice | Place, part: Tensors) -> None:
    for tensor, values in zip(whole, part, strict=True):
        tensor[at] = values


def pays(compile: bool | str, num_pairs: int) -> bool:
    """Returns whether so many pairs of a particle and a datum are to run as a compiled graph."""
    return num_pairs >= COMPILE_PAIRS if compile == "auto" else bool(compile)


def joined(parts: Sequence[Tensors], args: tuple, dim: int = -1) -> list[Tensor]:
    """Returns the results for all data, which are along `dim`, in their order, from every process that drew some."""
    parts = Workers().in_turn([tuple(tensor.cpu() for tensor in part) for part in parts])
    return [torch.cat(part, dim).to(home_of(args)) for part in zip(*parts, strict=True)]


class _ChunkRuns:
    """Returns what `take` takes of the runs of a chunk, tensors `(num_particles, data, ...)`.

    Pyro validates the first chunk of each run of data only: to validate every chunk would cost as much as a small
    decoder does. Later chunks of shape `shape`, which most are, are replayed as a compiled graph. If memory does not
    suffice for a chunk, its draws stay as they are and go through the decoder in pieces.
    """

    def __init__(
        self, model: Callable, guide: Callable, found: Opened, shape: tuple[int, int], compile: bool, take: Take
    ) -> None:
        self.model, self.guide, self.found, self.take = model, guide, found, take
        self.shape, self.compile = shape, compile
        self.replay: Replay | None = None
        self.num_pieces = 1
        self.may_cut: bool | None = None

    def __call__(self, data: Data, num_particles: int, validated: bool) -> Tensors:
        start = generator_states()
        while True:
            try:
                if self.num_pieces > 1:
                    return self._in_pieces(data, num_particles)
                if validated:
                    return self._run(*data.args, num_particles=num_particles)
                return self._replayed(data, num_particles)
            except (MemoryError, RuntimeError) as error:
                most = num_particles if data.is_whole else num_particles * data.size
                if not is_out_of_memory(error) or self.num_pieces >= most:
                    raise
            # Outside the handler, because its traceback holds the tensors that filled the memory.
            self.num_pieces *= 2
            set_generator_states(start)
            if data.device.type == "cuda":
                torch.cuda.empty_cache()

    def _in_pieces(self, data: Data, num_particles: int) -> Tensors:
        particles = max(1, num_particles // self.num_pieces)
        size = max(1, data.size * num_particles // (self.num_pieces * particles))
        if size < data.size and not self._may_cut(data):
            size = data.size
        whole: Tensors = ()
        with pyro.validation_enabled(False):
            pair = self.found.pair
            in_order = not pair.layout.is_vectorized or one_way_site(pair.guide_sites) is not None
            pieces = self._looped if in_order else self._of_draws
            for at, part in pieces(data, num_particles, particles, size):
                whole = whole or _empty_like(part, num_particles, data.size)
                _put(whole, at, part)
        return whole

    def _may_cut(self, data: Data) -> bool:
        """Returns whether rows may be taken; where the data were not cut into chunks, that is not yet known."""
        if data.is_whole or data.size < data.num:
            return not data.is_whole
        if self.may_cut is None:
            self.may_cut = not cut(self.model, self.guide, self.found, max(1, data.size // 2)).is_whole
        return self.may_cut

    def _of_draws(self, data: Data, num_particles: int, particles: int, size: int) -> Iterator[tuple[Place, Tensors]]:
        """Yields the places of pieces, and what is taken of the draws there."""
        pair = self.found.pair
        draws = guide_draws(self.guide, *data.args, num_particles=num_particles, layout=pair.layout)
        for i in range(0, num_particles, particles):
            like = replace(pair, num_particles=min(particles, num_particles - i))
            for j in range(0, data.size, size):
                at = slice(i, i + particles), slice(j, j + size)
                rows = data if size == data.size else data.rows(j, j + size)
                part = pair_at(self.model, self.guide, rows_of_draws(draws, pair, *at), *rows.args, like=like)
                yield at, self.take(part)

    def _looped(self, data: Data, num_particles: int, particles: int, _: int) -> Iterator[tuple[Place, Tensors]]:
        """Does the same for programs that run one particle after another, in the order of the whole."""
        for i in range(0, num_particles, particles):
            part = self._run(*data.args, num_particles=min(particles, num_particles - i))
            yield (slice(i, i + particles), slice(None)), part

    def _replayed(self, data: Data, num_particles: int) -> Tensors:
        tensors = changeable(data.args)
        if not (self.compile and tensors) or (num_particles, data.size) != self.shape:
            return self._eagerly(*data.args, num_particles=num_particles)
        if self.replay is not None:
            return cast(Tensors, self.replay(*tensors))
        eager = partial(self._eagerly, *data.args, num_particles=num_particles)
        replay = Replay(on_tensors(self._eagerly, data.args, num_particles), tensors, eager, (self.model, self.guide))
        if replay.graph is None:
            warn(f"log-weights are computed eagerly, because the program cannot be replayed: {replay.why}")
            self.compile = False
        else:
            self.replay = replay
        return cast(Tensors, replay.outcome)

    def _eagerly(self, *args: object, num_particles: int) -> Tensors:
        with pyro.validation_enabled(False):
            return self._run(*args, num_particles=num_particles)

    def _run(self, *args: object, num_particles: int) -> Tensors:
        pair = run_pair(self.model, self.guide, *args, num_particles=num_particles, reading=self.found.reading)
        return self.take(pair)


def on_tensors(function: Callable, args: tuple, num_particles: int) -> Callable[..., Tensors]:
    """Returns `function` of the arguments as a function of the tensors in them, for a graph."""

    def of_tensors(*tensors: Tensor) -> Tensors:
        remaining = iter(tensors)
        return function(*with_tensors(args, lambda _: next(remaining)), num_particles=num_particles)

    return of_tensors
