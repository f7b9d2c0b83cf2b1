"""The entrants of a race, each a model and an objective, and the checks before any of them is trained."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import pyro
from pyro.infer import ELBO as PyroELBO
from torch import nn

from pyrovae.common import choose_device, derived_seed, device_of, local_seed, require, require_sequence, shown
from pyrovae.data import moved, num_rows
from pyrovae.evaluation import HeldOut, at_most, tensors_in
from pyrovae.objectives import SHORTHANDS, resolve
from pyrovae.programs import ProgramPair, Reading, gate
from pyrovae.training import FitSettings, Training, TrainingData, compiles, fit, is_one_time, prepare

ObjectiveOfFit = str | PyroELBO | Mapping[int, str | PyroELBO]
FIT_PARAMETERS = inspect.signature(fit).parameters
SET_BY_THE_RACE = (
    "patience",
    "vae",
    "data",
    "objective",
    "epochs",
    "seed",
    "checkpoints",
    "progress",
    "on_start",
    "on_epoch",
)


@dataclass(frozen=True)
class Entrant:
    """One entrant of a race: its name, the function that makes its untrained pair, and what `fit` takes as objective.

    Raises `InputError` from `start` if the function returns something without a model and a guide.
    """

    name: str
    make_vae: Callable[[], ProgramPair]
    objective: ObjectiveOfFit

    @contextmanager
    def start(self, seed: int) -> Iterator[ProgramPair]:
        """Gives the untrained pair of a seed, with an empty param store.

        Parameters that Pyro initialises later within the block follow the seed, too.
        """
        with pyro.get_param_store().scope(), local_seed(derived_seed(seed, "initial parameters")):
            pair = self.make_vae()
            is_pair = all(callable(getattr(pair, name, None)) for name in ("model", "guide"))
            require(is_pair, f"make_vae must return a pair with a model and a guide, got {shown(pair)}")
            yield pair

    @property
    def folder_name(self) -> str:
        """The name as part of a folder's name."""
        return _as_folder_name(self.name)

    @property
    def changes_objective(self) -> bool:
        """True if the objective is a dict of several, each from an epoch on."""
        return isinstance(self.objective, Mapping)


@dataclass(frozen=True)
class TrainingPlan:
    """Holds what the trainings of all entrants have in common: the data, the epochs and the keywords of `fit`."""

    data: Any
    epochs: int
    settings: Mapping[str, Any]

    def setting(self, name: str) -> Any:
        """Returns a keyword of `fit`, its default if it was not given."""
        return self.settings.get(name, FIT_PARAMETERS[name].default)

    def elbo_of(self, entrant: Entrant) -> PyroELBO:
        """Returns the objective of an entrant that has one, with the settings of objectives."""
        objective = cast(str | PyroELBO, entrant.objective)  # `resolve` refuses several
        return resolve(objective, {name: self.settings.get(name) for name in SHORTHANDS})

    def plate_of(self, entrants: Sequence[Entrant]) -> str | None:
        """Returns the data plate that the objectives name, or None if they name none; raises if they name several."""
        elbos = [elbo for entrant in entrants for elbo in self._elbos_of(entrant)]
        plates = {elbo.reading.plate for elbo in elbos if hasattr(elbo, "reading")} - {None}
        require(len(plates) < 2, f"objectives must name one data plate, got {' and '.join(sorted(plates))}")
        return next(iter(plates), None)

    def _elbos_of(self, entrant: Entrant) -> list[PyroELBO]:
        if isinstance(entrant.objective, Mapping):
            return [resolve(objective, {}) for objective in entrant.objective.values()]
        return [self.elbo_of(entrant)]

    @property
    def compiles(self) -> bool:
        """True if the steps of the entrants are compiled.

        `fit` would decide the same for `epochs` epochs. The decision holds for whatever number of epochs the budget
        gives, so that a step is timed as it is trained.
        """
        asked = self.setting("compile")
        if asked != "auto":
            return asked
        return compiles(self.epochs * self._steps_of_an_epoch)

    @property
    def _steps_of_an_epoch(self) -> int:
        """The number of batches of an epoch; 0 if it is not known."""
        if self.setting("steps_per_epoch") is not None:
            return self.setting("steps_per_epoch")
        num_data = num_rows(self.data)
        if num_data is not None:
            return -(-num_data // self.setting("batch_size"))
        return 1 if self.data is None else len(self.data) if isinstance(self.data, Sized) else 0


def entrants_of(
    make_vae: Callable[[], ProgramPair] | Mapping[str, Callable[[], ProgramPair]],
    objectives: Sequence[str | PyroELBO] | Mapping[str, ObjectiveOfFit],
) -> tuple[Entrant, ...]:
    """Returns an entrant for each objective, or for each model if there is a dict of models and one objective."""
    by_name = _by_name(objectives)
    if not isinstance(make_vae, Mapping):
        return tuple(Entrant(name, make_vae, objective) for name, objective in by_name.items())
    require(len(by_name) == 1, f"objectives must hold one if make_vae is a dict, got {', '.join(by_name)}")
    (objective,) = by_name.values()
    makers = zip(_by_name(dict.fromkeys(make_vae, objective)), make_vae.values(), strict=True)
    return tuple(Entrant(name, maker, objective) for name, maker in makers)


def check_makers(make_vae: object) -> None:
    """Raises `InputError` if `make_vae` is neither a function nor a dict of functions."""
    functions = list(make_vae.values()) if isinstance(make_vae, Mapping) else [make_vae]
    rule = "make_vae must be a function without arguments, or a dict of them"
    require(len(functions) > 0 and all(map(callable, functions)), f"{rule}, got {shown(make_vae)}")


def check_settings(settings: Mapping[str, object]) -> None:
    """Raises `InputError` on a keyword that `fit` does not have or that the race sets itself."""
    known = [name for name in FIT_PARAMETERS if name not in SET_BY_THE_RACE]
    for name in settings:
        require(name in known, f"{name} must be a keyword of fit that is not the race's own: {', '.join(known)}")


def check_new_parameters(entrant: Entrant, seed: int) -> None:
    """Raises `InputError` if two pairs that an entrant makes share a parameter."""
    with entrant.start(seed) as pair, entrant.start(seed) as another:
        rule = "make_vae must create new parameters at each call, but two of its pairs share one"
        require(not _addresses(pair) & _addresses(another), rule)


def check_entrant(entrant: Entrant, plan: TrainingPlan, seed: int, held_out: HeldOut, plate: str | None) -> None:
    """Raises `InputError` if an entrant cannot be trained, or cannot be measured on the held-out data."""
    with entrant.start(seed) as pair:
        prepared(pair, plan, entrant.objective)
        with local_seed(0):
            few = at_most(pair.model, pair.guide, held_out, 2, plate)
            args = moved(few.args, device_of(pair.model, tensors_in(few.args)))
            gate.check(pair.model, pair.guide, gate.Weights(in_runs=True, reading=Reading(plate)), *args)


def prepared(pair: ProgramPair, plan: TrainingPlan, objective: ObjectiveOfFit) -> Training:
    """Returns what `fit` has before its first step, after all of its checks."""
    require(not is_one_time(plan.data), "data must begin again for every training, got a one-time iterator")
    own: dict[str, Any] = {
        "epochs": plan.epochs,
        "objective": objective,
        "objective_settings": {name: plan.setting(name) for name in SHORTHANDS},
        "seed": 0,
    }
    given = [field.name for field in fields(FitSettings) if field.name not in own]
    settings = FitSettings(**own, **{name: plan.setting(name) for name in given})
    settings.check(pair, None)
    device = choose_device(plan.setting("device"))
    data = TrainingData(pair, plan.data, plan.setting("validation"), settings, device)
    settings = replace(settings, compile=plan.compiles)  # which counts the data, after their check
    with local_seed(settings.seed):
        return prepare(pair, data, settings, None, device)


def text_of(objective: object) -> str:
    """Returns the repr of an objective, or its class if the repr holds an address, which differs between processes."""
    text = repr(objective)
    return type(objective).__name__ if " at 0x" in text else text


def _by_name(objectives: Sequence[str | PyroELBO] | Mapping[str, ObjectiveOfFit]) -> dict[str, ObjectiveOfFit]:
    """Returns what `fit` takes as objective, by name."""
    if not isinstance(objectives, Mapping):
        require_sequence("objectives", objectives, "objectives, or a dict of them")
        names = [one if isinstance(one, str) else text_of(one) for one in objectives]
        require(len(set(names)) == len(names), f"objectives must differ, got {', '.join(names)}")
        objectives = dict(zip(names, objectives, strict=True))
    require(len(objectives) > 0, "objectives must hold at least one")
    names = [_as_folder_name(str(name)) for name in objectives]
    require(len(set(names)) == len(names), f"objectives' names must differ as names of folders, got {names}")
    return {str(name): objective for name, objective in objectives.items()}


def _as_folder_name(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name).strip("_")


def _addresses(pair: ProgramPair) -> set[int]:
    """Returns the memory addresses of the parameters and buffers of a pair."""
    parts = getattr(pair, "__dict__", {}).values()  # a named tuple of two functions has none
    owner = pair if isinstance(pair, nn.Module) else nn.ModuleList(v for v in parts if isinstance(v, nn.Module))
    return {tensor.data_ptr() for tensor in (*owner.parameters(), *owner.buffers()) if tensor.numel()}
