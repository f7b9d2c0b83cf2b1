"""Log-weights of the guide's draws for all data, drawn chunk by chunk."""

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
from pyrovae.evaluation.chunks import COMPILE_PAIRS, DATA_PER_CHUNK, Data, Opened, check_in_parts
from pyrovae.evaluation.cuts import cut, rows_of_draws
from pyrovae.programs import gate, guide_draws, pair_at, run_pair

WEIGHTS_IN_MEMORY = 2**24  # log-weights that are kept at a time: 128 MB

Place = tuple[slice, slice]  # particles and data


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

    Data and pairs that do not give what `needs` asks for are refused. Each run of data has a seed of its own from the
    caller's generator, so that its draws are the same whichever of several processes draws them; see `joined`.
    """
    size = min(DATA_PER_CHUNK, found.pairs_at_a_time, found.data.size, max(1, WEIGHTS_IN_MEMORY // num_samples))
    data = cut(model, guide, found, size)
    data_size = data.size if data.is_whole else size
    sample_size = max(1, found.pairs_at_a_time // data_size)
    if found.pair.subsampled_plates:
        sample_size = 1  # the draws of one run share its subsample
    compiles = pays(compile, data.size * num_samples) and found.pair.layout.is_vectorized
    needs = replace(needs, reading=found.reading)
    weights = _ChunkWeights(model, guide, found, (sample_size, data_size), compiles)

    with progress_bar(progress, data.size, "log p(x)", "datum") as bar:
        for index, chunk in enumerate(data.in_chunks(data_size)):
            seed = int(torch.randint(2**62, ()))
            if Workers().owns(index):
                with torch.no_grad(), local_seed(seed):
                    check_in_parts(model, guide, chunk, needs)
                    log_w = _drawn(weights, chunk, num_samples, sample_size)
                yield log_w
            bar.update(chunk.size)


def pays(compile: bool | str, num_pairs: int) -> bool:
    """Returns whether so many pairs of a particle and a datum are to run as a compiled graph."""
    return num_pairs >= COMPILE_PAIRS if compile == "auto" else bool(compile)


def joined(parts: Sequence[tuple[Tensor, ...]], args: tuple) -> list[Tensor]:
    """Returns the results for all data, in their order, from every process that drew some of them."""
    parts = Workers().in_turn([tuple(tensor.cpu() for tensor in part) for part in parts])
    return [torch.cat(part, -1).to(home_of(args)) for part in zip(*parts, strict=True)]


def _drawn(weights: "_ChunkWeights", data: Data, num_samples: int, sample_size: int) -> Tensor:
    # Filled in place: chunks that are kept side by side would split the heap between the decoder's large outputs.
    log_w = torch.empty(num_samples, data.size, dtype=torch.float64, device=data.device)
    for start in range(0, num_samples, sample_size):
        num_particles = min(sample_size, num_samples - start)
        log_w[start : start + sample_size] = weights(data, num_particles, validated=start == 0)
    return log_w


class _ChunkWeights:
    """Returns the log-weights of a chunk, `(num_particles, data)`.

    Pyro validates the first chunk of each run of data only: to validate every chunk would cost as much as a small
    decoder does. Later chunks of shape `shape`, which most are, are replayed as a compiled graph. If memory does not
    suffice for a chunk, its draws stay as they are and go through the decoder in pieces.
    """

    def __init__(self, model: Callable, guide: Callable, found: Opened, shape: tuple[int, int], compile: bool) -> None:
        self.model, self.guide, self.found, self.shape, self.compile = model, guide, found, shape, compile
        self.replay: Replay | None = None
        self.num_pieces = 1
        self.may_cut: bool | None = None

    def __call__(self, data: Data, num_particles: int, validated: bool) -> Tensor:
        start = generator_states()
        while True:
            try:
                if self.num_pieces > 1:
                    return self._in_pieces(data, num_particles)
                if validated:
                    return self._log_weights(*data.args, num_particles=num_particles)
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

    def _in_pieces(self, data: Data, num_particles: int) -> Tensor:
        particles = max(1, num_particles // self.num_pieces)
        size = max(1, data.size * num_particles // (self.num_pieces * particles))
        if size < data.size and not self._may_cut(data):
            size = data.size
        log_w = torch.empty(num_particles, data.size, dtype=torch.float64, device=data.device)
        with pyro.validation_enabled(False):
            pieces = self._looped if not self.found.pair.layout.is_vectorized else self._of_draws
            for at, part in pieces(data, num_particles, particles, size):
                log_w[at] = part
        return log_w

    def _may_cut(self, data: Data) -> bool:
        """Returns whether rows may be taken; where the data were not cut into chunks, that is not yet known."""
        if data.is_whole or data.size < data.num:
            return not data.is_whole
        if self.may_cut is None:
            self.may_cut = not cut(self.model, self.guide, self.found, max(1, data.size // 2)).is_whole
        return self.may_cut

    def _of_draws(self, data: Data, num_particles: int, particles: int, size: int) -> Iterator[tuple[Place, Tensor]]:
        """Yields the places of pieces, and the log-weights of the draws there."""
        pair = self.found.pair
        draws = guide_draws(self.guide, *data.args, num_particles=num_particles, layout=pair.layout)
        for i in range(0, num_particles, particles):
            like = replace(pair, num_particles=min(particles, num_particles - i))
            for j in range(0, data.size, size):
                at = slice(i, i + particles), slice(j, j + size)
                rows = data if size == data.size else data.rows(j, j + size)
                part = pair_at(self.model, self.guide, rows_of_draws(draws, pair, *at), *rows.args, like=like)
                yield at, part.terms().log_weights

    def _looped(self, data: Data, num_particles: int, particles: int, _: int) -> Iterator[tuple[Place, Tensor]]:
        """Does the same for programs that run one particle after another, in the order of the whole."""
        for i in range(0, num_particles, particles):
            log_w = self._log_weights(*data.args, num_particles=min(particles, num_particles - i))
            yield (slice(i, i + particles), slice(None)), log_w

    def _replayed(self, data: Data, num_particles: int) -> Tensor:
        tensors = changeable(data.args)
        if not (self.compile and tensors) or (num_particles, data.size) != self.shape:
            return self._eagerly(*data.args, num_particles=num_particles)[0]
        if self.replay is not None:
            return cast(Tensor, self.replay(*tensors)[0])
        eager = partial(self._eagerly, *data.args, num_particles=num_particles)
        replay = Replay(on_tensors(self._eagerly, data.args, num_particles), tensors, eager, (self.model, self.guide))
        if replay.graph is None:
            warn(f"log-weights are computed eagerly, because the program cannot be replayed: {replay.why}")
            self.compile = False
        else:
            self.replay = replay
        return cast(Tensor, replay.outcome[0])

    def _eagerly(self, *args: object, num_particles: int) -> tuple[Tensor]:
        with pyro.validation_enabled(False):
            return (self._log_weights(*args, num_particles=num_particles),)

    def _log_weights(self, *args: object, num_particles: int) -> Tensor:
        pair = run_pair(self.model, self.guide, *args, num_particles=num_particles, reading=self.found.reading)
        return pair.terms().log_weights


def on_tensors(function: Callable, args: tuple, num_particles: int) -> Callable[..., tuple[Tensor]]:
    """Returns `function` of the arguments as a function of the tensors in them, for a graph."""

    def of_tensors(*tensors: Tensor) -> tuple[Tensor]:
        remaining = iter(tensors)
        return function(*with_tensors(args, lambda _: next(remaining)), num_particles=num_particles)

    return of_tensors
