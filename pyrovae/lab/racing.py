"""Objectives raced: one model and guide, the same starts, trained under each and measured by one evaluator."""

import inspect
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrovae.common import (
    FolderInUse,
    InputError,
    check_folder,
    choose_device,
    derived_seed,
    device_of,
    exclusive_lock,
    hides_progress,
    local_seed,
    require,
    require_choice,
    require_count,
    require_seeds,
    write_atomically,
    write_text,
)
from pyrovae.data import Dataset, batches_of
from pyrovae.evaluation import Estimate, active_units, check_args, log_marginal
from pyrovae.lab.learning_curve import LearningCurve, read_curve
from pyrovae.lab.race_result import Race, RaceRun
from pyrovae.objectives import resolve
from pyrovae.programs import gate
from pyrovae.training import (
    Checkpoints,
    History,
    compiles,
    digest,
    fit,
    gradients_of,
    make_optimizer,
    trained_parameters,
)

BUDGETS = ("epochs", "seconds")
TIMED_ROUNDS = 30
WAIT = 2.0  # seconds, for runs that other processes have
FIT = inspect.signature(fit).parameters
OF_OBJECTIVES = ("num_particles", "alpha", "num_batches", "free_bits")
OWN = ("patience", "vae", "data", "objective", "epochs", "seed", "checkpoints", "progress", "on_start", "on_epoch")


def race(
    make_vae: Callable[[], object] | Mapping[str, Callable[[], object]],
    data: Dataset | Tensor,
    objectives: Sequence[str | PyroELBO] | Mapping[str, object],
    seeds: Sequence[int] = (0, 1, 2),
    budget: str = "epochs",
    *,
    epochs: int,
    folder: str | Path | None = None,
    held_out: Tensor | tuple[Tensor, ...] | None = None,
    num_data: int | None = None,
    num_samples: int = 5_000,
    progress: bool | None = None,
    **settings: object,
) -> Race:
    """Trains what `make_vae()` gives under each objective from each seed, and measures all on the same held-out data.

    - `make_vae` is called under the seed, so that all objectives start from the same parameters; what it returns has a
      `model` and a `guide`. The order of the data follows the seed, too, and is the same for all in the first epoch.
      Models are raced where it is a dict of several and the objective is one.
    - `objectives`: names or objects, or a dict from a name to what `fit` takes as objective. The first is what the
      others are compared with.
    - `budget`: `"epochs"` gives `epochs` to each; `"seconds"` gives each as many as take the time of `epochs` epochs of
      the first, by the times of their steps, which are measured in turns before the race and kept in `folder`.
    - Measured are log p(x) of the first `num_data` of `held_out` (by default the test data; else what model and guide
      take) by importance sampling with `num_samples` draws, active units, seconds, and a curve along the training.
    - `settings` are keywords of `fit`.

    In `folder` every run has a folder of its own with checkpoints, and its results once it is done: called again, the
    race goes on where it was broken off, to the bit. Several processes may run one race in one folder at once, each
    takes runs that no other has; all return the whole. With None nothing is kept.

    Raises `InputError` on bad input before anything is trained.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        racer = _Racer(make_vae, data, objectives, seeds, epochs, Path(folder), held_out, num_data, num_samples,
                       progress, settings)  # fmt: skip
        return racer.race(budget)


class _Racer:
    def __init__(
        self, make_vae, data, objectives, seeds, epochs, folder, held_out, num_data, num_samples, progress, settings
    ) -> None:
        functions = list(make_vae.values()) if isinstance(make_vae, Mapping) else [make_vae]
        rule = "make_vae must be a function without arguments, or a dict of them"
        require(len(functions) > 0 and all(map(callable, functions)), f"{rule}, got {make_vae!r}")
        require_count("epochs", epochs)
        require_count("num_samples", num_samples, 2)  # one draw has no error
        known = [name for name in FIT if name not in OWN]
        for name in settings:
            require(name in known, f"{name} must be a keyword of fit that is not the race's own: {', '.join(known)}")
        require_seeds(seeds)
        check_folder(folder, "folder")
        self.data, self.seeds, self.epochs, self.folder = data, tuple(seeds), epochs, folder
        self.objectives = _named(objectives)
        if isinstance(make_vae, Mapping):
            rule = "objectives must be one where make_vae are several"
            require(len(self.objectives) == 1, f"{rule}, got {', '.join(self.objectives)}")
            (objective,) = self.objectives.values()
            self.objectives = _named(dict.fromkeys(make_vae, objective))
        self.makers = dict(zip(self.objectives, functions * (len(self.objectives) // len(functions)), strict=True))
        self.num_samples, self.progress, self.settings = num_samples, progress, settings
        with self._start(next(iter(self.objectives)), self.seeds[0]) as vae:
            self.held_out = _first(vae, data, held_out, num_data)
            trained_on = data.arguments("train") if isinstance(data, Dataset) else (data,)
            self.fingerprint = digest((*self.held_out, *(part for part in trained_on if isinstance(part, Tensor))))
        for name, objective in self.objectives.items():
            with self._start(name, self.seeds[0]) as vae, self._start(name, self.seeds[0]) as another:
                rule = "make_vae must make all parameters anew at each call, and two of its pairs share one"
                require(not _tensors(vae).keys() & _tensors(another).keys(), rule)
                _check(vae, data, objective, epochs, settings)
                with local_seed(0):
                    few = _on_device(vae, tuple(arg[:2] for arg in self.held_out))
                    gate.check(vae.model, vae.guide, gate.Weights(), *few)

    def race(self, budget: str) -> Race:
        require_choice("budget", budget, BUDGETS)
        epochs = dict.fromkeys(self.objectives, self.epochs) if budget == "epochs" else self._equal_seconds()
        left = [(name, seed, epochs[name]) for name in self.objectives for seed in self.seeds]
        order, done = list(left), {}
        with tqdm(total=len(left), unit="run", desc="race", disable=hides_progress(self.progress), leave=False) as bar:
            while left:
                for key in list(left):
                    try:
                        done[key] = self._run(*key)
                    except FolderInUse:
                        continue
                    left.remove(key)
                    bar.update()
                    break
                else:
                    time.sleep(WAIT)
        return Race(tuple(done[key] for key in order), budget)

    @contextmanager
    def _start(self, name: str, seed: int) -> Iterator[object]:
        """The untrained pair of an entrant and a seed, with a param store of its own; what Pyro draws later comes of
        the seed, too."""
        with pyro.get_param_store().scope(), local_seed(derived_seed(seed, "initial parameters")):
            vae = self.makers[name]()
            pair = all(callable(getattr(vae, name, None)) for name in ("model", "guide"))
            require(pair, f"make_vae must return what has a model and a guide, got {vae!r}"[:200])
            yield vae

    def _run(self, name: str, seed: int, epochs: int) -> RaceRun:
        """The run, done, or gone on with, where it is not; one that is done goes through `fit`, too, which finds out
        whether it was another model's or had other settings."""
        folder = self.folder / f"{_slug(name)}-seed{seed}-{epochs}epochs"
        result = folder / f"log_px_{len(self.held_out[0])}x{self.num_samples}.pt"
        with exclusive_lock(folder / "race.lock"), self._start(name, seed) as vae:
            curve = LearningCurve(folder / "curve.jsonl", vae, self.held_out, epochs, seed)
            history = fit(
                vae,
                self.data,
                **{**self.settings, "compile": self._compiles(name)},
                objective=self.objectives[name],
                epochs=epochs,
                seed=seed,
                checkpoints=Checkpoints(folder, told={"held-out data": digest(self.held_out)}, repeated=True),
                progress=self.progress,
                on_start=curve.start,
                on_epoch=curve.add,
            )
            if not result.exists():
                content = self._measured(vae, seed) | {"seconds": sum(history.seconds), "data": self.fingerprint}
                write_atomically(result, lambda path: torch.save(content, path))
        return self._read(name, seed, epochs, folder, result)

    def _compiles(self, name: str) -> bool:
        """As `fit` would for the epochs that are asked for, whatever the budget makes of them: a step is timed as it is
        trained."""
        asked, objective = self.settings.get("compile", "auto"), self.objectives[name]
        if asked != "auto":
            return asked
        given = {key: self.settings.get(key) for key in OF_OBJECTIVES}
        several = objective.values() if isinstance(objective, Mapping) else (objective,)
        batch_size = self.settings.get("batch_size", FIT["batch_size"].default)
        num_data = len(self.data.train_x) if isinstance(self.data, Dataset) else len(self.data)
        num_steps = self.epochs * -(-num_data // batch_size)
        return all(compiles(resolve(one, {} if len(several) > 1 else given), num_steps) for one in several)

    def _measured(self, vae, seed: int) -> dict[str, object]:
        settings = {"num_samples": self.num_samples, "progress": self.progress}
        with local_seed(derived_seed(seed, "evaluation")):
            found = log_marginal(vae.model, vae.guide, *self.held_out, **settings)
            units = active_units(vae.model, vae.guide, *_on_device(vae, self.held_out))
        estimate = {name: getattr(found, name) for name in ("value", "standard_error", "pareto_k")}
        return {**estimate, "active_units": units, "share_unreliable": found.share_unreliable}

    def _read(self, name: str, seed: int, epochs: int, folder: Path, result: Path) -> RaceRun:
        try:
            content = torch.load(result, weights_only=True)
            same = content["data"] == self.fingerprint
            estimate = Estimate(content["value"], content["standard_error"])
            rest = (
                content["share_unreliable"],
                content["active_units"],
                content["seconds"],
                read_curve(folder / "curve.jsonl"),
            )
        except Exception as error:  # torch.load has no error of its own: a damaged file may raise anything
            raise InputError(f"{result} is not a readable result ({type(error).__name__}): remove it") from error
        require(same, f"{result} is of other data than these: take another folder")
        return RaceRun(name, seed, epochs, estimate, *rest, folder)

    # Equal seconds ----------------------------------------------------------------------------------------------------

    def _equal_seconds(self) -> dict[str, int]:
        """The epochs of each objective that take the seconds of `epochs` epochs of the first, to the nearest."""
        several = [name for name, objective in self.objectives.items() if isinstance(objective, Mapping)]
        require(not several, f"budget seconds is for objectives that stay, and {'; '.join(several)} change")
        path, seconds = self.folder / "step_seconds.json", None
        while seconds is None:
            try:
                with exclusive_lock(self.folder / "step_seconds.lock"):
                    seconds = self._known_seconds(path)
                    if any(key not in seconds for key in self.timed):
                        seconds = self._step_seconds(seconds)
                        write_text(path, json.dumps(seconds, indent=2) + "\n")
            except FolderInUse:
                time.sleep(WAIT)
        of_each = dict(zip(self.objectives, (seconds[key] for key in self.timed), strict=True))
        first = next(iter(of_each.values()))
        return {name: max(1, round(self.epochs * first / each)) for name, each in of_each.items()}

    def _known_seconds(self, path: Path) -> dict[str, float]:
        try:
            seconds = json.loads(path.read_text()) if path.exists() else {}
            require(all(isinstance(value, float) and value > 0 for value in seconds.values()), "")
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path} must have the seconds of steps by name: remove it") from error
        return seconds

    @property
    def timed(self) -> list[str]:
        """What is timed, of each objective, in words."""
        batch = f"batch {self.settings.get('batch_size', FIT['batch_size'].default)}"
        models = len(set(self.makers.values())) > 1
        pairs = zip(self.objectives, self._resolved(), strict=True)
        return [f"{name}, {batch}" if models else f"{_text(elbo)}, {batch}" for name, elbo in pairs]

    def _resolved(self) -> list[PyroELBO]:
        given = {name: self.settings.get(name) for name in OF_OBJECTIVES}
        return [resolve(objective, given) for objective in self.objectives.values()]

    def _step_seconds(self, known: dict[str, float]) -> dict[str, float]:
        """Lower quartiles of the seconds of training steps, taken in turns, so that what else the machine does is
        shared by all. Where some are known the others are taken beside the first, and in its seconds of then."""
        steps: dict[str, Callable[[], None]] = {}
        first = self.timed[0]
        with ExitStack() as stack:
            for name, key, elbo in zip(self.objectives, self.timed, self._resolved(), strict=True):
                if key == first or key not in known:
                    steps[key] = self._stepper(name, stack.enter_context(self._start(name, self.seeds[0])), elbo)
                    steps[key]()  # compiles
            times: dict[str, list[float]] = {key: [] for key in steps}
            for _ in range(TIMED_ROUNDS):
                for key, step in steps.items():
                    started = time.perf_counter()
                    step()
                    times[key].append(time.perf_counter() - started)
        found = {key: sorted(values)[len(values) // 4] for key, values in times.items()}
        factor = known[first] / found[first] if first in known else 1.0
        return {**{key: factor * value for key, value in found.items()}, **known}

    def _stepper(self, name: str, vae, elbo: PyroELBO) -> Callable[[], None]:
        """Steps on one batch as `fit` takes them."""
        device = choose_device(self.settings.get("device", FIT["device"].default))
        if isinstance(vae, nn.Module):
            vae.to(device)
        asked = {
            name: self.settings.get(name, FIT[name].default) for name in ("batch_size", "compile", "lr", "optimizer")
        }
        batch = next(iter(batches_of(vae, self.data, None, asked["batch_size"], device)[0]()))
        parameters = trained_parameters(vae, elbo, batch)
        gradients = gradients_of(vae, elbo, parameters, self._compiles(name))
        optimizer = make_optimizer(asked["optimizer"], list(parameters.values()), asked["lr"])

        def step() -> None:
            loss, _ = gradients(*batch)
            optimizer.step()
            loss.item()

        return step


class _Enough(Exception):
    """`fit` has found nothing to refuse."""


def _check(vae, data, objective, epochs: int, settings: dict[str, object]) -> None:
    """All that `fit` checks before its first step, and no step."""

    def stop(_: History) -> None:
        raise _Enough

    with suppress(_Enough):
        fit(vae, data, **settings, objective=objective, epochs=epochs, seed=0, progress=False, on_start=stop)


def _named(objectives) -> dict[str, object]:
    """What `fit` takes as objective, by name."""
    if not isinstance(objectives, Mapping):
        sequence = isinstance(objectives, Sequence) and not isinstance(objectives, str)
        require(sequence, f"objectives must be a sequence or a dict of objectives, got {objectives!r}")
        names = [one if isinstance(one, str) else _text(one) for one in objectives]
        require(len(set(names)) == len(names), f"objectives must differ, got {', '.join(names)}")
        objectives = dict(zip(names, objectives, strict=True))
    require(len(objectives) > 0, "objectives must hold at least one")
    names = [_slug(str(name)) for name in objectives]
    require(len(set(names)) == len(names), f"objectives' names must differ as names of folders, got {names}")
    return {str(name): objective for name, objective in objectives.items()}


def _text(objective: object) -> str:
    """The same in every process: Pyro's own ELBOs have an address in their repr."""
    text = repr(objective)
    return type(objective).__name__ if " at 0x" in text else text


def _slug(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name).strip("_")


def _first(vae, data, held_out, num_data: int | None) -> tuple[Tensor, ...]:
    """What model and guide take, of the first held-out data."""
    if held_out is None:
        require(isinstance(data, Dataset), f"held_out must be given where data is no Dataset but {type(data).__name__}")
        held_out = data.arguments("test")[: 1 + getattr(vae, "num_conditions", 0)]
    args = tuple(held_out) if isinstance(held_out, tuple | list) else (held_out,)
    check_args(args)
    require(len(args[0]) > 1, "held_out must hold at least 2 data, got 1: there is no error over one")
    getattr(vae, "check_data", lambda *_: None)(*args)
    if num_data is not None:
        require_count("num_data", num_data, 2)
        most = len(args[0])
        require(num_data <= most, f"num_data must be <= {most}, the number of held-out data; got {num_data}")
    return tuple(arg[:num_data] for arg in args)


def _tensors(vae) -> dict[int, Tensor]:
    """Parameters and buffers by where they lie."""
    parts = getattr(vae, "__dict__", {}).values()  # a named tuple of two functions has none
    owner = vae if isinstance(vae, nn.Module) else nn.ModuleList(v for v in parts if isinstance(v, nn.Module))
    tensors = (*owner.parameters(), *owner.buffers())
    return {tensor.data_ptr(): tensor for tensor in tensors if tensor.numel()}


def _on_device(vae, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    device = device_of(vae.model, args)
    return tuple(arg.to(device) for arg in args)
