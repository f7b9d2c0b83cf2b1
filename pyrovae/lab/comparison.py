"""Estimators compared on one model and guide: bound, signal and noise of the gradient, bias, time and memory."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from time import perf_counter

import torch
from pyro.infer import ELBO as PyroELBO
from tabulate import tabulate
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.common import (
    InputError,
    derived_seed,
    device_of,
    hides_progress,
    local_seed,
    require,
    require_choice,
    require_count,
    require_number,
    require_seed,
    shown,
)
from pyrovae.evaluation import Estimate, check_args, log_marginal
from pyrovae.lab.costs import clock, compiled_seconds, median, saved_bytes
from pyrovae.lab.gap_to_log_px import is_bound, no_log_px, not_its_bound
from pyrovae.lab.gradient_moments import Gradient, Moments
from pyrovae.lab.sides import SIDES, sides_of
from pyrovae.lab.untouched import untouched
from pyrovae.objectives import OBJECTIVES, check_objective
from pyrovae.programs import Pair, base_of, gate

FLOORED = ("snr", "dsnr", "bias")


@dataclass(frozen=True)
class Row:
    """One estimator with one number of particles.

    - `num_particles` is K of `compare`, by which the row is found; `num_draws` the draws of z per datum that were
      taken, which are others where what was made of K says so (`lambda K: DReG(2 * K)`, MIWAE's batches), and none
      where all values are summed over.
    - `bound`, in nats per datum, and its Monte Carlo error; `gap` is what it lies below the estimate of log p(x), None
      where it is no bound on that: under a beta, free bits, Renyi's alpha < 0, of grey pixels, and of an objective
      that is not known here.
    - `model`, `guide` and `shared`: the gradients of the parameters that log p(x, z) at held z depends on, of those
      that the draws or log q(z|x) depend on, and of those that both do; None where a side has none.
    - `reference` is that of the bias. `seconds` are of a step's loss and gradients, eager and (None if not compiled)
      compiled, medians; `step_seconds` the compiled ones where every row of the comparison has them, else the eager.
      `saved_bytes` is the most that autograd keeps at a time for the backward pass, None of an objective in chunks.
    """

    objective: str
    num_particles: int
    num_draws: int
    repeats: int
    bound: float
    bound_error: float
    gap: float | None
    model: Gradient | None
    guide: Gradient | None
    shared: Gradient | None
    reference: str | None
    seconds: float
    compiled_seconds: float | None
    step_seconds: float
    saved_bytes: int | None

    @property
    def variance_seconds(self) -> float | None:
        """Variance of the gradient of all that the guide trains, `guide` and `shared`, x `step_seconds`: what is left
        of it after a second of averaging. Lower is better, among estimators of one gradient."""
        trained = [gradient.variance for gradient in (self.guide, self.shared) if gradient is not None]
        return sum(trained) * self.step_seconds if trained else None


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns; prints as a table."""

    rows: tuple[Row, ...]
    log_px: Estimate | None
    """None where the pair has no log p(x), as of grey pixels."""
    complete: bool
    """Whether every estimator had all its repeats, or the time ran out before."""
    no_gap: str | None = None
    """Why no row has a gap to log p(x), or None."""
    unreached: tuple[str, ...] = ()
    """The names of parameters that neither log p(x, z) nor the draws nor log q(z|x) depend on: they are on no side, and
    no objective trains them."""

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
            values["variance_seconds"] = row.variance_seconds
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
        """As text: bounds, then signal to noise of each side (its floor in brackets), bias, time, memory.

        Of a gradient that is the same in every repeat it says "no noise". What is not known is left empty, and so is
        the ratio where all gradients are 0.
        """
        sides = [side for side in SIDES if side != "shared" or any(row.shared for row in self.rows)]
        biased = [side for side in sides[1:] if any(row.reference and getattr(row, side) for row in self.rows)]
        other_draws = any(row.num_draws != row.num_particles for row in self.rows)
        lines = []
        for row in self.rows:
            line = [row.objective, str(row.num_particles), *[str(row.num_draws)] * other_draws]
            line += [_cell(row.bound, row.bound_error, ".3f"), _cell(row.gap, None, ".3f")]
            for gradient in (getattr(row, side) for side in sides):
                line += ["", ""] if gradient is None else [
                    _ratio(gradient.snr, gradient.snr_floor), _ratio(gradient.dsnr, gradient.dsnr_floor)
                ]  # fmt: skip
            for gradient in (getattr(row, side) for side in biased):
                line.append("" if gradient is None else _cell(gradient.bias, gradient.bias_floor))
            milliseconds = [None if t is None else 1e3 * t for t in (row.seconds, row.compiled_seconds)]
            megabytes = None if row.saved_bytes is None else row.saved_bytes / 1e6
            lines.append(line + [_cell(value) for value in (*milliseconds, megabytes, row.variance_seconds)])
        header = ["objective", "K", *["draws"] * other_draws, "bound", "gap"]
        header += [f"{ratio} {side}" for side in sides for ratio in ("SNR", "DSNR")]
        header += [*(f"bias {side}" for side in biased), "ms", "ms compiled", "MB", "var x s"]
        columns = ("left", *("right",) * (len(header) - 1))
        return tabulate(lines, header, tablefmt, disable_numparse=True, colalign=columns)

    def to_markdown(self) -> str:
        return self.table("github")

    def __str__(self) -> str:
        return f"{self.table()}\n{self.notes}"

    @property
    def notes(self) -> str:
        """What there is to be said beside the table."""
        least = min(row.repeats for row in self.rows)
        log_px = "" if self.log_px is None else f"log p(x) {self.log_px.mean:.3f} nats; "
        notes = [f"{log_px}{least} repeats or more{'' if self.complete else ' (the time ran out)'}"]
        notes += [] if self.no_gap is None else [f"no gap: {self.no_gap}"]
        if self.unreached:
            more = f" and {len(self.unreached) - 5} more" if len(self.unreached) > 5 else ""
            notes.append(f"trained by none: {', '.join(self.unreached[:5])}{more}")
        return "\n".join(notes)

    def _repr_html_(self) -> str:
        return self.table("html")


def _cell(value: float | None, floor: float | None = None, form: str = ".2g") -> str:
    """A number and, in brackets, its floor or error; empty of what is not known."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:{form}}" if floor is None or math.isnan(floor) else f"{value:{form}} ({floor:.2g})"


def _ratio(value: float, floor: float) -> str:
    """Of signal to noise."""
    return "no noise" if value == math.inf else _cell(value, floor)


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
    """Measures estimators side by side at the pair's present parameters, which stay as they are.

    For each of `objectives` (a name, or what makes an objective of K) and each K of `num_particles` that it takes
    (`elbo_enumerated`, which has no draws, has one row, at the first), `repeats` independent gradients of the loss per
    datum on the batch `args`: see `Row` and `Gradient` for what is measured.
    Repeats go round the estimators, so that times are interleaved, and when `max_seconds` are over all have as many,
    and none is compiled. `log_px`, an `Estimate` for these data, is what the gaps are taken from; None takes importance
    sampling with 5,000 draws.

    A parameter is on the side of the programs that its gradient comes from, whatever registers it; see `Row`. The bias
    is that of the mean gradient against the plain estimator of the same bound with the settings of the same object,
    which an objective's class names as its `reference` (`ELBO` for STL, analytic KL and the score function; `IWAE` for
    DReG and VIMCO), where the guide is reparameterised and not straight through. Do not read a signal off a number near
    its floor.

    Everything that the programs can see (parameters and their gradients, buffers and other tensors, modes, attributes;
    see `untouched`), the param store and the generators are left as they were found. Raises `InputError` if the pair
    breaks the contract, and on an objective that does not fit it.
    """
    require_count("repeats", repeats, 4)
    for name, given in (("objectives", objectives), ("num_particles", num_particles)):
        is_list = isinstance(given, Sequence) and not isinstance(given, str)
        require(is_list, f"{name} must be a list or a tuple, got {shown(given)}")
    require(len(objectives) > 0 and len(num_particles) > 0, "objectives and num_particles must name at least one each")
    for number in num_particles:
        require_count("num_particles", number)
    if max_seconds is not None:
        require_number("max_seconds", max_seconds, above=0)
    require_seed(seed)
    require(isinstance(compile, bool), f"compile must be true or false, got {shown(compile)}")
    made = [_made(objective, num_particles) for objective in objectives]
    for what, given in (("objectives", [name for name, _ in made]), ("num_particles", list(num_particles))):
        require(len(set(given)) == len(given), f"{what} must differ, got {', '.join(map(str, given))}")
    require(any(of for _, of in made), f"no objective takes num_particles {list(num_particles)}")
    check_args(args)
    _check_log_px(log_px, len(args[0]))
    device = device_of(model, args)
    args = tuple(arg.detach().to(device) for arg in args)
    with torch.enable_grad(), untouched(model, guide) as watch, local_seed(seed):
        pair = gate.check(model, guide, None, *args)
        for objective in (objective for _, of in made for _, objective in of):
            check_objective(objective, model, guide, *args)
        sides = sides_of(model, guide, args)
        trained = {side: getattr(sides, side) for side in SIDES}
        require(any(trained.values()), "model and guide must have a parameter that the loss depends on, and have none")
        runs = [_Run(name, number, one, repeats, trained) for name, of in made for number, one in of]
        references = _references(runs, model, guide, args, pair, trained)
        no_gap = no_log_px(pair)
        if log_px is None and no_gap is None:
            try:
                with local_seed(derived_seed(seed, "log p(x)")):
                    log_px = log_marginal(model, guide, *args, num_samples=5_000, progress=progress)
            except InputError as error:  # a pair that has bounds, and whose weights give no log p(x)
                no_gap = str(error)
        no_gap = no_gap or not_its_bound(model, guide, args, pair, watch.modules)
        started, done = perf_counter(), 0
        with tqdm(total=repeats, desc="comparing", disable=hides_progress(progress), leave=False) as bar:
            for repeat in range(repeats):
                for run in (*runs, *references):
                    run.repeat(model, guide, args, derived_seed(seed, f"{run.name} {run.num_particles} {repeat}"))
                done += 1
                bar.update()
                if max_seconds is not None and done >= 4 and perf_counter() - started > max_seconds:
                    break
        complete = done == repeats  # or no time is left to compile, either
        seconds = [
            compiled_seconds(model, guide, args, run.objective) if compile and complete else None for run in runs
        ]
        all_compiled = None not in seconds
        kept_anyway = [*watch.parameters(), *(p for side in trained.values() for p in side)]
        rows = tuple(
            run.row(
                log_px=log_px.mean if log_px is not None and no_gap is None else None,
                compiled_seconds=compiled,
                step_seconds=compiled if all_compiled else run.seconds,
                saved_bytes=saved_bytes(model, guide, args, run.objective, kept_anyway),
            )
            for run, compiled in zip(runs, seconds, strict=True)
        )
    return Comparison(rows, log_px, complete, no_gap, sides.unreached)


def _check_log_px(log_px: object, num_data: int) -> None:
    if log_px is not None:
        require(isinstance(log_px, Estimate), f"log_px must be an Estimate, got {shown(log_px)}")
        shape = tuple(log_px.value.shape)
        require(shape == (num_data,), f"log_px must be of the {num_data} data given, got values of shape {shape}")


def _made(
    objective: str | Callable[[int], PyroELBO | None], num_particles: Sequence[int]
) -> tuple[str, list[tuple[int, PyroELBO]]]:
    """Returns an objective's name, and what it is with each number of particles that it takes."""
    if isinstance(objective, str):
        require_choice("objective", objective, OBJECTIVES)
        kind = OBJECTIVES[objective]
        if "num_particles" not in {field.name for field in fields(kind)}:  # without draws: a row at the first K
            return objective, [(num_particles[0], kind())]
        least = getattr(kind, "min_particles", 1)
        return objective, [(number, kind(num_particles=number)) for number in num_particles if number >= least]
    require(callable(objective) and not isinstance(objective, PyroELBO), _MAKES.format(shown(objective)))
    made = [(number, objective(number)) for number in num_particles]
    made = [(number, one) for number, one in made if one is not None]  # of one that needs more particles
    for _, one in made:
        require(isinstance(one, PyroELBO), _MAKES.format(shown(one)))
    return getattr(objective, "__name__", type(made[0][1]).__name__ if made else shown(objective)), made


_MAKES = "objectives must be names, or take a number of particles and give a pyro.infer.ELBO; got {}"


class _Run:
    """One estimator's repeats."""

    def __init__(
        self, name: str, num_particles: int, objective: PyroELBO, planned: int, sides: dict[str, list[Tensor]]
    ) -> None:
        self.name, self.num_particles, self.objective, self.sides = name, num_particles, objective, sides
        self.planned = planned
        self.bounds: list[float] = []
        self.times: list[float] = []
        self.moments = {side: Moments(planned) for side, parameters in sides.items() if parameters}
        self.reference: _Run | None = None

    @property
    def seconds(self) -> float:
        return median(self.times)

    def repeat(self, model: Callable, guide: Callable, args: tuple[Tensor, ...], seed: int) -> None:
        for parameters in self.sides.values():
            for parameter in parameters:
                parameter.grad = None
        with local_seed(seed):
            started = clock(args[0].device)
            loss = self.objective.loss_and_grads(model, guide, *args)
            self.times.append(clock(args[0].device) - started)
        self.bounds.append(-float(loss) / len(args[0]))
        for side, moments in self.moments.items():
            flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.sides[side]]
            moments.add(torch.cat([g.flatten() for g in flat]) / len(args[0]))

    def row(
        self, log_px: float | None, compiled_seconds: float | None, step_seconds: float, saved_bytes: int | None
    ) -> Row:
        others = {} if self.reference is None else self.reference.moments
        gradients = {side: moments.gradient(others.get(side)) for side, moments in self.moments.items()}
        bounds = torch.tensor(self.bounds, dtype=torch.float64)
        gap = None if log_px is None or not is_bound(self.objective) else log_px - bounds.mean().item()
        return Row(
            objective=self.name,
            num_particles=self.num_particles,
            num_draws=getattr(self.objective, "num_draws", getattr(self.objective, "num_particles", 0)),
            repeats=len(bounds),
            bound=bounds.mean().item(),
            bound_error=bounds.std().item() / math.sqrt(len(bounds)),
            gap=gap,
            **{side: gradients.get(side) for side in SIDES},
            reference=None if self.reference is None else type(self.reference.objective).__name__,
            seconds=self.seconds,
            compiled_seconds=compiled_seconds,
            step_seconds=step_seconds,
            saved_bytes=saved_bytes,
        )


def _references(
    runs: list[_Run], model: Callable, guide: Callable, args: tuple, pair: Pair, sides: dict[str, list[Tensor]]
) -> list[_Run]:
    """Gives each run that of its reference, one of the runs or a new one, and returns the new ones."""
    if not all(_has_unbiased_rsample(site["fn"]) for site in pair.guide_sites.values()):
        return []
    new: list[_Run] = []
    for run in runs:
        reference = _reference(run.objective)
        if reference is None:
            continue
        known = (other for other in (*runs, *new) if other is not run and other.objective == reference)
        run.reference = next(known, None)
        if run.reference is None:
            check_objective(reference, model, guide, *args)
            number = getattr(reference, "num_particles", run.num_particles)
            run.reference = _Run(f"reference {type(reference).__name__}", number, reference, run.planned, sides)
            new.append(run.reference)
    return new


def _reference(objective: PyroELBO) -> PyroELBO | None:
    """The plain estimator of the same bound, with what it shares of the objective's own settings."""
    kind = getattr(objective, "reference", None)
    if kind is None:
        return None
    names = [name for name in inspect.signature(kind).parameters if name != "chunk_size" and hasattr(objective, name)]
    return kind(**{name: getattr(objective, name) for name in names})


def _has_unbiased_rsample(fn) -> bool:
    return fn.has_rsample and not getattr(base_of(fn), "has_biased_rsample", False)
