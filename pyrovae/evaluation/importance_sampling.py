"""log p(x) per datum by importance sampling, with its errors."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import pyro
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common import (
    Workers,
    device_of,
    evaluates,
    generator_states,
    hides_progress,
    is_out_of_memory,
    local_seed,
    require,
    require_count,
    require_finite,
    set_generator_states,
    warn,
)
from pyrovae.compilation import Replay
from pyrovae.evaluation.importance_weights import (
    bound_sizes,
    bounds,
    grouped,
    influences,
    jackknifed,
    log_mean,
    pareto_smoothed,
)
from pyrovae.programs import Pair, gate, guide_draws, pair_at, run_pair

DATA_CHUNK = 128
CHUNK = 8_192
CHUNK_OUTPUTS = CHUNK * 784  # of a decoder, at a time: 26 MB
KEPT = 2**24  # log-weights at a time: 128 MB
COMPILE_PAIRS = 5_000_000


@dataclass(frozen=True)
class Estimate:
    """A quantity in nats for each datum, and what its mean over the data is worth.

    `value` and its Monte Carlo `standard_error` are `(batch,)`. `influences`, where they are known, are `(groups,
    batch)`: by how much each of independent groups of draws moves `value`, to first order (see `importance.grouped`).
    """

    value: Tensor
    standard_error: Tensor
    influences: Tensor | None = field(default=None, kw_only=True, repr=False)

    @property
    def mean(self) -> float:
        return self.value.mean().item()

    @property
    def monte_carlo_error(self) -> float:
        """Standard error of `mean` for these very data: how far another run's draws would move it."""
        return self.standard_error.square().sum().sqrt().item() / len(self.value)

    @property
    def data_error(self) -> float:
        """Standard error of `mean` as an estimate for the population that the data come from."""
        return self.value.std().item() / math.sqrt(len(self.value))

    def minus(self, other: "Estimate") -> "Estimate":
        """This estimate minus another of the same data, with the standard error of the difference.

        Where both know as many `influences`, it is that of the difference of each group's, and holds whether or not
        the two have their draws in common (as from one seed); else the two must be independent.
        """
        value, ours, theirs = self.value - other.value, self.influences, other.influences
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return Estimate(value, (self.standard_error.square() + other.standard_error.square()).sqrt())
        paired, num = ours - theirs, len(ours)
        variance = paired.square().sum(0) * (num / (num - 1) if num > 1 else math.nan)
        return Estimate(value, variance.sqrt(), influences=paired)


@dataclass(frozen=True)
class MarginalLikelihood(Estimate):
    """What `log_marginal` returns, `(batch,)` but for the bounds; `log_px` is `value`.

    `jackknife` is log p(x) with less bias, and `smoothed` with Pareto-smoothed weights: less variance, and lower where
    tails are heavy; `bounds` and
    `bounds_error`, `(sizes, batch)`, are L_K and its standard error at each K of `bound_sizes`, from the same draws.
    """

    ess: Tensor
    pareto_k: Tensor
    jackknife: Tensor
    smoothed: Tensor
    bounds: Tensor
    bounds_error: Tensor
    num_samples: int

    @property
    def bound_sizes(self) -> list[int]:
        return bound_sizes(self.num_samples)

    @property
    def log_px(self) -> Tensor:
        return self.value

    @property
    def share_unreliable(self) -> float:
        """The share of data with Pareto k > 0.7, whose estimate and standard error are not to be trusted; nan where
        the samples are too few to tell."""
        return torch.where(self.pareto_k.isnan(), torch.nan, self.is_unreliable.double()).mean().item()

    @property
    def is_unreliable(self) -> Tensor:
        """Pareto k > 0.7, for each datum."""
        return self.pareto_k > 0.7

    @property
    def verdict(self) -> str:
        """Whether to believe `mean`, in a sentence."""
        bad, count = self.is_unreliable.nonzero().flatten().tolist(), len(self.value)
        if bool(self.pareto_k.isnan().all()):
            return f"{self.num_samples} samples are too few to tell whether the estimates are reliable"
        low = self.jackknife - self.value
        told = low[low.isfinite()]  # it is infinite where every weight but one is 0
        by = f"by {max(told.mean().item(), 0):.2g} nats" if len(told) else "by an amount that no draw tells"
        if not bad:
            return (
                f"all {count:,} data have Pareto k <= 0.7; by the jackknife the mean is low {by}, if the "
                "proposal reaches all of the posterior, which its own draws cannot tell"
            )
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        alone = count - len(told)
        lone = f" (without the {alone:,} data of which one draw alone has a weight that is not 0)" if alone else ""
        return (
            f"{1 - len(bad) / count:.1%} of {count:,} data have Pareto k <= 0.7, and not the {len(bad):,} others (at "
            f"{shown}): the proposal is too narrow or its draws too few; the mean is low, by the jackknife {by}{lone} "
            "and perhaps by far more, and the standard errors say little, also where k is small: it is an estimate, too"
        )


@evaluates
def log_marginal(
    model: Callable,
    guide: Callable,
    *args: Tensor,
    num_samples: int = 5_000,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> MarginalLikelihood:
    """log p(x) for each datum by importance sampling from the guide, at beta = 1.

    log p(x) ~ log 1/S sum_s w_s, w_s = p(x, z_s) / q(z_s|x), z_s ~ q(z|x): a stochastic lower bound, low by about
    Var[w] / (2 S p(x)^2). Per datum, in nats:

    - `standard_error` by the delta method, sd(w) / (mean(w) sqrt(S));
    - `ess` = (sum w)^2 / sum w^2, between 1 and S;
    - `pareto_k`, the shape of the weights' tail (see `importance.pareto_smoothed`): where it is above 0.7 for many
      data, neither the estimate nor its standard error means much. It judges the proposal more than the datum: from the
      same draws, a rare large weight raises k and mends the estimate at once. It can be high where few draws are in the
      tail of weights that are bounded or, of codes, few in number (`enumerated_log_marginal` has no such doubts), and
      is silent on a mode that no draw has visited;
    - `jackknife`, `smoothed` and `bounds`, from the same draws; `verdict` says what to make of it all.

    `model` and `guide` are any pair that keeps the contract, `args` what they take: tensors of one length, the data
    first. `guide` is the proposal: see `proposals` for others than the one that was trained. `chunk_size` pairs of a
    particle and a datum are decoded at a time (None: 8,192, or what has the outputs of so many images of 784 pixels),
    and the weights of at most 128 data are kept at a time, of fewer where `num_samples` is large. `compile` runs the
    chunks as a compiled graph, which gives the same numbers to rounding; `"auto"` does for five million pairs or
    more. Modules run in `eval()` mode, and have their own again after. `progress=None` shows a bar on a terminal.

    Raises `InputError` if the pair breaks the contract, or where no density exists: data that are not finite, or lie
    outside the likelihood's support.
    """
    parts = []
    for log_w in _log_weights(model, guide, args, num_samples, chunk_size, compile, progress, gate.Weights()):
        value, error, ess = log_mean(log_w)
        pareto_k, smoothed = pareto_smoothed(log_w)
        parts.append((influences(log_w), value, error, ess, pareto_k, jackknifed(log_w), smoothed, *bounds(log_w)))
    found, *columns = _joined(parts, args)
    return MarginalLikelihood(*columns, num_samples, influences=found)


@evaluates
def importance_bound(
    model: Callable,
    guide: Callable,
    *args: Tensor,
    num_particles: int,
    num_repeats: int = 10,
    chunk_size: int | None = None,
    compile: bool | str = "auto",
    progress: bool | None = None,
) -> Estimate:
    """L_K = E[log 1/K sum_k w_k] for each datum, at beta = 1: the ELBO at K = 1, IWAE's bound at K > 1.

    The mean over `num_repeats` independent sets of K = `num_particles` draws, and its standard error. Arguments and
    errors as in `log_marginal`, but that K = 1 is had of grey pixels too: minus the loss of training, a bound on minus
    a cross-entropy and not on a log-density.
    """
    require_count("num_particles", num_particles)
    require_count("num_repeats", num_repeats, 2)
    parts = []
    num_samples, several = num_particles * num_repeats, num_particles > 1
    needs = gate.Weights(densities=several, everywhere=False, zeros=several)
    for log_w in _log_weights(model, guide, args, num_samples, chunk_size, compile, progress, needs):
        repeats = log_w.unflatten(0, (num_repeats, num_particles)).logsumexp(1) - math.log(num_particles)
        mean = repeats.mean(0)
        parts.append((mean, repeats.std(0) / math.sqrt(num_repeats), grouped(repeats - mean)))
    mean, error, found = _joined(parts, args)
    return Estimate(mean, error, influences=found)


# Chunks -------------------------------------------------------------------------------------------------------------


def check_args(args: tuple[Tensor, ...]) -> None:
    """`args` are batches of one length, x first, and finite."""
    require(len(args) > 0, "model and guide must be given tensors, the data first, got none")
    for index, arg in enumerate(args):
        name = "x" if index == 0 else "y"
        require(isinstance(arg, Tensor), f"{name} must be a tensor, got {type(arg).__name__}")
        require(arg.dim() > 0, f"{name} must have a dimension of data, got shape ()")
        if arg.is_floating_point():
            require_finite(name, arg)
    require(len({len(arg) for arg in args}) == 1, f"arguments must have one length, got {[len(arg) for arg in args]}")
    require(len(args[0]) > 0, "x must hold at least one datum, got 0")


def pairs_at_a_time(model: Callable, guide: Callable, args: tuple[Tensor, ...], chunk_size: int | None) -> int:
    """`chunk_size`, or for None as many pairs of a particle and a datum as a decoder's memory allows."""
    if chunk_size is not None:
        require_count("chunk_size", chunk_size)
        return chunk_size
    device, outputs = device_of(model, args), []
    few = [arg[:DATA_CHUNK].to(device) for arg in args]
    check_in_parts(model, guide, few, None, lambda pair: outputs.append(pair.outputs))
    return max(1, min(CHUNK, CHUNK_OUTPUTS // outputs[0]))


def check_in_parts(
    model: Callable,
    guide: Callable,
    data: Sequence[Tensor],
    needs: gate.Needs | None,
    look: Callable[[Pair], object] = lambda pair: None,
) -> None:
    """`look` at the pair on these data, once it gives what it needs to; half by half, where memory does not suffice."""
    try:
        with local_seed(0):
            look(gate.check(model, guide, needs, *data))
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or len(data[0]) == 1:
            raise
    half = len(data[0]) // 2
    check_in_parts(model, guide, [part[:half] for part in data], needs, look)
    check_in_parts(model, guide, [part[half:] for part in data], needs, look)


def _log_weights(
    model: Callable,
    guide: Callable,
    args: tuple,
    num_samples: int,
    chunk_size: int | None,
    compile: bool | str,
    progress: bool | None,
    needs: gate.Needs,
) -> Iterator[Tensor]:
    """For each run of data its log-weights `(num_samples, data)`, float64, drawn chunk by chunk.

    Data and pairs that do not give what `needs` asks for are refused. Each run of data has a seed from
    the caller's generator, so that it does not matter which of several processes it is drawn by; see `_joined`.
    """
    require_count("num_samples", num_samples)
    require(compile in (True, False, "auto"), f"compile must be true, false or auto, got {compile!r}")
    check_args(args)
    Workers().check_same("data", args)
    chunk_size = pairs_at_a_time(model, guide, args, chunk_size)
    data_size = min(DATA_CHUNK, chunk_size, len(args[0]), max(1, KEPT // num_samples))
    sample_size = max(1, chunk_size // data_size)
    device = device_of(model, args)
    if compile == "auto":
        compile = len(args[0]) * num_samples >= COMPILE_PAIRS
    weights = _ChunkWeights(model, guide, (sample_size, data_size), compile)

    disable = hides_progress(progress)
    with tqdm(total=len(args[0]), unit="datum", desc="log p(x)", disable=disable, leave=False) as bar:
        for index, first in enumerate(range(0, len(args[0]), data_size)):
            seed = int(torch.randint(2**62, ()))
            data = [arg[first : first + data_size].to(device) for arg in args]
            if Workers().owns(index):
                with torch.no_grad(), local_seed(seed):
                    log_w = _drawn(weights, data, num_samples, sample_size, needs)
                yield log_w
            bar.update(len(data[0]))


def _joined(parts: list[tuple[Tensor, ...]], args: tuple[Tensor, ...]) -> list[Tensor]:
    """The parts of all runs of data, in their order, from every process that drew some."""
    parts = Workers().in_turn([tuple(tensor.cpu() for tensor in part) for part in parts])
    return [torch.cat(part, -1).to(args[0].device) for part in zip(*parts, strict=True)]


def _drawn(
    weights: "_ChunkWeights", data: list[Tensor], num_samples: int, sample_size: int, needs: gate.Needs
) -> Tensor:
    """The log-weights of a run of data, once it is clear that the pair gives them."""
    check_in_parts(weights.model, weights.guide, data, needs)
    # Filled in place: chunks kept beside each other split the heap between decoders' large outputs.
    log_w = torch.empty(num_samples, len(data[0]), dtype=torch.float64, device=data[0].device)
    for start in range(0, num_samples, sample_size):
        num_particles = min(sample_size, num_samples - start)
        log_w[start : start + sample_size] = weights(data, num_particles, validated=start == 0)
    return log_w


class _ChunkWeights:
    """Log-weights of a chunk, `(num_particles, data)`.

    What Pyro validates is seen in the first of a run of data; to see it again costs as much as small decoders do. The
    others of `shape`, which most are, are replayed as a compiled graph. Where memory does not suffice for a chunk, its
    draws stay as they are and go through the decoder in pieces.
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
            # Out of the handler, whose traceback holds what filled the memory.
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
            return self.replay(*data)[0]
        function = partial(self._eagerly, num_particles=num_particles)
        replay = Replay(function, data, partial(function, *data), (self.model, self.guide))
        if replay.graph is None:
            warn(f"log-weights are taken eagerly, as the program cannot be replayed: {replay.why}")
            self.compile = False
        else:
            self.replay = replay
        return replay.outcome[0]

    def _eagerly(self, *data: Tensor, num_particles: int) -> tuple[Tensor]:
        with pyro.validation_enabled(False):
            return (self._log_weights(*data, num_particles=num_particles),)

    def _log_weights(self, *data: Tensor, num_particles: int) -> Tensor:
        return run_pair(self.model, self.guide, *data, num_particles=num_particles).terms().log_weights
