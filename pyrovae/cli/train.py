"""`pyrovae train`: trains a VAE and keeps the run in a folder."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from pyrovae.cli.command_line import command_for, flags_of
from pyrovae.common import read_text, require
from pyrovae.runs import (
    LENGTH,
    METRICS,
    PLACES,
    ConfigFields,
    DataFields,
    ModelFields,
    ObjectiveFields,
    RunConfig,
    TrainingFields,
    begun_config,
    is_begun,
    is_own,
    require_source,
    short_name,
)

if TYPE_CHECKING:
    from pyrovae.runs import Run

MEASURES = ("evaluation.json", "estimates.json", "comparison.json")


@dataclass(frozen=True)
class RunFlags:
    """Where the run is kept, and how often."""

    config: Path | None = None
    """a run's config.json, whose values replace the defaults, to repeat that run"""
    out: str | None = None
    """folder of the run, new or empty (default: runs/DATASET-OBJECTIVE-seedSEED)"""
    resume: bool = False
    """continue the interrupted run in OUT, to the bit, or begin one if there is none and flags such as --dataset say
    what to train; its config.json replaces the defaults, and more --epochs than before train it for longer"""
    checkpoint_minutes: float = 1.0
    """time between two checkpoints"""
    checkpoint_epochs: int | None = None
    """write a checkpoint after every so many epochs as well"""
    tensorboard: bool = False
    """write scalars and samples for TensorBoard into OUT/tensorboard"""


def train_vae(
    data: DataFields, model: ModelFields, objective: ObjectiveFields, training: TrainingFields, run: RunFlags
) -> None:
    """Train a VAE and keep the run in a folder: config.json, metrics.jsonl, checkpoint.pt."""
    require_source(data.dataset)
    config = config_of(data, model, objective, training)
    from pyrovae.common import Workers, counted  # not above, because these import torch
    from pyrovae.runs import TensorBoard, train_run

    out = run.out or usual_out(config)
    is_new, reached = not is_begun(out), _epochs_in(Path(out))
    was, done = None if is_new else begun_config(Path(out)), 0

    def start(begun: "Run") -> None:
        nonlocal done
        done = len(begun.history.epoch)
        if was is not None and was.epochs > begun.config.epochs:
            print(f"shortened from {was.epochs} to {begun.config.epochs} epochs", flush=True)
        if run.resume and is_new:
            print(f"no run in {out} yet: a new one on {begun.config.dataset} begins", flush=True)
        elif not is_new:
            show_place(begun, reached)
        show_data(begun)

    try:
        trained = train_run(
            config,
            out,
            resume=run.resume,
            checkpoint_minutes=run.checkpoint_minutes,
            checkpoint_epochs=run.checkpoint_epochs,
            on_start=start,
            on_epoch=TensorBoard() if run.tensorboard else None,
        )
    except KeyboardInterrupt:
        if is_begun(out) and Workers().is_first:
            where = f"epoch {min(_epochs_in(Path(out)) + 1, config.epochs)} of {config.epochs}"
            print(f"stopped in {where}; the same command with --resume goes on from there", flush=True)
        raise
    if Workers().is_first:
        history = trained.history
        print(history.table())
        epochs, seconds = counted(history.epoch[-1], "epoch"), sum(history.seconds)
        now = f", {len(history.epoch) - done:,} of them in this call" if done else ""
        print(f"\n{epochs} in {seconds:.1f} s{now}; next: {command_for('evaluate', out)}")


def _epochs_in(folder: Path) -> int:
    """Returns how many epochs the run in a folder has trained, some perhaps since its last checkpoint; or 0."""
    try:
        return read_text(folder / METRICS).count("\n")
    except (OSError, ValueError):
        return 0  # what is wrong with the file is told when it is used


def show_place(run: "Run", reached: int) -> None:
    """Prints from where a resumed run goes on, once it had `reached` an epoch; nothing if all of them are done."""
    done, epochs = len(run.history.epoch), run.config.epochs
    if done == epochs:
        return
    from pyrovae.common import counted  # not above, as in `train_vae`

    again = min(reached, epochs) - done
    repeated = f"{counted(again, 'epoch')} trained since the last checkpoint {'is' if again == 1 else 'are'} repeated"
    lost = f": {repeated}" if again > 0 else ""
    where = f"after epoch {done}" if done else "in epoch 1"
    print(f"resumes {where} of {epochs}{lost}", flush=True)
    measured = [name for name in MEASURES if (run.folder / name).exists()]
    if measured:
        print(f"written before this run went on: {', '.join(measured)}; --overwrite replaces them", flush=True)


def show_data(run: "Run") -> None:
    """Prints what data of one's own were taken for, before they are trained on."""
    data = run.data
    if is_own(run.config.dataset):
        train, validation, test = (f"{len(x):,}" for x in (data.train_x, data.validation_x, data.test_x))
        print(f"{data.name}: {train} data to train on, {validation} to validate on, {test} to test on", end="; ")
        print(f"likelihood {run.config.likelihood}, network {run.config.network}\n")
        if data.columns:
            from pyrovae.runs import columns_table

            print(f"{columns_table(data)}\n", flush=True)


def config_of(*groups: DataFields | ModelFields | ObjectiveFields | TrainingFields) -> RunConfig:
    """Returns the config whose fields are those of the groups together."""
    return RunConfig(**{name: value for group in groups for name, value in vars(group).items()})


def usual_out(config: ConfigFields) -> str:
    """Returns the folder of a run of this config for which none is given."""
    return f"runs/{short_name(config.dataset)}-{config.objective_name}-seed{config.seed}"


def says_what(flags: list[str]) -> bool:
    """Returns whether flags say what to train, more than where it is done and for how long."""
    words = [flag.removeprefix("--") for flag in flags if flag.startswith("--")]  # the others are values
    names = {word.removeprefix("no-").partition("=")[0].replace("-", "_") for word in words}
    return not names.isdisjoint({one.name for one in fields(ConfigFields)} - {*PLACES, *LENGTH})


def default_flags(flags: list[str]) -> list[str]:
    """Returns flags that replace the defaults: those of `--config`, or of the run that is resumed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", nargs="?", type=Path)
    parser.add_argument("--out", nargs="?", type=Path)
    parser.add_argument("--resume", action="store_true")
    for name, kind in {"dataset": str, "objective": str, "seed": int}.items():  # of which the usual folder is made
        parser.add_argument(f"--{name}", type=kind, default=getattr(ConfigFields(), name))
    try:
        known, _ = parser.parse_known_args(flags)
    except argparse.ArgumentError:
        return []  # tyro's message is better
    if known.config is not None:
        return flags_of(RunConfig.load(known.config).to_dict())
    if known.resume:
        usual = usual_out(ConfigFields(dataset=known.dataset, objective=known.objective, seed=known.seed))
        out = known.out or Path(usual)
        config = begun_config(out)
        rule = f"{out} holds no run to resume: name its folder with --out, or say what to train (--dataset, ...)"
        require(config is not None or says_what(flags), rule)
        return [] if config is None else [*flags_of(config.to_dict()), f"--out={out}"]
    return []
