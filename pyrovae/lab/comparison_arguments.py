"""The arguments of `compare`: checked, and each objective made at each number of particles."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pyro.infer import ELBO as PyroELBO

from pyrovae.common import (
    InputError,
    if_given,
    require,
    require_flag,
    require_number,
    require_seed,
    require_sequence,
    require_size,
    require_sizes,
    shown,
)
from pyrovae.evaluation import Estimate
from pyrovae.objectives import OBJECTIVES, from_text, parse
from pyrovae.programs import AS_IT_COMES, Pair, Reading, gate

FEWEST_REPEATS = 4  # two give the direction of the mean gradient, and two are measured along it


def checked_objectives(
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
        return objective, _made(objective, [number for number in num_particles if number >= fewest])
    rule = "objectives must be names, or take a number of particles and give a pyro.infer.ELBO"
    require(callable(objective) and not isinstance(objective, PyroELBO), f"{rule}; got {shown(objective)}")
    made = [(number, objective(number)) for number in num_particles]
    by_size = [(number, one) for number, one in made if one is not None]  # None: it needs more particles
    for _, one in by_size:
        require(isinstance(one, PyroELBO), f"{rule}; got {shown(one)}")
    return getattr(objective, "__name__", type(by_size[0][1]).__name__ if by_size else shown(objective)), by_size


def _made(objective: str, num_particles: Sequence[int]) -> list[tuple[int, PyroELBO]]:
    """Returns an objective at the numbers of particles that it takes with its settings, of which a baseline is one.

    If it takes none of them, what it says of the last is raised.
    """
    made: list[tuple[int, PyroELBO]] = []
    refused = None
    for number in num_particles:
        try:
            made.append((number, from_text(objective, num_particles=number)))
        except InputError as error:
            refused = error
    if refused is not None and not made:
        raise refused
    return made


def readings_of(objectives: Sequence[PyroELBO]) -> list[Reading]:
    """Returns how the pair may be read: with the data plate that an objective names; as one datum if all do so."""
    readings = [getattr(objective, "reading", AS_IT_COMES) for objective in objectives]
    plates = {reading.plate for reading in readings if reading.plate is not None}
    require(len(plates) < 2, f"objectives must name one data plate, got {' and '.join(sorted(plates))}")
    all_joint = all(reading.joint for reading in readings)
    return [Reading(next(iter(plates), None)), *[Reading(joint=True)] * all_joint]


def read(model: Callable, guide: Callable, args: tuple, readings: Sequence[Reading]) -> tuple[Pair, Reading]:
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

    def runs_again(self, pair: Pair) -> bool:
        return True  # in each repeat


def check_log_px(log_px: Estimate | None, num_data: int | None, one_value: bool) -> None:
    """Raises `InputError` if a given estimate is of another kind, or of another number of data where that is known."""
    if log_px is not None:
        require(isinstance(log_px, Estimate), f"log_px must be an Estimate, got {shown(log_px)}")
        shape = tuple(log_px.value.shape)
        fits = num_data is None or shape == (num_data,) or (one_value and shape == (1,))
        require(fits, f"log_px must be of the {num_data} data given, got values of shape {shape}")
