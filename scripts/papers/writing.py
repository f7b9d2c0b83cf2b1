"""Writes what a script of this folder found: results.json, report.md, figures and tables."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pyrovae.common import write_text


def write_results(folder: Path, content: object) -> None:
    """Writes results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_report(folder: Path, text: str, figures: Mapping[str, Figure] | None = None) -> None:
    """Writes report.md, with `figures` as PNG files below its text, and prints where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (figures or {}).items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        text += f"\n![{name}]({name}.png)\n"
    write_text(folder / "report.md", text)
    print(f"\nreport: {folder / 'report.md'}")


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and its standard error, None for a single value."""
    of = torch.tensor(values, dtype=torch.float64)
    return of.mean().item(), (of.std() / math.sqrt(len(of))).item() if len(of) > 1 else None
