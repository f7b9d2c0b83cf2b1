"""Log-weights of the guide's draws for all data, drawn chunk by chunk."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import pyro
import torch
from torch import Tensor

from pyrovae.common import (
    Workers,
    device_of,
    generator_states,
    is_out_of_memory,
    local_seed,
    progress_bar,
    require_compile,
    require_count,
    set_generator_states,
    warn,
)
from pyrovae.compilation import Replay
from pyrovae.evaluation.chunks import (
    COMPILE_PAIRS,
    DATA_PER_CHUNK,
    check_args,
    check_in_parts,
    pairs_at_a_time,
)
from pyrovae.programs import gate, guide_draws, pair_at, run_pair

WEIGHTS_IN_MEMORY = 2**24  # log-weights that are kept at a time: 128 MB


def sampled_log_weights(
    model: Callable,
    guide: Callable,
    args: tuple,
    num_samples: int,
    chunk_size: int | None,
    compile: bool | str,
    progress: bool | None,
    needs: gate.Needs,
) -> Iterator[Tensor]:
    """Yields the log-weights of one run of data after another, `(num_samples, data)`, float64, drawn chunk by chunk.

    Data and pairs that do not give what `needs` asks for are refused. Each run of data has a seed of its own from the
    caller's generator, so that its draws are the same whichever of several processes draws them; see `joined`.
    """
    require_count("num_samples", num_samples)
    require_compile(compile)
    check_args(args)
    Workers().check_same("data", args)
    chunk_size = pairs_at_a_time(model, guide, args, chunk_size)
    data_size = min(DATA_PER_CHUNK, chunk_size, len(args[0]), max(1, WEIGHTS_IN_MEMORY // num_samples))
    sample_size = max(1, chunk_size // data_size)
    device = device_of(model, args)
    compiles = len(args[0]) * num_samples >= COMPILE_PAIRS if compile == "auto" else bool(compile)
    weights = _ChunkWeights(model, guide, (sample_size, data_size), compiles)

    with progress_bar(progress, len(args[0]), "log p(x)", "datum") as bar:
        for index, first in enumerate(range(0, len(args[0]), data_size)):
            seed = int(torch.randint(2**62, ()))
            data = [arg[first : first + data_size].to(device) for arg in args]
            if Workers().owns(index):
                with torch.no_grad(), local_seed(seed):
                    log_w = _drawn(weights, data, num_samples, sample_size, needs)
                yield log_w
            bar.update(len(data[0]))


def joined(parts: Sequence[tuple[Tensor, ...]], args: tuple[Tensor, ...]) -> list[Tensor]:
    """Returns the results for all data, in their order, from every process that drew some of them."""
    parts = Workers().in_turn([tuple(tensor.cpu() for tensor in part) for part in parts])
    return [torch.cat(part, -1).to(args[0].device) for part in zip(*parts, strict=True)]


def _drawn(
    weights: "_ChunkWeights", data: list[Tensor], num_samples: int, sample_size: int, needs: gate.Needs
) -> Tensor:
    """Returns the log-weights of one run of data, after a check that the pair has such weights."""
    check_in_parts(weights.model, weights.guide, data, needs)
    # Filled in place: chunks that are kept side by side would split the heap between the decoder's large outputs.
    log_w = torch.empty(num_samples, len(data[0]), dtype=torch.float64, device=data[0].device)
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

    def __init__(self, model: Callable, guide: Callable, shape: tuple[int, int], compile: bool) -> None:
        self.model, self.guide, self.shape, self.compile = model, guide, shape, compile
        self.replay: Replay | None = None
        self.num_pieces = 1

    def __call__(self, data: list[Tensor], num_particles: int, validated: bool) -> Tensor:
        start = generator_states()
        while True:
            try:
                if self.num_pieces > 1:
                    return self._in_pieces(data, num_particles)
                if validated:
                    return self._log_weights(*data, num_particles=num_particles)
                return self._replayed(data, num_particles)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.num_pieces >= num_particles * len(data[0]):
                    raise
            # Outside the handler, because its traceback holds the tensors that filled the memory.
            self.num_pieces *= 2
            set_generator_states(start)
            if data[0].is_cuda:
                torch.cuda.empty_cache()

    def _in_pieces(self, data: list[Tensor], num_particles: int) -> Tensor:
        with pyro.validation_enabled(False):
            latents = guide_draws(self.guide, *data, num_particles=num_particles)
            log_w = torch.empty(num_particles, len(data[0]), dtype=torch.float64, device=data[0].device)
            particles = max(1, num_particles // self.num_pieces)
            size = max(1, len(data[0]) * num_particles // (self.num_pieces * particles))
            for i in range(0, num_particles, particles):
                for j in range(0, len(data[0]), size):
                    part = {name: z[i : i + particles, j : j + size] for name, z in latents.items()}
                    pair = pair_at(self.model, self.guide, part, *(d[j : j + size] for d in data))
                    log_w[i : i + particles, j : j + size] = pair.terms().log_weights
        return log_w

    def _replayed(self, data: list[Tensor], num_particles: int) -> Tensor:
        if not self.compile or (num_particles, len(data[0])) != self.shape:
            return self._eagerly(*data, num_particles=num_particles)[0]
        if self.replay is not None:
            return cast(Tensor, self.replay(*data)[0])
        function = partial(self._eagerly, num_particles=num_particles)
        replay = Replay(function, data, partial(function, *data), (self.model, self.guide))
        if replay.graph is None:
            warn(f"log-weights are taken eagerly, as the program cannot be replayed: {replay.why}")
            self.compile = False
        else:
            self.replay = replay
        return cast(Tensor, replay.outcome[0])

    def _eagerly(self, *data: Tensor, num_particles: int) -> tuple[Tensor]:
        with pyro.validation_enabled(False):
            return (self._log_weights(*data, num_particles=num_particles),)

    def _log_weights(self, *data: Tensor, num_particles: int) -> Tensor:
        return run_pair(self.model, self.guide, *data, num_particles=num_particles).terms().log_weights
