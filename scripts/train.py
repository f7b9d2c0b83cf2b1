"""Trains a VAE and keeps the run in a folder: config.json, metrics.jsonl, checkpoint.pt.

python scripts/train.py --dataset mnist --data-root ../shared/data --epochs 10 --out runs/mnist
"""

from typing import Annotated

import tyro

import pyrovae as pv
from pyrovae.cli import run_script
from pyrovae.report import history_table
from pyrovae.runs import train_run


def main(config: Annotated[pv.RunConfig, tyro.conf.arg(name="")], out: str | None = None) -> None:
    """Train a VAE.

    Args:
        out: folder of the run, new or empty (default: runs/DATASET-OBJECTIVE-seedSEED)
    """
    out = out or f"runs/{config.dataset}-{config.objective}-seed{config.seed}"
    run = train_run(config, out)
    last = run.history.records()[-1]
    print(history_table(run.history))
    print(f"\n{last['epoch']} epochs in {sum(run.history.seconds):.1f} s; next: python scripts/evaluate.py {out}")


if __name__ == "__main__":
    run_script(main)
