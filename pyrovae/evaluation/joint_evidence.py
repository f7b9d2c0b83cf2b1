"""Log-weights of the joint evidence of all data, for pairs with latents that the data share.

With theta for the shared latents and z_n for those of a datum, a draw theta ~ q has the weight

    p(theta) / q(theta)  prod_n 1/K sum_k w_nk,    w_nk = p(x_n, z_nk | theta) / q(z_nk | x_n, theta)

whose mean is p(x_1 ... x_N), since the K draws of each z_n are independent given theta. A single draw of everything has
a weight that varies as much as all its data together; here each datum's part is averaged first.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import cast

import pyro
import torch
from torch import Tensor

from pyrovae.common import (
    InputError,
    Workers,
    generator_states,
    is_out_of_memory,
    local_seed,
    progress_bar,
    set_generator_states,
    warn,
)
from pyrovae.compilation import Replay
from pyrovae.evaluation.arguments import changeable
from pyrovae.evaluation.chunks import Opened, check_chunk, check_in_parts
from pyrovae.evaluation.cuts import cut
from pyrovae.evaluation.sampled_weights import Tensors, joined, on_tensors, pays, sampled_log_weights
from pyrovae.programs import Given, Pair, Reading, gate, run_pair

BLOCKS = 64  # of draws with one seed, for processes to share


class Keep:
    """Says what is kept of the draws of a run of a pair beside their weights: nothing."""

    def shared(self, pair: Pair) -> Tensors:
        """Returns what is kept of the shared latents, tensors of any shape."""
        return ()

    def local(self, pair: Pair) -> Tensors:
        """Returns what is kept of the latents of each datum, tensors `(K, data, ...)`, of which one of K stays."""
        return ()


KEEP_NOTHING = Keep()


def joint_log_weights(
    model: Callable,
    guide: Callable,
    found: Opened,
    num_draws: int,
    num_particles: int,
    compile: bool | str,
    progress: bool | None,
    needs: gate.Weights,
) -> Tensor:
    """Returns the log-weights of `num_draws` draws of the shared latents, `(num_draws, 1)`, float64.

    Each has `num_particles` draws of the latents of a datum. Pairs that do not give what `needs` asks for are refused.
    Where all latents are shared, all draws run at once if the programs can.
    """
    at_once = None if found.pair.layout.draws_locally else _at_once(model, guide, found, needs)
    if at_once is not None:
        drawn = sampled_log_weights(model, guide, at_once, num_draws, compile, progress, needs)
        return joined([(log_w,) for log_w in drawn], found.data.whole)[0]
    return nested_draws(model, guide, found, num_draws, num_particles, compile, progress, needs)[0].unsqueeze(1)


def nested_draws(
    model: Callable,
    guide: Callable,
    found: Opened,
    num_draws: int,
    num_particles: int,
    compile: bool | str,
    progress: bool | None,
    needs: gate.Weights,
    keep: Keep = KEEP_NOTHING,
) -> list[Tensor]:
    """Returns the log-weights of draws of the shared latents, `(num_draws,)`, and what `keep` keeps of each.

    See `joint_log_weights`. What is kept of shared latents comes first, `(num_draws, ...)`, and then one draw of those
    of each datum, `(num_draws, data, ...)`.
    """
    draws = _Draws(model, guide, found, num_draws, num_particles, compile, keep)
    for chunk in draws.chunks:
        check_chunk(model, guide, found, chunk, replace(needs, in_runs=True))
    blocks = torch.arange(num_draws).tensor_split(min(BLOCKS, num_draws))
    seeds = torch.randint(2**62, (len(blocks),)).tolist()  # the draws are the same whichever process takes them
    parts: list[tuple[Tensor, ...]] = []
    with progress_bar(progress, num_draws, "log p(x)", "draw") as bar, torch.no_grad():
        for index, (block, seed) in enumerate(zip(blocks, seeds, strict=True)):
            if Workers().owns(index):
                with local_seed(seed):
                    columns = zip(*(draws.next() for _ in block), strict=True)
                    parts.append(tuple(torch.stack([one.cpu() for one in column]) for column in columns))
            bar.update(len(block))
    return joined(parts, found.data.whole, dim=0)


def _at_once(model: Callable, guide: Callable, found: Opened, needs: gate.Weights) -> Opened | None:
    """Returns the pair as one in which all data are one datum, or None if its programs cannot run draws at once.

    Where they cannot, a warning says why.
    """
    try:
        one = as_one_datum(model, guide, found, needs)
    except InputError:
        return None
    return one if one.pair.layout.is_vectorized else None


def as_one_datum(
    model: Callable, guide: Callable, found: Opened, needs: gate.Weights, vectorize_particles: bool | str = "auto"
) -> Opened:
    """Returns the pair as one in which all data are one datum; raises `InputError` if it does not run like that."""
    reading = Reading(found.reading.plate, joint=True, vectorize_particles=vectorize_particles)
    pairs: list[Pair] = []
    check_in_parts(model, guide, found.as_one, replace(needs, reading=reading), pairs.append)
    at_a_time = max(1, found.pairs_at_a_time // found.data.size)
    return Opened(found.as_one, pairs[0], at_a_time, reading, found.pairs_in_memory, (model, guide, found.as_one))


def takes_all_at_once(model: Callable, guide: Callable, found: Opened) -> bool:
    """Returns True if the programs run several draws of the latents of all data in a dimension of particles."""
    with local_seed(0):
        try:
            as_one_datum(model, guide, found, gate.Weights(), vectorize_particles=True)
        except InputError:
            return False
        return True


class _Draws:
    """Draws theta again and again, and returns its log-weight each time, with what `keep` keeps of the draw.

    A draw runs the pair once, or in chunks of particles and of data if memory does not suffice. Pyro validates the
    first draw only. If one run is enough, later draws are replayed as a compiled graph where that pays.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        found: Opened,
        num_draws: int,
        num_particles: int,
        compile: bool | str,
        keep: Keep,
    ) -> None:
        self.model, self.guide, self.found, self.num_particles, self.keep = model, guide, found, num_particles, keep
        self._split(found.pairs_at_a_time)
        self.compile = pays(compile, found.data.size * num_particles * num_draws)
        self.replay: Replay | None = None
        self.is_first = True

    def _split(self, pairs: int) -> None:
        """Cuts a draw into runs of so many pairs of a particle and a datum, or somewhat more if it cannot be cut."""
        data = cut(self.model, self.guide, self.found, pairs)
        size = data.size if data.is_whole else min(pairs, data.size)
        self.pairs, self.chunks = pairs, list(data.in_chunks(size))
        at_a_time = max(1, min(self.num_particles, pairs // size))
        self.parts = [len(part) for part in torch.arange(self.num_particles).split(at_a_time)]

    def next(self) -> Tensors:
        """Returns the log-weight of a new draw, 0-dim, and what is kept of it."""
        start = generator_states()
        while True:
            try:
                with nullcontext() if self.is_first else pyro.validation_enabled(False):
                    drawn = self._replayed() if self._compiles() else self._of_chunks()
                self.is_first = False
                return drawn
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.pairs == 1:
                    raise
            # Outside the handler, because its traceback holds the tensors that filled the memory.
            self._split(self.pairs // 2)
            set_generator_states(start)

    def _compiles(self) -> bool:
        in_one_run = len(self.chunks) * len(self.parts) == 1 and self.found.pair.layout.is_vectorized
        return self.compile and in_one_run and not self.is_first

    def _replayed(self) -> Tensors:
        args = self.chunks[0].args
        inputs = changeable(args)
        if self.replay is not None:
            return cast(Tensors, self.replay(*inputs))
        function = on_tensors(self._in_one_run, args, self.num_particles)
        replay = Replay(function, inputs, lambda: function(*inputs), (self.model, self.guide))
        if replay.graph is None:
            warn(f"log-weights are computed eagerly, because the program cannot be replayed: {replay.why}")
            self.compile = False
        else:
            self.replay = replay
        return cast(Tensors, replay.outcome)

    def _in_one_run(self, *args: object, num_particles: int) -> Tensors:
        pair = self._run(args, num_particles)
        log_w = pair.terms().log_weights.double()
        return _log_ratio(pair) + _total(log_w), *self.keep.shared(pair), *one_of_each(log_w, self.keep.local(pair))

    def _of_chunks(self) -> Tensors:
        theta: dict[str, Tensor] | None = None
        totals, shared, kept = [], (), []  # type: list[Tensor], Tensors, list[Tensors]
        for chunk in self.chunks:
            parts = []
            for num_particles in self.parts:
                with Given(theta or {}):
                    pair = self._run(chunk.args, num_particles)
                if theta is None:
                    theta, shared = _shared(pair), self.keep.shared(pair)
                    totals.append(_log_ratio(pair))
                parts.append((pair.terms().log_weights, *self.keep.local(pair)))
            log_w, *local = (torch.cat(part) for part in zip(*parts, strict=True))
            totals.append(_total(log_w.double()))
            kept.append(one_of_each(log_w.double(), tuple(local)))
        return cast(Tensor, sum(totals)), *shared, *(torch.cat(part) for part in zip(*kept, strict=True))

    def _run(self, args: tuple, num_particles: int) -> Pair:
        reading = self.found.reading
        return run_pair(self.model, self.guide, *args, num_particles=num_particles, reading=reading)


def _shared(pair: Pair) -> dict[str, Tensor]:
    return {name: site["value"] for name, site in pair.guide_sites.items() if not pair.is_local(site)}


def _log_ratio(pair: Pair) -> Tensor:
    """Returns log p(theta) - log q(theta), 0-dim, float64."""
    log_p, log_q = pair.global_terms(scaled=False)
    return (log_p - log_q).double()


def _total(log_w: Tensor) -> Tensor:
    """Returns sum_n log 1/K sum_k w_nk, from log-weights `(K, data)`."""
    return (log_w.logsumexp(0) - math.log(len(log_w))).sum()


def one_of_each(log_w: Tensor, draws: Tensors) -> Tensors:
    """Returns one of the K draws of each datum, `(data, ...)`, chosen in proportion to its weight.

    `log_w` are `(K, data)`, and `draws` are tensors `(K, data, ...)`. With theta's weight these are then a draw of
    everything: the mean over the choice is the sum over all K^N combinations of draws.
    """
    if not draws:
        return ()
    noise = -torch.log(-torch.log(torch.rand_like(log_w)))  # the largest sum is at k with the probability of k
    index, data = (log_w + noise).argmax(0), torch.arange(log_w.shape[1], device=log_w.device)
    return tuple(values[index, data] for values in draws)
