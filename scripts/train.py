"""Trains a VAE and keeps the run in a folder: config.json, metrics.jsonl, checkpoint.pt.

python scripts/train.py --dataset mnist --data-root ../shared/data --epochs 10 --out runs/mnist
python scripts/train.py --out runs/mnist --resume
python scripts/train.py --out runs/mnist --resume --epochs 20
torchrun --nproc-per-node=2 scripts/train.py --dataset mnist --out runs/mnist
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

import pyrovae as pv
from pyrovae.cli import flags_of, reporting
from pyrovae.common import Workers
from pyrovae.runs import CONFIG, TensorBoard, history_table, train_run


def main(
    config: Annotated[pv.RunConfig, tyro.conf.arg(name="")],
    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None,
    out: str | None = None,
    resume: bool = False,
    checkpoint_minutes: float = 1.0,
    checkpoint_epochs: int | None = None,
    tensorboard: bool = False,
) -> None:
    """Train a VAE.

    Args:
        config_file: a run's config.json, whose values replace the defaults, to repeat that run
        out: folder of the run, new or empty (default: runs/DATASET-OBJECTIVE-seedSEED)
        resume: continue the interrupted run in OUT, to the bit; its config.json replaces the defaults, and
            more --epochs than before train it for longer
        checkpoint_minutes: time between two checkpoints
        checkpoint_epochs: write a checkpoint after every so many epochs as well
        tensorboard: write scalars and samples for TensorBoard into OUT/tensorboard
    """
    out = out or f"runs/{config.dataset}-{config.objective_name}-seed{config.seed}"
    run = train_run(
        config,
        out,
        resume=resume or restarted(),
        checkpoint_minutes=checkpoint_minutes,
        checkpoint_epochs=checkpoint_epochs,
        on_epoch=TensorBoard() if tensorboard else None,
    )
    if Workers().is_first:
        seconds = sum(run.history.seconds)
        print(history_table(run.history))
        print(f"\n{run.history.epoch[-1]} epochs in {seconds:.1f} s; next: python scripts/evaluate.py {out}")


def default_flags(flags: list[str]) -> list[str]:
    """Returns flags that replace the defaults: those of `--config`, or of the run that is resumed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", nargs="?", type=Path)
    parser.add_argument("--out", nargs="?", type=Path)
    parser.add_argument("--resume", action="store_true")
    try:
        known, _ = parser.parse_known_args(flags)
    except argparse.ArgumentError:
        return []  # tyro's message is better
    path = known.config
    if path is None and (known.resume or restarted()) and known.out is not None and (known.out / CONFIG).exists():
        path = known.out / CONFIG
    return [] if path is None else flags_of(pv.RunConfig.load(path).to_dict())


def restarted() -> bool:
    """Returns whether torchrun restarted this process, because one of its processes had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


if __name__ == "__main__":
    with reporting():
        tyro.cli(main, args=default_flags(sys.argv[1:]) + sys.argv[1:])
