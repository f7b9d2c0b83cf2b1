"""Estimators compared on one model and guide: bound, signal and noise of the gradient, bias, time and memory."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from tabulate import tabulate
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrovae.compiled import CompiledLoss
from pyrovae.errors import InputError, require, require_choice, require_count, require_number, require_seed
from pyrovae.marginal import Estimate, check_args, device_of, log_marginal
from pyrovae.moments import Gradient, Moments
from pyrovae.objectives import gate
from pyrovae.objectives.choose import OBJECTIVES, check_objective
from pyrovae.objectives.pair import base_of
from pyrovae.rng import derived_seed, local_seed
from pyrovae.workers import hides_progress

SIDES = ("model", "guide")
FLOORED = ("snr", "dsnr", "bias")
TIMED = 10


@dataclass(frozen=True)
class Row:
    """One estimator with one number of particles.

    `bound`, in nats per datum, and its Monte Carlo error; `gap` below the estimate of log p(x) given. `seconds` are of
    a step's loss and gradients, eager and (None if not compiled) compiled, medians; `saved_bytes` is what autograd
    keeps for the backward pass; `reference` is that of the bias.
    """

    objective: str
    num_particles: int
    repeats: int
    bound: float
    bound_error: float
    gap: float
    model: Gradient | None
    guide: Gradient | None
    reference: str | None
    seconds: float
    compiled_seconds: float | None
    saved_bytes: int

    @property
    def variance_seconds(self) -> float | None:
        """Variance of the guide's gradient x seconds, compiled if it was: what is left of it after a second of
        averaging. Lower is better, among estimators of one gradient."""
        return None if self.guide is None else self.guide.variance * (self.compiled_seconds or self.seconds)


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns; prints as a table."""

    rows: tuple[Row, ...]
    log_px: Estimate
    complete: bool
    """Whether every estimator had all its repeats, or the time ran out before."""

    def __getitem__(self, key: tuple[str, int]) -> Row:
        for row in self.rows:
            if (row.objective, row.num_particles) == key:
                return row
        known = ", ".join(f"({row.objective!r}, {row.num_particles})" for row in self.rows)
        raise InputError(f"key must be one of {known}; got {key!r}")

    def to_dict(self) -> list[dict[str, object]]:
        """A flat dict of plain numbers for each row; what is not known is None."""
        flat = []
        for row in self.rows:
            values = {name: value for name, value in vars(row).items() if name not in SIDES}
            for side in SIDES:
                gradient = getattr(row, side)
                values |= {f"{side}_{name}": value for name, value in (gradient.to_dict() if gradient else {}).items()}
            values["guide_variance_seconds"] = row.variance_seconds
            flat.append({n: v if not isinstance(v, float) or math.isfinite(v) else None for n, v in values.items()})
        return flat

    def curves(self, side: str, quantity: str) -> dict[str, tuple[list[int], list[float], list[float]]]:
        """Per objective K, the `quantity` of one side's gradient at each ("snr", "dsnr" or "bias"), and its floors.

        What `fitted_slope` and `plots.against_size` take. What is not known is left out.
        """
        require_choice("side", side, SIDES)
        require_choice("quantity", quantity, FLOORED)
        found: dict[str, tuple[list, list, list]] = {}
        for row in self.rows:
            gradient = getattr(row, side)
            value = None if gradient is None else getattr(gradient, quantity)
            if value is not None and math.isfinite(value):
                point = (row.num_particles, value, getattr(gradient, f"{quantity}_floor"))
                for values, one in zip(found.setdefault(row.objective, ([], [], [])), point, strict=True):
                    values.append(one)
        return found

    def to_pandas(self):
        """`to_dict` as a `pandas.DataFrame`."""
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_pandas needs pandas, which is not installed") from error
        return pandas.DataFrame(self.to_dict())

    def table(self, tablefmt: str = "simple") -> str:
        """As text: bounds, then signal to noise of each side (its floor in brackets), bias, time, memory."""

        def pair(value: float | None, other: float | None, form: str = ".2g") -> str:
            return "" if value is None or math.isnan(value) else f"{value:{form}} ({other:.2g})"

        has_bias = any(row.reference for row in self.rows)
        lines = []
        for row in self.rows:
            line = [row.objective, str(row.num_particles), pair(row.bound, row.bound_error, ".3f"), f"{row.gap:.3f}"]
            for side in SIDES:
                gradient = getattr(row, side)
                line += ["", ""] if gradient is None else [
                    pair(gradient.snr, gradient.snr_floor), pair(gradient.dsnr, gradient.dsnr_floor)
                ]  # fmt: skip
            if has_bias:
                line.append("" if row.guide is None else pair(row.guide.bias, row.guide.bias_floor))
            compiled = "" if row.compiled_seconds is None else f"{1e3 * row.compiled_seconds:.2g}"
            line += [f"{1e3 * row.seconds:.2g}", compiled, f"{row.saved_bytes / 1e6:.2g}"]
            lines.append([*line, "" if row.variance_seconds is None else f"{row.variance_seconds:.2g}"])
        header = ["objective", "K", "bound", "gap", "SNR model", "DSNR model", "SNR guide", "DSNR guide"]
        header += ["bias guide"] * has_bias + ["ms", "ms compiled", "MB", "var x s"]
        columns = ("left", *("right",) * (len(header) - 1))
        return tabulate(lines, header, tablefmt, disable_numparse=True, colalign=columns)

    def to_markdown(self) -> str:
        return self.table("github")

    def __str__(self) -> str:
        least = min(row.repeats for row in self.rows)
        note = "" if self.complete else " (the time ran out)"
        return f"{self.table()}\nlog p(x) {self.log_px.mean:.3f} nats; {least} repeats or more{note}"

    def _repr_html_(self) -> str:
        return self.table("html")


def compare(
    model: Callable,
    guide: Callable,
    *args: Tensor,
    objectives: Sequence[str | Callable[[int], PyroELBO]] = ("elbo", "iwae", "dreg"),
    num_particles: Sequence[int] = (1, 8, 64),
    repeats: int = 100,
    log_px: Estimate | None = None,
    compile: bool = True,
    max_seconds: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Estimators side by side at the pair's present parameters, which stay as they are.

    For each of `objectives` (a name, or what makes an objective of K) and each K of `num_particles` that it takes
    (`elbo_enumerated`, which has no draws, has one row, at the first), `repeats` independent gradients of the loss per
    datum on the batch `args`: see `Row` and `Gradient` for what is measured.
    Repeats go round the estimators, so that times are interleaved, and when `max_seconds` are over all have as many,
    and none is compiled. `log_px` is what the gaps are taken from; None takes importance sampling with 5,000 draws.

    The bias is that of the mean gradient against the plain estimator of the same bound with the same K, which an
    objective's class names as its `reference` (`ELBO` for STL, analytic KL and the score function; `IWAE` for DReG and
    VIMCO), where the guide is reparameterised and not straight through. Do not read a signal off a number near its
    floor.

    Parameters, their gradients, buffers, the param store and the generators are left as they were found. Raises
    `InputError` if the pair breaks the contract, and on an objective that does not fit it.
    """
    require_count("repeats", repeats, 4)
    require(len(objectives) > 0 and len(num_particles) > 0, "objectives and num_particles must name at least one each")
    for number in num_particles:
        require_count("num_particles", number)
    if max_seconds is not None:
        require_number("max_seconds", max_seconds, above=0)
    require_seed(seed)
    makers = [_named(objective, num_particles[0]) for objective in objectives]
    for what, given in (("objectives", [name for name, _ in makers]), ("num_particles", list(num_particles))):
        require(len(set(given)) == len(given), f"{what} must differ, got {', '.join(map(str, given))}")
    check_args(args)
    device = device_of(model, args)
    args = tuple(arg.to(device) for arg in args)
    with _untouched(model, guide), local_seed(seed):
        pair = gate.check(model, guide, None, *args)
        reparameterised = all(_has_unbiased_rsample(site["fn"]) for site in pair.guide_sites.values())
        runs = []
        for (name, make), number in itertools.product(makers, num_particles):
            objective = make(number)
            if objective is None:  # one that needs more particles
                continue
            check_objective(objective, pair)
            runs.append(_Run(name, number, objective))
        require(len(runs) > 0, f"no objective takes num_particles {list(num_particles)}")
        wanted = dict.fromkeys(reference for run in runs if (reference := _reference(run)) is not None)
        have = [run.objective for run in runs]
        references = [
            _Run(f"reference {type(o).__name__}", o.num_particles, o)
            for o in wanted
            if reparameterised and o not in have
        ]
        sides = _sides(model, guide, args)
        if log_px is None:
            log_px = log_marginal(model, guide, *args, num_samples=5_000, progress=progress)
        started, done = time.perf_counter(), 0
        with tqdm(total=repeats, desc="comparing", disable=hides_progress(progress), leave=False) as bar:
            for repeat in range(repeats):
                for run in (*runs, *references):
                    run.repeat(
                        model,
                        guide,
                        args,
                        sides,
                        derived_seed(seed, f"{run.name} {run.num_particles} {repeat}"),
                        repeats,
                    )
                done += 1
                bar.update()
                if max_seconds is not None and done >= 4 and time.perf_counter() - started > max_seconds:
                    break
        found = {run.objective: run for run in (*references, *runs)} if reparameterised else {}
        complete = done == repeats  # or no time is left to compile, either
        rows = tuple(run.row(model, guide, args, sides, found, log_px.mean, compile and complete) for run in runs)
    return Comparison(rows, log_px, complete)


def _named(objective: str | Callable[[int], PyroELBO], first: int) -> tuple[str, Callable[[int], PyroELBO | None]]:
    """An objective's name, and what makes it of a number of particles; None where it needs more."""
    if isinstance(objective, str):
        require_choice("objective", objective, OBJECTIVES)
        kind = OBJECTIVES[objective]
        if "num_particles" not in {field.name for field in fields(kind)}:  # without draws: a row at the first K
            return objective, lambda number: kind() if number == first else None
        least = getattr(kind, "min_particles", 1)
        return objective, lambda number: kind(num_particles=number) if number >= least else None
    require(callable(objective) and not isinstance(objective, PyroELBO), _MAKES.format(objective))
    made = objective(4)
    require(isinstance(made, PyroELBO), _MAKES.format(made))
    return getattr(objective, "__name__", type(made).__name__), objective


_MAKES = "objectives must be names, or take a number of particles and give a pyro.infer.ELBO; got {!r}"


class _Run:
    """One estimator's repeats."""

    def __init__(self, name: str, num_particles: int, objective: PyroELBO) -> None:
        self.name, self.num_particles, self.objective = name, num_particles, objective
        self.bounds: list[float] = []
        self.seconds: list[float] = []
        self.moments = {side: Moments() for side in SIDES}

    def repeat(self, model, guide, args, sides, seed: int, planned: int) -> None:
        for parameters in sides.values():
            for parameter in parameters:
                parameter.grad = None
        with local_seed(seed):
            started = time.perf_counter()
            loss = self.objective.loss_and_grads(model, guide, *args)
            self.seconds.append(time.perf_counter() - started)
        self.bounds.append(-float(loss) / len(args[0]))
        for side, parameters in sides.items():
            if parameters:
                flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
                self.moments[side].add(torch.cat([g.flatten() for g in flat]) / len(args[0]), planned)

    def row(self, model, guide, args, sides, found: dict, log_px: float, compile: bool) -> Row:
        reference = found.get(_reference(self))
        gradients = {}
        for side, parameters in sides.items():
            other = None if reference is None else reference.moments[side]
            gradients[side] = self.moments[side].gradient(other) if parameters else None
        bounds = torch.tensor(self.bounds, dtype=torch.float64)
        return Row(
            objective=self.name,
            num_particles=self.num_particles,
            repeats=len(bounds),
            bound=bounds.mean().item(),
            bound_error=bounds.std().item() / math.sqrt(len(bounds)),
            gap=log_px - bounds.mean().item(),
            **gradients,
            reference=None if reference is None else type(reference.objective).__name__,
            seconds=_median(self.seconds),
            compiled_seconds=_compiled_seconds(model, guide, args, self.objective) if compile else None,
            saved_bytes=_saved_bytes(model, guide, args, self.objective),
        )


def _has_unbiased_rsample(fn) -> bool:
    return fn.has_rsample and not getattr(base_of(fn), "has_biased_rsample", False)


def _reference(run: _Run) -> PyroELBO | None:
    kind = getattr(run.objective, "reference", None)
    return None if kind is None else kind(run.num_particles)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _compiled_seconds(model, guide, args, objective) -> float | None:
    """The median time of a replayed step; None where it cannot be replayed."""
    loss = CompiledLoss(model, guide, objective) if hasattr(objective, "differentiable_loss") else None
    if loss is None:
        return None
    seconds = []
    for _ in range(TIMED + 1):
        started = time.perf_counter()
        loss.loss_and_grads(*args)
        seconds.append(time.perf_counter() - started)
    return None if loss.reason is not None else _median(seconds[1:])


def _saved_bytes(model, guide, args, objective) -> int:
    """The memory of all tensors that autograd keeps of a step, each storage once, but for the parameters."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective.loss_and_grads(model, guide, *args)
    return sum(kept.values())


def _sides(model: Callable, guide: Callable, args: tuple[Tensor, ...]) -> dict[str, list[Tensor]]:
    """The parameters of each program; one that both have is counted for both."""
    trace = poutine.trace(guide).get_trace(*args)
    traces = {"model": poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args), "guide": trace}
    sides = {}
    for side, nodes in traces.items():
        found = [site["value"].unconstrained() for site in nodes.nodes.values() if site["type"] == "param"]
        sides[side] = list({id(p): p for p in found if p.requires_grad}.values())
    require(any(sides.values()), "model and guide must have a parameter, and have none")
    return sides


@contextmanager
def _untouched(model: Callable, guide: Callable) -> Iterator[None]:
    """After the block gradients, buffers and the param store are as before it."""
    owners = {id(o): o for o in (getattr(p, "__self__", p) for p in (model, guide)) if isinstance(o, nn.Module)}
    store = pyro.get_param_store()
    parameters = [*(p for o in owners.values() for p in o.parameters())]
    parameters += [value.unconstrained() for value in dict(store.items()).values()]
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    buffers = [(buffer, buffer.clone()) for o in owners.values() for buffer in o.buffers()]
    try:
        with store.scope(store.get_state()):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
