"""Writes what a script of this folder found: results.json, report.md, figures and tables."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pyrovae.common import write_figure, write_json, write_text, written_together


def write_results(folder: Path, content: object) -> None:
    """Writes results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", content)


def write_report(folder: Path, text: str, figures: Mapping[str, Figure] | None = None) -> None:
    """Writes report.md, with `figures` as PNG files below its text, and prints where it is."""
    images = {f"{name}.png": figure for name, figure in (figures or {}).items()}
    with written_together(folder, "report", ("report.md", *images), wait=True) as beside:
        for name, figure in images.items():
            write_figure(beside / name, figure)
            text += f"\n![{name.removesuffix('.png')}]({name})\n"
        write_text(beside / "report.md", text)
    print(f"\nreport: {folder / 'report.md'}")


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and its standard error, None for a single value."""
    of = torch.tensor(values, dtype=torch.float64)
    return of.mean().item(), (of.std() / math.sqrt(len(of))).item() if len(of) > 1 else None


def with_error(values: Sequence[float], digits: int = 3, in_brackets: bool = False) -> str:
    """Returns the mean with its standard error as a table shows them, 0.310 ± 0.012 or 0.310 (0.012)."""
    mean, error = mean_and_error(values)
    form = "{} ({})" if in_brackets else "{} ± {}"
    return f"{mean:.{digits}f}" if error is None else form.format(f"{mean:.{digits}f}", f"{error:.{digits}f}")
