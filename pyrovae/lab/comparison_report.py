"""Writes a comparison into a folder: JSON, Markdown and figures."""

import json
from pathlib import Path

from matplotlib.figure import Figure

import pyrovae.plots as plots
from pyrovae.common import check_unwritten, write_text
from pyrovae.lab.comparison import Comparison, Row
from pyrovae.lab.sides import SIDES

_Curve = tuple[list[float], list[float], list[float] | None]
COMPARISON_FILES = ("comparison.json", "comparison.md")

COMPARISON_NOTES = """\
Bounds are in nats per datum, with their Monte Carlo error in brackets; higher is better. The gap is the distance to
log p(x) by importance sampling, which is itself too low if the guide is far off. It is empty if an objective is no
bound on log p(x). SNR is |mean| / standard deviation, averaged over the coordinates of a gradient. DSNR is the length
of a gradient along the mean gradient over its length across it. "no noise" marks a gradient that is the same each time.
The number in brackets is the floor, which is what pure noise or an unbiased estimator would show: a number near its
floor is no evidence of a signal or a bias. The floors are dotted in the figures. More repeats lower the floors of SNR
and bias; more data lower the noise itself. Parameters that both the density of the model and the guide depend on are
"shared", and belong to neither of the two. Among estimators of the same gradient, the one with the lowest var x s is
the best. That is the variance of the gradient of all that the guide depends on, times the seconds of a step, compiled
if every estimator was compiled.
"""
GRADIENT_OF_SIDE = {
    "model": "the model's gradient",
    "guide": "the guide's gradient",
    "shared": "the gradient of what both share",
}


def write_comparison(folder: Path, comparison: Comparison, overwrite: bool = False) -> None:
    """Writes comparison.json, comparison.md and figures/comparison_*.png into a folder.

    Raises `InputError` if the files exist and `overwrite` is False.
    """
    check_unwritten(folder, overwrite, COMPARISON_FILES)
    log_px = _log_px(comparison) or (None, None)
    content = {"rows": comparison.to_dict(), "log_px": log_px[0], "log_px_standard_error": log_px[1]}
    content |= {name: getattr(comparison, name) for name in ("complete", "no_gap", "unreached")}
    (folder / "figures").mkdir(exist_ok=True)
    images = ""
    for name, figure in draw_comparison(comparison).items():
        figure.savefig(folder / f"figures/comparison_{name}.png", dpi=120)
        images += f"\n![{name}](figures/comparison_{name}.png)\n"
    text = f"{comparison.to_markdown()}\n\n{comparison.notes}\n\n{COMPARISON_NOTES}{images}"
    write_text(folder / "comparison.md", text)
    write_text(folder / "comparison.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def _log_px(comparison: Comparison) -> tuple[float, float] | None:
    return comparison.log_px_per_datum


def draw_comparison(comparison: Comparison) -> dict[str, Figure]:
    """Returns the figures by name: bounds, and where they are known snr, dsnr and cost (variance and bias)."""
    rows: dict[str, list[Row]] = {}
    for row in comparison.rows:
        rows.setdefault(row.objective, []).append(row)
    colors = {name: f"C{index}" for index, name in enumerate(rows)}
    figures = {"bounds": _draw_bounds(comparison, rows, colors)}
    for quantity in ("snr", "dsnr"):
        by_side = {side: comparison.curves(side, quantity) for side in SIDES}
        by_side = {side: curves for side, curves in by_side.items() if curves}
        if by_side:
            figures[quantity], columns = plots.figure_row(len(by_side), width=5.0, height=5.0)
            for axes, (side, curves) in zip(columns, by_side.items(), strict=True):
                label = f"{quantity.upper()} of {GRADIENT_OF_SIDE[side]}"
                plots.against_size(curves, ylabel=label, colors=colors, axes=axes)
    costs = {label: curves for label, curves in _cost_curves(comparison, rows).items() if curves}
    if costs:
        figures["cost"], columns = plots.figure_row(len(costs), width=5.5, height=4.0)
        for axes, (label, cost) in zip(columns, costs.items(), strict=True):
            plots.against_seconds(cost, label, colors, axes)
    return figures


def _draw_bounds(comparison: Comparison, rows: dict[str, list[Row]], colors: dict[str, str]) -> Figure:
    """Draws the bounds. If any row has a gap, those without one are left out: they are not comparable to log p(x)."""
    figure, (axes,) = plots.figure_row(1, width=5.0, height=4.4)
    has_gaps = any(row.gap is not None for row in comparison.rows)
    shown = {name: [row for row in some if row.gap is not None or not has_gaps] for name, some in rows.items()}
    bounds = {
        name: ([row.num_particles for row in some], [row.bound for row in some], [row.bound_error for row in some])
        for name, some in shown.items()
        if some
    }
    plots.compared_bounds(bounds, _log_px(comparison) if has_gaps else None, colors, axes)
    return figure


def _cost_curves(comparison: Comparison, rows: dict[str, list[Row]]) -> dict[str, dict[str, _Curve]]:
    """Returns the variance and the bias of each side that the guide trains, against the seconds of a step."""
    costs: dict[str, dict[str, _Curve]] = {}
    for side in ("guide", "shared"):
        costs[f"variance of {GRADIENT_OF_SIDE[side]}"] = {
            name: ([row.step_seconds for row in some], [getattr(row, side).variance for row in some], None)
            for name, some in rows.items()
            if getattr(some[0], side) is not None and any(getattr(row, side).variance > 0 for row in some)
        }
        costs[f"bias of {GRADIENT_OF_SIDE[side]}"] = {
            name: ([comparison[name, size].step_seconds for size in sizes], values, floors)
            for name, (sizes, values, floors) in comparison.curves(side, "bias").items()
        }
    return costs
