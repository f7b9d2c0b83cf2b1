"""A training run and its folder: config.json, metrics.jsonl and checkpoint.pt."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from pyrovae.common import (
    InputError,
    SizeLimit,
    Workers,
    alone,
    append_text,
    current_job,
    require,
    require_finite,
    require_path,
    write_text,
)
from pyrovae.data import Dataset
from pyrovae.models import VAE
from pyrovae.runs.build import build_vae, fit_settings, load_data
from pyrovae.runs.config import RunConfig
from pyrovae.runs.folder import (
    CONFIG,
    METRICS,
    check_goes_on,
    check_may_begin,
    read_as_run,
    require_new_folder,
    require_of_run,
    require_run,
    written_config,
)
from pyrovae.runs.own_data import DataLayout, check_same_layout, check_same_values, data_told, with_usual_settings
from pyrovae.runs.own_sources import is_own, short_name
from pyrovae.runs.run_content import content_of_run
from pyrovae.training import Checkpoints, History, check_content, check_fits, fit, history_of, told_of_split


@dataclass(frozen=True)
class Run:
    """Holds a training run.

    Args:
        folder: where the run is kept
        config: everything that decided what was computed
        vae: the trained VAE
        history: the record of every epoch
        load_data: returns the data set; called once, when `data` is first read
        steps: how many steps of the epoch after those of `history` the parameters have gone through, too: those of a
            training that was interrupted
        best_epoch: the epoch that the parameters are of, if early stopping has put back the best
        layout: what the VAE knows of data of one's own, None for a data set by name

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
    steps: int = 0
    best_epoch: int | None = None
    layout: DataLayout | None = None

    @cached_property
    def data(self) -> Dataset:
        """Returns the data set, which is loaded when it is first asked for."""
        return self.load_data()

    @property
    def place(self) -> dict[str, int]:
        """Where in the training the parameters are from: after `epoch` epochs and `steps_beyond` steps."""
        return {"epoch": self.best_epoch or len(self.history.epoch), "steps_beyond": self.steps}

    @property
    def title(self) -> str:
        """The data, the objective, and where in the training the parameters are from, as its reports are headed."""
        epoch, beyond = self.place.values()
        where = f"epoch {epoch}" + (f" and {beyond:,} steps" if beyond else "")
        if self.best_epoch is not None:
            where += f", the best of {len(self.history.epoch)}"
        return f"{short_name(self.config.dataset)}, {self.config.objective}, {where}"

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
            that stopped early needs more patience. When torchrun restarts the processes within `process_group`, what
            the same call of torchrun had begun is continued in any case
        checkpoint_minutes: time between two checkpoints
        checkpoint_epochs: epochs between two checkpoints, in addition (default: by the clock alone)
        progress: show a progress bar (default: on a terminal)
        on_start: called before the first step with the run, whose config then has the usual values for its data
        on_epoch: called after every epoch with the run and the record of that epoch

    Returns:
        The run, its VAE trained.

    Raises:
        InputError: `folder` cannot be used, holds a run of another config or of other data, or the data do not suit
            `config`; nothing has been written then
        FloatingPointError: the training diverged
    """
    folder, workers, job = Path(folder), Workers(), current_job()

    def may_begin() -> None:  # before the work; what counts is the same look once no other process can write there
        if resume or job is not None:
            check_may_begin(folder, Checkpoints(folder).load(), resume)
        else:
            require_new_folder(folder)

    workers.by_first(may_begin)
    data = load_data(config)
    config = with_usual_settings(config, data)

    def check(saved: dict | None) -> None:
        check_may_begin(folder, saved, resume)
        if saved is not None:
            check_goes_on(folder, saved, config)
            with read_as_run(folder):
                check_same_layout(config.dataset, saved.get("data") or {}, data)  # `fit` looks at the values

    vae = build_vae(config, data.event_shape, data)
    checkpoints = Checkpoints(
        folder,
        minutes=checkpoint_minutes,
        epochs=checkpoint_epochs,
        extra={"event_shape": vae.event_shape, "config": config.to_dict(), "data": data_told(data), "job": job},
        told={"test data": told_of_split(data, "test")},
        check=check,
    )
    layout = DataLayout.of(data) if is_own(config.dataset) else None
    run = Run(folder, config, vae, History(), lambda: data, layout=layout)

    def start(history: History) -> None:
        nonlocal run
        run = replace(run, history=history)
        if workers.is_first:
            config.save(folder / CONFIG)
            lines = "".join(_line(record) for record in history.records())
            write_text(folder / METRICS, lines)
            if on_start is not None:
                with alone():
                    on_start(run)

    def add(record: dict[str, float | None]) -> None:
        if workers.is_first:
            append_text(folder / METRICS, _line(record))
            if on_epoch is not None:
                with alone():
                    on_epoch(run, record)

    history = fit(
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
    return replace(run, history=history, best_epoch=None if config.patience is None else history.best_epoch)


def load_run(folder: str | Path, data_root: str | Path | None = None, dataset: str | Path | None = None) -> Run:
    """Returns the run that `train_run` or `pyrovae train` kept in a folder, with its VAE on the CPU.

    Args:
        folder: the run's folder
        data_root: folder of the image sets, in place of the one in the config, if the data have moved
        dataset: where data of one's own are now, if they have moved

    Raises:
        InputError: a file is missing, damaged or of a later version; or config.json says something else than the
            checkpoint. Reading `data` raises it if they are not those of the training

    Example:
        >>> from pyrovae.runs import train_run
        >>> _ = train_run(pv.RunConfig(hidden=(4,), epochs=2, batch_size=1_000), "runs/again", progress=False)
        >>> run = pv.load_run("runs/again")
        >>> run.history.epoch, run.vae.latent_dim
        ([1, 2], 2)
    """
    require_path("folder", folder)
    folder = Path(folder)
    require_run(folder)
    saved = Checkpoints(folder).load()  # before config.json, which is ahead of it while a run trains for longer
    if saved is None:
        raise InputError(f"{folder} holds no checkpoint")
    require_of_run(folder, saved)
    where = f"the checkpoint in {folder}"
    check_content(where, saved, also=content_of_run(saved))
    config = written_config(folder, saved)
    if data_root is not None:
        config = RunConfig.from_dict({**vars(config), "data_root": str(data_root)})
    if dataset is not None:
        require(is_own(config.dataset), f"dataset is for data of your own, and this run's is {config.dataset}")
        config = RunConfig.from_dict({**vars(config), "dataset": str(dataset)})
    event_shape, state, history = tuple(saved["event_shape"]), saved["state"], history_of(saved)
    layout = DataLayout.from_dict(saved["data"]["layout"]) if is_own(config.dataset) else None
    require(len(history.epoch) > 0, f"the run in {folder} was interrupted before its first epoch ended")
    with SizeLimit(where, state.values()):
        vae = build_vae(config, event_shape, layout=layout)
    check_fits(where, CONFIG, vae.state_dict(), state)
    for name, value in state.items():
        require_finite(f"{name} in {where}", value)
    _check_twins(where, state, saved["parameters"] | saved["buffers"])
    vae.load_state_dict(state)
    vae.set_beta(config.beta)  # an interrupted run was saved at the beta that its schedule had reached
    has_best = saved["best"].get("last") is not None  # early stopping has put it back
    return Run(
        folder,
        config,
        vae.eval(),
        history,
        partial(_load_same_data, folder, config, saved),
        steps=saved["position"]["step"],
        best_epoch=history.best_epoch if has_best else None,
        layout=layout,
    )


def _check_twins(where: str, state: Mapping[str, Tensor], twins: Mapping[str, Tensor]) -> None:
    """Raises `InputError` unless a checkpoint has the same parameters and buffers in both places that hold them."""
    for name, value in state.items():
        twin = twins.get(name)
        same = twin is not None and twin.dtype == value.dtype and torch.equal(twin, value)
        require(same, f"{where} is not readable: state.{name} must be as in its parameters or buffers, and differs")


def _load_same_data(folder: Path, config: RunConfig, saved: dict) -> Dataset:
    data = load_data(config)
    with read_as_run(folder):
        check_same_layout(config.dataset, saved.get("data") or {}, data)
        check_same_values(config.dataset, (saved.get("identity") or {}).get("told", {}), data)
    return data


def _line(record: dict[str, float | None]) -> str:
    return json.dumps(record) + "\n"
