"""A training run and its folder: config.json, metrics.jsonl and checkpoint.pt."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from pyrovae.common import (
    InputError,
    Workers,
    alone,
    check_folder,
    require,
    require_finite,
    require_path,
    shown,
    write_text,
)
from pyrovae.data import Dataset
from pyrovae.models import VAE
from pyrovae.runs.build import build_vae, fit_settings, load_data
from pyrovae.runs.config import RunConfig
from pyrovae.runs.own_data import DataLayout, check_same_data, data_told, with_usual_settings
from pyrovae.runs.own_sources import is_own
from pyrovae.training import LOCK, Checkpoints, History, check_fits, fit

CONFIG, METRICS = "config.json", "metrics.jsonl"
LENGTH = ("epochs", "patience")  # a resumed run may have more of them, which `fit` checks


@dataclass(frozen=True)
class Run:
    """Holds a training run.

    Args:
        folder: where the run is kept
        config: everything that decided what was computed
        vae: the trained VAE
        history: the record of every epoch
        load_data: returns the data set; called once, when `data` is first read

    Example:
        >>> from pyrovae.runs import train_run
        >>> run = train_run(pv.RunConfig(hidden=(4,), epochs=1, batch_size=1_000), "runs/small", progress=False)
        >>> run.history.epoch, run.data.name
        ([1], 'ring')
        >>> sorted(path.name for path in run.folder.glob("*.json*"))
        ['config.json', 'metrics.jsonl']
    """

    folder: Path
    config: RunConfig
    vae: VAE
    history: History
    load_data: Callable[[], Dataset]

    @cached_property
    def data(self) -> Dataset:
        """Returns the data set, which is loaded when it is first asked for."""
        return self.load_data()

    def __repr__(self) -> str:
        config, done = self.config, len(self.history.epoch)
        return f"run {self.folder}: {config.objective} on {config.dataset}, {done} of {config.epochs} epochs"


def train_run(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    checkpoint_minutes: float = 1.0,
    checkpoint_epochs: int | None = None,
    progress: bool | None = None,
    on_start: Callable[["Run"], None] | None = None,
    on_epoch: Callable[["Run", dict[str, float | None]], None] | None = None,
) -> Run:
    """Trains what `config` describes and keeps the run in a folder.

    config.json and a first checkpoint are written before the first step. After every epoch metrics.jsonl gets a line.
    checkpoint.pt is replaced every `checkpoint_minutes`, after every `checkpoint_epochs` epochs, at Ctrl-C or SIGTERM,
    and at the end (see `Checkpoints`).

    Args:
        config: everything that decides what is computed
        folder: new or empty, unless the run is resumed
        resume: continue a run that was interrupted, to the bit; a run that was never begun begins. With more epochs
            than before a run goes on for longer, as if it had been begun with them, if its schedules are constant; one
            that stopped early needs more patience
        checkpoint_minutes: time between two checkpoints
        checkpoint_epochs: epochs between two checkpoints, in addition (default: by the clock alone)
        progress: show a progress bar (default: on a terminal)
        on_start: called before the first step with the run, whose config then has the usual values for its data
        on_epoch: called after every epoch with the run and the record of that epoch

    Returns:
        The run, its VAE trained.

    Raises:
        InputError: `folder` cannot be used, holds a run of another config, or the data do not suit `config`; nothing
            has been written then
        FloatingPointError: the training diverged
    """
    folder, first, begun = Path(folder), Workers().is_first, None
    if resume and (folder / CONFIG).exists():
        begun = RunConfig.load(folder / CONFIG)
    elif resume and folder.is_dir() and (saved := Checkpoints(folder).load()) is not None:
        # The run was killed after its first checkpoint was written and before its config was.
        begun = RunConfig.from_dict(saved.get("config", {}))
    elif first:  # the first process makes the folder, maybe before another looks at it
        require_new_folder(folder)
    data = load_data(config)
    config = with_usual_settings(config, data)
    if begun is not None:
        _check_same(config, begun, folder)
    vae = build_vae(config, data.event_shape, data)
    extra = {"event_shape": vae.event_shape, "config": config.to_dict()}
    if is_own(config.dataset):
        extra["data"] = data_told(data)
    checkpoints = Checkpoints(folder, minutes=checkpoint_minutes, epochs=checkpoint_epochs, extra=extra)

    run = Run(folder, config, vae, History(), lambda: data)

    def start(history: History) -> None:
        nonlocal run
        run = replace(run, history=history)
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            config.save(folder / CONFIG)
            lines = "".join(_line(record) for record in history.records())
            write_text(folder / METRICS, lines)
            if on_start is not None:
                with alone():
                    on_start(run)

    def add(record: dict[str, float | None]) -> None:
        if first:
            with open(folder / METRICS, "a") as file:
                file.write(_line(record))
            if on_epoch is not None:
                with alone():
                    on_epoch(run, record)

    fit(
        vae,
        data,
        epochs=config.epochs,
        objective=config.objective,
        **config.objective_settings(),
        **fit_settings(config),
        seed=config.seed,
        checkpoints=checkpoints,
        progress=progress,
        on_start=start,
        on_epoch=add,
    )
    return run


def load_run(folder: str | Path, data_root: str | Path | None = None, dataset: str | Path | None = None) -> Run:
    """Returns the run that `train_run` or `pyrovae train` kept in a folder, with its VAE on the CPU.

    Args:
        folder: the run's folder
        data_root: folder of the image sets, in place of the one in the config, if the data have moved
        dataset: where data of one's own are now, if they have moved

    Raises:
        InputError: a file is missing or damaged, or the checkpoint does not fit the architecture in config.json

    Example:
        >>> from pyrovae.runs import train_run
        >>> _ = train_run(pv.RunConfig(hidden=(4,), epochs=2, batch_size=1_000), "runs/again", progress=False)
        >>> run = pv.load_run("runs/again")
        >>> run.history.epoch, run.vae.latent_dim
        ([1, 2], 2)
    """
    require_path("folder", folder)
    folder = Path(folder)
    require(folder.is_dir(), f"run folder {folder} does not exist")
    config = RunConfig.load(folder / CONFIG)
    if data_root is not None:
        config = RunConfig.from_dict({**vars(config), "data_root": str(data_root)})
    if dataset is not None:
        require(is_own(config.dataset), f"dataset is for data of your own, and this run's is {config.dataset}")
        config = RunConfig.from_dict({**vars(config), "dataset": str(dataset)})
    saved = Checkpoints(folder).load()
    if saved is None:
        raise InputError(f"{folder} holds no checkpoint")
    try:
        event_shape, state = tuple(saved["event_shape"]), dict(saved["state"])
        told = saved["data"] if is_own(config.dataset) else None
        layout = None if told is None else DataLayout.from_dict(told["layout"])
        history = History()
        for record in saved["history"]:
            history.append(record)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the checkpoint in {folder} is not one of a run ({type(error).__name__}: {error})") from error
    require(len(history.epoch) > 0, f"the run in {folder} was interrupted before its first epoch ended")
    vae = build_vae(config, event_shape, layout=layout)
    check_fits(f"the checkpoint in {folder}", CONFIG, vae.state_dict(), state)
    for name, value in state.items():
        require_finite(f"{name} in the checkpoint in {folder}", value)
    vae.load_state_dict(state)
    vae.set_beta(config.beta)  # an interrupted run was saved at the beta that its schedule had reached
    return Run(folder, config, vae.eval(), history, partial(_load_same_data, config, told))


def require_new_folder(folder: Path) -> None:
    """Checks that `folder` is empty or can be made, so that nothing in it would be overwritten.

    Raises:
        InputError: it holds files, is a file, or cannot be written to
    """
    check_folder(folder, "out")
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    # A run that was killed leaves its lock and temporary files.
    holds_files = any(name != LOCK and not name.endswith(".tmp") for name in names)
    require(not holds_files, f"out must be a new or empty folder, and {folder} holds files")


def _load_same_data(config: RunConfig, told: dict | None) -> Dataset:
    data = load_data(config)
    if told is not None:
        check_same_data(config.dataset, told, data)
    return data


def _check_same(config: RunConfig, begun: RunConfig, folder: Path) -> None:
    """Raises `InputError` unless `config` is what the run in `folder` was begun with, as far as `fit` will not tell."""
    for name, was in begun.to_dict().items():
        now = config.to_dict()[name]
        has_moved = name == "dataset" and is_own(str(was)) and is_own(str(now))  # `fit` looks at the values
        same = was == now or name in LENGTH or has_moved
        require(same, f"the run in {folder} was begun with {name} {shown(was)}, and {name} is now {shown(now)}")


def _line(record: dict[str, float | None]) -> str:
    return json.dumps(record) + "\n"
