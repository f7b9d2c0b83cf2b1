"""Races objectives: one model and guide, the same starts, trained under each and measured by one evaluator."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.common import (
    FolderInUse,
    InputError,
    check_folder,
    derived_seed,
    local_seed,
    on_device_of,
    progress_bar,
    require,
    require_choice,
    require_count,
    require_seeds,
)
from pyrovae.data import Dataset
from pyrovae.evaluation import Estimate, active_units, check_args, log_marginal
from pyrovae.lab.entrants import (
    Entrant,
    ObjectiveOfFit,
    TrainingPlan,
    check_entrant,
    check_makers,
    check_settings,
    entrants_of,
)
from pyrovae.lab.learning_curve import LearningCurve
from pyrovae.lab.race_folder import SECONDS_BETWEEN_TRIES, RunFolder, fingerprint_of
from pyrovae.lab.race_result import Race, RaceRun
from pyrovae.lab.step_timing import epochs_of_equal_seconds
from pyrovae.programs import ProgramPair
from pyrovae.training import fit

BUDGETS = ("epochs", "seconds")


def race(
    make_vae: Callable[[], ProgramPair] | Mapping[str, Callable[[], ProgramPair]],
    data: Dataset | Tensor,
    objectives: Sequence[str | PyroELBO] | Mapping[str, ObjectiveOfFit],
    seeds: Sequence[int] = (0, 1, 2),
    budget: str = "epochs",
    *,
    epochs: int,
    folder: str | Path | None = None,
    held_out: Tensor | tuple[Tensor, ...] | None = None,
    num_data: int | None = None,
    num_samples: int = 5_000,
    progress: bool | None = None,
    **settings: Any,
) -> Race:
    """Trains a model under each objective from each seed, and measures all of them on the same held-out data.

    All objectives start from the same parameters, and from the same order of the data in the first epoch; both follow
    the seed. Each run is measured by log p(x) of the held-out data by importance sampling, active units, the seconds of
    training and a learning curve.

    In `folder` every run has a folder of its own with its checkpoints and, once it is done, its result. When the race
    is called again, it resumes where it stopped, with the same bits. Several processes may share one race in one
    folder: each takes the runs that no other has, and all return the whole race.

    Args:
        make_vae: A function without arguments that returns an untrained pair with a `model` and a `guide`. It is called
            under the seed. A dict of functions races models instead; then there must be one objective.
        data: The training data: a `Dataset`, or a tensor of shape `(num, *event_shape)`.
        objectives: Names or objects, or a dict from a name to what `fit` takes as objective. The others are compared
            with the first.
        seeds: A run is trained for each of them.
        budget: "epochs" gives each objective the same number of epochs. "seconds" gives each as many epochs as take the
            time of `epochs` epochs of the first; the time of a step is measured before the race, all in turns, and is
            kept in `folder`.
        epochs: The number of epochs, with budget "seconds" that of the first objective.
        folder: The folder of the runs. By default they are kept in a temporary folder, which is removed.
        held_out: The data of the evaluation, one tensor or the arguments of the pair. By default it is the test data of
            `data`, which must then be a `Dataset`.
        num_data: Only the first so many of the held-out data are used; all by default.
        num_samples: The draws of the importance estimate of log p(x), at least 2.
        progress: Shows progress bars; by default on a terminal.
        **settings: Keywords of `fit`, for all runs.

    Returns:
        A `Race`, which prints as a table.

    Raises:
        InputError: An argument is invalid. It is raised before anything is trained. Also if the folder is that of
            another race.

    Example:
        >>> data = pv.load("ring", num_train=40, num_validation=10, num_test=20)
        >>> def make_vae():
        ...     return pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
        >>> race = pv.race(make_vae, data, ["elbo", "sticking_the_landing"], seeds=(0,), epochs=1, num_samples=10)
        >>> race.objectives
        ['elbo', 'sticking_the_landing']
        >>> [(run.seed, run.epochs, tuple(run.log_px.value.shape)) for run in race["elbo"]]
        [(0, 1, (20,))]
        >>> race.difference("elbo")["value"]
        0.0
    """
    check_makers(make_vae)
    require_count("epochs", epochs)
    require_count("num_samples", num_samples, 2)  # one draw has no error
    check_settings(settings)
    require_seeds(seeds)
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(folder)
        check_folder(folder, "folder")
        entrants = entrants_of(make_vae, objectives)
        plan = TrainingPlan(data, epochs, settings)
        with entrants[0].start(seeds[0]) as pair:
            held_out = _held_out_arguments(pair, data, held_out, num_data)
        fingerprint = fingerprint_of(data, held_out)
        for entrant in entrants:
            check_entrant(entrant, plan, seeds[0], held_out)
        require_choice("budget", budget, BUDGETS)
        if budget == "epochs":
            epochs_of = {entrant.name: epochs for entrant in entrants}
        else:
            epochs_of = epochs_of_equal_seconds(entrants, plan, seeds[0], folder)
        trainings = []
        for entrant in entrants:
            for seed in seeds:
                number = epochs_of[entrant.name]
                path = folder / f"{entrant.folder_name}-seed{seed}-{number}epochs"
                run_folder = RunFolder(path, len(held_out[0]), num_samples, fingerprint)
                trainings.append(_Training(entrant, seed, number, plan, held_out, run_folder, progress))
        return Race(tuple(_finish(trainings, progress)), budget)


@dataclass(frozen=True)
class _Training:
    """One training of a race: an entrant from one seed, its epochs, and its folder."""

    entrant: Entrant
    seed: int
    epochs: int
    plan: TrainingPlan
    held_out: tuple[Tensor, ...]
    folder: RunFolder
    progress: bool | None

    def finish(self) -> RaceRun:
        """Trains and measures whatever is not done yet, and returns the result.

        A training that is done goes through `fit` as well, which refuses a folder of another model or other settings.
        Raises `FolderInUse` if another process has the training.
        """
        folder = self.folder
        with folder.lock(), self.entrant.start(self.seed) as pair:
            curve = LearningCurve(folder.curve, pair, self.held_out, self.epochs, self.seed)
            history = fit(
                pair,
                self.plan.data,
                **{**self.plan.settings, "compile": self.plan.compiles(self.entrant)},
                objective=self.entrant.objective,
                epochs=self.epochs,
                seed=self.seed,
                checkpoints=folder.checkpoints(self.held_out),
                progress=self.progress,
                on_start=curve.start,
                on_epoch=curve.add,
            )
            if not folder.result.exists():
                folder.write_result(self._measure(pair) | {"seconds": sum(history.seconds)})
        found = folder.read_result()
        log_px = Estimate(found.pop("value"), found.pop("standard_error"))
        return RaceRun(self.entrant.name, self.seed, self.epochs, log_px, **found, folder=folder.path)

    def _measure(self, pair: ProgramPair) -> dict[str, object]:
        """Returns log p(x) of the held-out data, with its errors, and the active units."""
        with local_seed(derived_seed(self.seed, "evaluation")):
            found = log_marginal(
                pair.model,
                pair.guide,
                *self.held_out,
                num_samples=self.folder.num_samples,
                progress=self.progress,
            )
            units = active_units(pair.model, pair.guide, *on_device_of(pair.model, self.held_out))
        estimate = {name: getattr(found, name) for name in ("value", "standard_error", "pareto_k")}
        return {**estimate, "active_units": units, "share_unreliable": found.share_unreliable}


def _finish(trainings: list[_Training], progress: bool | None) -> list[RaceRun]:
    """Finishes the trainings one after another, skipping those that other processes have, and returns all results."""
    left, done = list(range(len(trainings))), {}
    with progress_bar(progress, len(left), "race", "run") as bar:
        while left:
            for index in left:
                try:
                    done[index] = trainings[index].finish()
                except FolderInUse:
                    continue
                left.remove(index)
                bar.update()
                break
            else:
                time.sleep(SECONDS_BETWEEN_TRIES)
    return [done[index] for index in range(len(trainings))]


def _held_out_arguments(
    pair: ProgramPair, data: Dataset | Tensor, held_out: Tensor | tuple[Tensor, ...] | None, num_data: int | None
) -> tuple[Tensor, ...]:
    """Returns the arguments of the pair for the first `num_data` held-out data."""
    if held_out is None:
        if not isinstance(data, Dataset):
            raise InputError(f"held_out must be given unless data is a Dataset, got a {type(data).__name__}")
        held_out = data.arguments("test")[: 1 + getattr(pair, "num_conditions", 0)]
    args = tuple(held_out) if isinstance(held_out, tuple | list) else (held_out,)
    check_args(args)
    require(len(args[0]) > 1, "held_out must hold at least 2 data, got 1: one datum has no standard error")
    getattr(pair, "check_data", lambda *_: None)(*args)
    if num_data is not None:
        require_count("num_data", num_data, 2)
        most = len(args[0])
        require(num_data <= most, f"num_data must be <= {most}, the number of held-out data; got {num_data}")
    return tuple(arg[:num_data] for arg in args)
