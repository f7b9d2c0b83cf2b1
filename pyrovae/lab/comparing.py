"""Compares estimators on one model and guide: bound, signal and noise of the gradient, bias, time and memory."""

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.common import (
    InputError,
    as_data,
    derived_seed,
    device_of,
    if_given,
    local_seed,
    progress_bar,
    require,
    require_flag,
    require_number,
    require_seed,
    require_sequence,
    require_size,
    require_sizes,
    shown,
)
from pyrovae.data import moved
from pyrovae.evaluation import Estimate, check_args, common_length, log_marginal, tensors_in, with_tensors
from pyrovae.lab.comparison import Comparison
from pyrovae.lab.comparison_row import Row
from pyrovae.lab.costs import compiled_seconds, saved_bytes
from pyrovae.lab.gap_to_log_px import no_log_px, not_its_bound
from pyrovae.lab.repeats import Repeats, give_references
from pyrovae.lab.sides import SIDES, sides_of
from pyrovae.lab.untouched import untouched
from pyrovae.objectives import OBJECTIVES, check_objective, from_text, parse
from pyrovae.programs import AS_IT_COMES, Pair, Reading, gate, takes_pair

FEWEST_REPEATS = 4  # two give the direction of the mean gradient, and two are measured along it
LOG_PX_SAMPLES = 5_000


@takes_pair
def compare(
    model: Callable,
    guide: Callable,
    *args: Any,
    objectives: Sequence[str | Callable[[int], PyroELBO | None]] = ("elbo", "iwae", "dreg"),
    num_particles: Sequence[int] = (1, 8, 64),
    repeats: int = 100,
    log_px: Estimate | None = None,
    compile: bool = True,
    max_seconds: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Measures estimators side by side at the present parameters of a pair, which stay as they are.

    Each objective with each K takes `repeats` independent gradients of the loss per datum. `Row` and `Gradient` say
    what is measured from them. The repeats go round the estimators, so that slow and fast moments of the machine are
    shared by all.

    A parameter is on the side of the program that its gradient comes from, whichever program registers it; see `Row`.
    The bias is that of the mean gradient against the plain estimator of the same bound with the same settings, which
    the class of an objective names as its `reference`: `ELBO` for STL, analytic KL and the score function, `IWAE` for
    DReG and VIMCO. It is not measured if a site of the guide draws straight through, whose gradient is biased under the
    plain estimators, too. A number near its floor is no evidence of a signal or a bias.

    Everything that the programs can see is left as it was found (parameters and their gradients, buffers and other
    tensors, modes, attributes), and so are the param store and the generators.

    Args:
        model: The generative program p(x, z), called with `args`.
        guide: The inference program q(z|x), called with `args`.
        *args: The arguments of both programs, of any number and type: the data x of shape `(batch, *event_shape)` for a
            VAE, as `log_marginal` takes them. The number of data is that of the data plate.
        objectives: The estimators. Each is a name of `objectives.OBJECTIVES`, also with settings, as in
            `"miwae(num_batches=4)"`; or a function from K to a
            `pyro.infer.ELBO`, or to None for a K that it does not take.
        num_particles: The numbers K of particles. An objective gets a row at each K that it takes; one without draws
            (`elbo_enumerated`) has a single row, at the first K.
        repeats: The number of gradients of each estimator, at least 4.
        log_px: An estimate of log p(x) for these data, which the gaps are measured from. By default it is taken by
            importance sampling with 5,000 draws. Where sites lie outside the data plate it is the joint evidence of all
            data, and the gap is that per datum.
        compile: If True, compiled steps are timed, too.
        max_seconds: The time after which no more repeats begin, and no step is compiled; no limit by default. All
            estimators have the same number of repeats, at least 4.
        seed: Fixes all draws.
        progress: Shows a progress bar; by default on a terminal.

    Returns:
        A `Comparison`, which prints as a table.

    Raises:
        InputError: An argument is invalid, the pair is refused, or an objective does not fit the pair.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
        >>> x = torch.randn(5, 2)
        >>> settings = {"objectives": ["elbo", "dreg"], "num_particles": [4], "repeats": 4, "compile": False}
        >>> found = pv.compare(vae.model, vae.guide, x, **settings)
        >>> [(row.objective, row.num_particles, row.reference) for row in found.rows]
        [('elbo', 4, None), ('dreg', 4, 'IWAE')]
        >>> found["elbo", 4].gap > found["dreg", 4].gap
        True

    Source:
        Tom Rainforth et al. 2018, Tighter Variational Bounds are Not Necessarily Better, arXiv:1802.04537.
    """
    named = _checked_objectives(objectives, num_particles, repeats, max_seconds, seed, compile)
    deadline = math.inf if max_seconds is None else perf_counter() + max_seconds
    check_args(model, args)
    _check_log_px(log_px, common_length(args), one_value=True)
    device = device_of(model, tensors_in(args))
    args = with_tensors(moved(args, device), as_data)
    readings = _readings_of([objective for _, by_size in named for _, objective in by_size])
    with torch.enable_grad(), untouched(model, guide) as watch, local_seed(seed):
        pair, reading = _read(model, guide, args, readings)
        num_data = sum(plate.full_size for plate in pair.plates) if pair.plates else 1
        _check_log_px(log_px, num_data, one_value=pair.layout.has_globals)
        for objective in (objective for _, by_size in named for _, objective in by_size):
            check_objective(objective, model, guide, *args)
        sides = sides_of(model, guide, args, reading)
        trained = {side: getattr(sides, side) for side in SIDES}
        require(any(trained.values()), "model and guide must have a parameter that the loss depends on, and have none")
        estimators = [
            Repeats(name, number, objective, repeats, trained, num_data)
            for name, by_size in named
            for number, objective in by_size
        ]
        references = give_references(estimators, model, guide, args, pair, trained)
        no_gap = no_log_px(pair)
        if log_px is None and no_gap is None:
            try:
                with local_seed(derived_seed(seed, "log p(x)")):
                    log_px = log_marginal(
                        model, guide, *args, num_samples=LOG_PX_SAMPLES, progress=progress, plate=reading.plate
                    )
            except InputError as error:  # the pair has bounds, but its weights give no log p(x)
                no_gap = str(error)
        no_gap = no_gap or not_its_bound(model, guide, args, pair, watch.modules)
        complete = _take_repeats([*estimators, *references], model, guide, args, repeats, deadline, seed, progress)
        kept_anyway = [*watch.parameters(), *(p for side in trained.values() for p in side)]
        found = Comparison((), log_px, complete, num_data=num_data).log_px_per_datum
        rows = _rows(
            estimators,
            model,
            guide,
            args,
            log_px=found[0] if found is not None and no_gap is None else None,
            device=device,
            compile_until=deadline if compile else -math.inf,
            kept_anyway=kept_anyway,
        )
    return Comparison(rows, log_px, complete, no_gap, sides.unreached, num_data)


def _take_repeats(
    estimators: Sequence[Repeats],
    model: Callable,
    guide: Callable,
    args: tuple,
    repeats: int,
    deadline: float,
    seed: int,
    progress: bool | None,
) -> bool:
    """Takes the repeats in rounds of one per estimator; returns False if the time ran out before all were taken."""
    with progress_bar(progress, repeats, "comparing") as bar:
        for repeat in range(repeats):
            for one in estimators:
                one.take_one(model, guide, args, derived_seed(seed, f"{one.name} {one.num_particles} {repeat}"))
            bar.update()
            done = repeat + 1
            if done >= FEWEST_REPEATS and perf_counter() > deadline:
                return done == repeats
    return True


def _rows(
    estimators: Sequence[Repeats],
    model: Callable,
    guide: Callable,
    args: tuple,
    *,
    log_px: float | None,
    device: torch.device,
    compile_until: float,
    kept_anyway: Sequence[Tensor],
) -> tuple[Row, ...]:
    """Returns the rows, once compiled steps are timed and the memory is measured without the tensors `kept_anyway`."""
    seconds = [
        compiled_seconds(model, guide, args, one.objective, device) if perf_counter() < compile_until else None
        for one in estimators
    ]
    all_compiled = None not in seconds
    return tuple(
        one.row(
            log_px=log_px,
            compiled_seconds=compiled,
            step_seconds=compiled if all_compiled and compiled is not None else one.seconds,
            saved_bytes=saved_bytes(model, guide, args, one.objective, kept_anyway),
        )
        for one, compiled in zip(estimators, seconds, strict=True)
    )


# Arguments ------------------------------------------------------------------------------------------------------------


def _checked_objectives(
    objectives: Sequence[str | Callable[[int], PyroELBO | None]],
    num_particles: Sequence[int],
    repeats: object,
    max_seconds: object,
    seed: object,
    compile: object,
) -> list[tuple[str, list[tuple[int, PyroELBO]]]]:
    """Returns the name of each objective and its object at each K that it takes, once all arguments are checked."""
    require_size("repeats", repeats, FEWEST_REPEATS)
    require_sequence("objectives", objectives, "names or functions")
    require_sizes("num_particles", num_particles)
    require(len(objectives) > 0 and len(num_particles) > 0, "objectives and num_particles must name at least one each")
    if_given(require_number, "max_seconds", max_seconds, 0)
    require_seed(seed)
    require_flag("compile", compile)
    named = [_by_size(objective, num_particles) for objective in objectives]
    for name, given in (("objectives", [name for name, _ in named]), ("num_particles", list(num_particles))):
        require(len(set(given)) == len(given), f"{name} must differ, got {', '.join(map(str, given))}")
    require(any(by_size for _, by_size in named), f"no objective takes num_particles {list(num_particles)}")
    return named


def _by_size(
    objective: str | Callable[[int], PyroELBO | None], num_particles: Sequence[int]
) -> tuple[str, list[tuple[int, PyroELBO]]]:
    """Returns the name of an objective, and its object at each number of particles that it takes."""
    if isinstance(objective, str):
        name, settings = parse(objective)
        require("num_particles" not in settings, f"num_particles must be given to compare and not in {objective}")
        kind = OBJECTIVES[name]
        if "num_particles" not in inspect.signature(kind).parameters:  # it takes no draws: one row, at the first K
            return objective, [(num_particles[0], from_text(objective))]
        fewest = getattr(kind, "min_particles", 1)
        numbers = [number for number in num_particles if number >= fewest]
        return objective, [(number, from_text(objective, num_particles=number)) for number in numbers]
    rule = "objectives must be names, or take a number of particles and give a pyro.infer.ELBO"
    require(callable(objective) and not isinstance(objective, PyroELBO), f"{rule}; got {shown(objective)}")
    made = [(number, objective(number)) for number in num_particles]
    by_size = [(number, one) for number, one in made if one is not None]  # None: it needs more particles
    for _, one in by_size:
        require(isinstance(one, PyroELBO), f"{rule}; got {shown(one)}")
    return getattr(objective, "__name__", type(by_size[0][1]).__name__ if by_size else shown(objective)), by_size


def _readings_of(objectives: Sequence[PyroELBO]) -> list[Reading]:
    """Returns how the pair may be read: with the data plate that an objective names; as one datum if all do so."""
    readings = [getattr(objective, "reading", AS_IT_COMES) for objective in objectives]
    plates = {reading.plate for reading in readings if reading.plate is not None}
    require(len(plates) < 2, f"objectives must name one data plate, got {' and '.join(sorted(plates))}")
    all_joint = all(reading.joint for reading in readings)
    return [Reading(next(iter(plates), None)), *[Reading(joint=True)] * all_joint]


def _read(model: Callable, guide: Callable, args: tuple, readings: Sequence[Reading]) -> tuple[Pair, Reading]:
    """Returns a run of the pair by the first reading that it has: joint bounds, too, are per datum if there are data.

    Raises `InputError` if it has none.
    """
    for reading in readings[:-1]:
        with suppress(InputError):
            return gate.check(model, guide, _AsRead(reading), *args), reading
    return gate.check(model, guide, _AsRead(readings[-1]), *args), readings[-1]


@dataclass(frozen=True)
class _AsRead:
    """Asks for nothing but a pair that can be read so."""

    reading: Reading

    def check(self, pair: Pair) -> None: ...


def _check_log_px(log_px: Estimate | None, num_data: int | None, one_value: bool) -> None:
    """Raises `InputError` if a given estimate is of another kind, or of another number of data where that is known."""
    if log_px is not None:
        require(isinstance(log_px, Estimate), f"log_px must be an Estimate, got {shown(log_px)}")
        shape = tuple(log_px.value.shape)
        fits = num_data is None or shape == (num_data,) or (one_value and shape == (1,))
        require(fits, f"log_px must be of the {num_data} data given, got values of shape {shape}")
