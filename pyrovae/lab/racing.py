"""Races objectives: one model and guide, the same starts, trained under each and measured by one evaluator."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro.infer import ELBO as PyroELBO

from pyrovae.common import (
    FolderInUse,
    InputError,
    as_arguments,
    check_folder,
    derived_seed,
    if_given,
    kept_generators,
    local_seed,
    progress_bar,
    require,
    require_choice,
    require_count,
    require_flag,
    require_path,
    require_seeds,
    require_size,
)
from pyrovae.data import Dataset, generators_of, is_spread
from pyrovae.evaluation import Estimate, HeldOut, active_units, at_most, held_out_log_px, held_out_of
from pyrovae.lab.decoder_calls import epochs_of_equal_calls
from pyrovae.lab.entrants import (
    Entrant,
    ObjectiveOfFit,
    TrainingPlan,
    check_entrant,
    check_makers,
    check_new_parameters,
    check_settings,
    entrants_of,
)
from pyrovae.lab.learning_curve import NUM_DATA, LearningCurve, parameters_of
from pyrovae.lab.race_folder import SECONDS_BETWEEN_TRIES, RunFolder, fingerprint_of
from pyrovae.lab.race_result import Race
from pyrovae.lab.race_run import RaceRun
from pyrovae.lab.step_timing import epochs_of_equal_seconds
from pyrovae.programs import ProgramPair
from pyrovae.training import fit

BUDGETS = ("epochs", "seconds", "decoder_calls")


def race(
    make_vae: Callable[[], ProgramPair] | Mapping[str, Callable[[], ProgramPair]],
    data: Any,
    objectives: Sequence[str | PyroELBO] | Mapping[str, ObjectiveOfFit],
    seeds: Sequence[int] = (0, 1, 2),
    budget: str = "epochs",
    *,
    epochs: int,
    folder: str | Path | None = None,
    held_out: Any = None,
    num_data: int | None = None,
    num_samples: int = 5_000,
    progress: bool | None = None,
    **settings: Any,
) -> Race:
    """Trains a model under each objective from each seed, and measures all of them on the same held-out data.

    All objectives start from the same parameters, and from the same order of the data in the first epoch; both follow
    the seed. Each run is measured by log p(x) of the held-out data by importance sampling, active units, the seconds of
    training and a learning curve. If the data share latents theta, log p(x) of a held-out datum is that given what the
    guide has learnt of them: log of the mean of p(x|theta) over theta ~ q(theta).

    In `folder` every run has a folder of its own with its checkpoints and, once it is done, its result. When the race
    is called again, it resumes where it stopped, with the same bits. Several processes may share one race in one
    folder: each takes the runs that no other has, and all return the whole race.

    Args:
        make_vae: A function without arguments that returns an untrained pair with a `model` and a `guide`. It is called
            under the seed. A dict of functions races models instead; then there must be one objective.
        data: The training data, as `fit` takes them: a `Dataset`, a tensor of shape `(num, *event_shape)` or whatever
            else holds all data, an iterable of batches, or None for programs without arguments.
        objectives: Names or objects, or a dict from a name to what `fit` takes as objective. The others are compared
            with the first.
        seeds: A run is trained for each of them.
        budget: "epochs" gives each objective the same number of epochs. "seconds" gives each as many epochs as take the
            time of `epochs` epochs of the first; the time of a step is measured before the race, all in turns, and is
            kept in `folder`. "decoder_calls" gives each as many as evaluate log p(x|z), each time with its gradient,
            as often as `epochs` epochs of the first.
        epochs: The number of epochs, under another budget that of the first objective.
        folder: The folder of the runs. By default they are kept in a temporary folder, which is removed.
        held_out: The data of the evaluation: a tuple or a list of the arguments of the pair, or else its one argument.
            By default it is the test data of `data`, which must then be a `Dataset`.
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
    require_size("num_samples", num_samples, 2)  # one draw has no error
    if_given(require_count, "num_data", num_data, 2)
    require_choice("budget", budget, BUDGETS)
    require_flag("progress", progress, None)
    if_given(require_path, "folder", folder)
    check_settings(settings)
    require_seeds(seeds)
    with ExitStack() as stack:
        stack.enter_context(kept_generators(generators_of(data)))
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(folder)
        check_folder(folder, "folder")
        entrants = entrants_of(make_vae, objectives)
        plan = TrainingPlan(data, epochs, settings)
        plate = plan.plate_of(entrants)
        for entrant in entrants:
            check_new_parameters(entrant, seeds[0])
        with entrants[0].start(seeds[0]) as pair:
            measured = _held_out(pair, data, held_out, num_data, plate)
            measured_along = at_most(pair.model, pair.guide, measured, NUM_DATA, plate)
        for entrant in entrants:
            check_entrant(entrant, plan, seeds[0], measured, plate)
        fingerprint = fingerprint_of(data, measured.args)
        if budget == "epochs":
            epochs_of = {entrant.name: epochs for entrant in entrants}
        elif budget == "decoder_calls":
            epochs_of = epochs_of_equal_calls(entrants, plan, seeds[0])
        else:
            epochs_of = epochs_of_equal_seconds(entrants, plan, seeds[0], folder, fingerprint_of(data, ()))
        trainings = []
        for entrant in entrants:
            for seed in seeds:
                number = epochs_of[entrant.name]
                path = folder / f"{entrant.folder_name}-seed{seed}-{number}epochs"
                run_folder = RunFolder(path, measured.size, num_samples, seed, plate, fingerprint)
                own = measured, measured_along
                trainings.append(_Training(entrant, seed, number, plan, plate, *own, run_folder, progress))
        return Race(tuple(_finish(trainings, progress)), budget)


@dataclass(frozen=True)
class _Training:
    """One training of a race: an entrant from one seed, its epochs, the data that measure it, and its folder."""

    entrant: Entrant
    seed: int
    epochs: int
    plan: TrainingPlan
    plate: str | None
    held_out: HeldOut
    held_out_along: HeldOut
    folder: RunFolder
    progress: bool | None

    def finish(self) -> RaceRun:
        """Trains and measures whatever is not done yet, and returns the result.

        A training that is done goes through `fit` as well, which refuses a folder of another model or other settings.
        Raises `FolderInUse` if another process has the training.
        """
        folder = self.folder
        with folder.lock(), self.entrant.start(self.seed) as pair:
            for generator in generators_of(self.plan.data):  # a loader's own, which no other seed reaches
                generator.manual_seed(derived_seed(self.seed, "order of the data"))
            checkpoints = folder.checkpoints(self.held_out.args)
            curve = LearningCurve(checkpoints, pair, self.held_out_along, self.epochs, self.seed, self.plate)
            history = fit(
                pair,
                self.plan.data,
                **{**self.plan.settings, "compile": self.plan.compiles},
                objective=self.entrant.objective,
                epochs=self.epochs,
                seed=self.seed,
                checkpoints=checkpoints,
                progress=self.progress,
                on_start=curve.start,
                on_epoch=curve.add,
            )
            found = folder.kept_result(parameters_of(checkpoints), lambda: self._measure(pair))
        return RaceRun(
            self.entrant.name,
            self.seed,
            self.epochs,
            Estimate(found["value"], found["standard_error"], error_of_mean=found["error_of_mean"]),
            found["share_unreliable"],
            found["active_units"],
            seconds=sum(history.seconds),
            curve=curve.points(history),
            folder=folder.path,
        )

    def _measure(self, pair: ProgramPair) -> dict[str, object]:
        """Returns log p(x) of the held-out data, with its errors, and the active units."""
        with local_seed(derived_seed(self.seed, "evaluation")):
            found = held_out_log_px(
                pair.model,
                pair.guide,
                *self.held_out.args,
                num_samples=self.folder.num_samples,
                plate=self.plate,
                progress=self.progress,
            )
            units = _active_units(pair, self.held_out)
        estimate = {name: getattr(found, name) for name in ("value", "standard_error", "error_of_mean", "pareto_k")}
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


def _active_units(pair: ProgramPair, held_out: HeldOut) -> int | None:
    """Returns the number of active units, or None for latents of which some are not drawn for each datum."""
    try:
        return active_units(pair.model, pair.guide, *held_out.args)
    except InputError:
        return None


def _held_out(pair: ProgramPair, data: object, held_out: Any, num_data: int | None, plate: str | None) -> HeldOut:
    """Returns the first `num_data` held-out data, in the arguments of the pair."""
    if held_out is None:
        if not isinstance(data, Dataset):
            raise InputError(f"held_out must be given unless data is a Dataset, got a {type(data).__name__}")
        held_out = data.arguments("test")[: 1 + getattr(pair, "num_conditions", 0)]
    is_one = hasattr(pair, "convert_data") or not is_spread(held_out)  # a VAE takes what it needs of a tuple
    args = as_arguments(pair, (held_out,) if is_one else tuple(held_out))
    getattr(pair, "check_data", lambda *_: None)(*args)
    found = held_out_of(pair.model, pair.guide, args, num_data, plate)
    require(found.size > 1, f"held_out must hold at least 2 data, got {found.size}: one datum has no standard error")
    return found
