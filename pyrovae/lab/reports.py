"""How estimators compared and races are written down: tables, JSON, Markdown, figures."""

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

import pyrovae.plots as plots
from pyrovae.common import check_unwritten, write_text
from pyrovae.lab.comparison import Comparison, Row
from pyrovae.lab.race_result import Race
from pyrovae.lab.sides import SIDES

COMPARISON = ("comparison.json", "comparison.md")

COMPARISON_NOTES = """\
Bounds in nats per datum, higher is better, in brackets their Monte Carlo error; the gap is to log p(x), by importance
sampling, itself low where the guide is far off, and empty where an objective is no bound on log p(x). SNR is |mean| /
standard deviation of a gradient's coordinates, their mean; DSNR is a gradient's length along the mean gradient over
what lies across it; "no noise" is a gradient that is the same each time. In brackets what pure noise has: do not read a
signal off a number near it, nor a bias off one near what an unbiased estimator shows. In the figures these floors are
dotted. Repeats lower those of SNR and bias; the noise itself falls with the number of data. Parameters that both the
model's density and the guide depend on are neither the model's nor the guide's: they are "shared". Of estimators of one
gradient the one of lower var x s (variance of the gradient of all that the guide depends on, times the seconds of a
step, compiled where all are) is the better.
"""
OF = {"model": "the model's gradient", "guide": "the guide's gradient", "shared": "the gradient of what both share"}


def write_comparison(folder: Path, comparison: Comparison, overwrite: bool = False) -> None:
    """comparison.json, comparison.md and figures/comparison_*.png: bounds, signal to noise, bias and variance."""
    check_unwritten(folder, overwrite, COMPARISON)
    log_px = _log_px(comparison) or (None, None)
    content = {"rows": comparison.to_dict(), "log_px": log_px[0], "log_px_standard_error": log_px[1]}
    content |= {name: getattr(comparison, name) for name in ("complete", "no_gap", "unreached")}
    (folder / "figures").mkdir(exist_ok=True)
    images = ""
    for name, figure in _draw_comparison(comparison).items():
        figure.savefig(folder / f"figures/comparison_{name}.png", dpi=120)
        images += f"\n![{name}](figures/comparison_{name}.png)\n"
    text = f"{comparison.to_markdown()}\n\n{comparison.notes}\n\n{COMPARISON_NOTES}{images}"
    write_text(folder / "comparison.md", text)
    write_text(folder / "comparison.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def _log_px(comparison: Comparison) -> tuple[float, float] | None:
    log_px = comparison.log_px
    return None if log_px is None else (log_px.mean, log_px.monte_carlo_error)


def _draw_comparison(comparison: Comparison) -> dict[str, Figure]:
    rows: dict[str, list[Row]] = {}
    for row in comparison.rows:
        rows.setdefault(row.objective, []).append(row)
    colors = {name: f"C{index}" for index, name in enumerate(rows)}
    figures = {}
    figures["bounds"], (axes,) = plots.figure_row(1, width=5.0, height=4.4)
    has_gaps = any(row.gap is not None for row in comparison.rows)
    bounded = {name: [row for row in of if row.gap is not None or not has_gaps] for name, of in rows.items()}
    bounds = {
        name: ([row.num_particles for row in of], [row.bound for row in of], [row.bound_error for row in of])
        for name, of in bounded.items()
        if of
    }
    plots.compared_bounds(bounds, _log_px(comparison) if has_gaps else None, colors, axes)
    for quantity in ("snr", "dsnr"):
        curves = {side: comparison.curves(side, quantity) for side in SIDES}
        curves = {side: of_side for side, of_side in curves.items() if of_side}
        if curves:
            figures[quantity], columns = plots.figure_row(len(curves), width=5.0, height=5.0)
            for axes, (side, of_side) in zip(columns, curves.items(), strict=True):
                label = f"{quantity.upper()} of {OF[side]}"
                plots.against_size(of_side, ylabel=label, colors=colors, axes=axes)
    cost = {}
    for side in ("guide", "shared"):
        cost[f"variance of {OF[side]}"] = {
            name: ([row.step_seconds for row in of], [getattr(row, side).variance for row in of], None)
            for name, of in rows.items()
            if getattr(of[0], side) is not None and any(getattr(row, side).variance > 0 for row in of)
        }
        cost[f"bias of {OF[side]}"] = {
            name: ([comparison[name, size].step_seconds for size in sizes], values, floors)
            for name, (sizes, values, floors) in comparison.curves(side, "bias").items()
        }
    cost = {what: curves for what, curves in cost.items() if curves}
    if cost:
        figures["cost"], columns = plots.figure_row(len(cost), width=5.5, height=4.0)
        for axes, (what, curves) in zip(columns, cost.items(), strict=True):
            plots.against_seconds(curves, what, colors, axes)
    return figures


def write_race(folder: Path, races: Mapping[str, Race]) -> None:
    """race.json, race.md and race_*.png: of each budget, what it was and how it ended."""
    content = {budget: race.to_dict() for budget, race in races.items()}
    write_text(folder / "race.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    parts = []
    for budget, race in races.items():
        figure = save_race_figure(race, folder, f"race_{budget}.png")
        parts.append(f"## Equal {budget}\n\n{race.to_markdown()}\n\n{race.verdict}\n\n![curves]({figure.name})\n")
    write_text(folder / "race.md", f"# Race\n\n{RACE_NOTES}\n" + "\n".join(parts))


RACE_NOTES = """\
log p(x) of the held-out data in nats per datum, mean over seeds; in brackets the standard error over seeds. Differences
are paired, seed by seed and datum by datum, with a 95% interval from Student's t over seeds and the error over data.
Importance sampling is a lower bound, low where many data have Pareto k > 0.7.
"""


def save_race_figure(race: Race, folder: Path, name: str = "race.png") -> Path:
    """The learning curves, against epochs and against seconds."""
    figure, axes = plots.figure_row(2, width=5.0, height=4.0)
    for ax, against in zip(axes, ("epochs", "seconds"), strict=True):
        plots.race_curves(race.curves(against), against, ax)
    figure.savefig(folder / name, dpi=120)
    return folder / name
