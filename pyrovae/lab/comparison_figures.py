"""The figures of a comparison: bounds, signal-to-noise ratios of gradients, and what a gradient costs."""

from collections.abc import Collection
from typing import Protocol

from matplotlib.figure import Figure

import pyrovae.plots as plots
from pyrovae.lab.comparison_row import Row
from pyrovae.programs import SIDES

FIGURES = ("bounds", "snr", "dsnr", "cost")
GRADIENT_OF_SIDE = {
    "model": "the model's gradient",
    "guide": "the guide's gradient",
    "shared": "the gradient of what both share",
}

_Curve = tuple[list[float], list[float], list[float] | None]


class _Comparison(Protocol):
    """What is drawn of a `Comparison`, which draws itself with the help of this file."""

    @property
    def rows(self) -> tuple[Row, ...]: ...

    @property
    def log_px_per_datum(self) -> tuple[float, float] | None: ...

    def __getitem__(self, key: tuple[str, int]) -> Row: ...

    def curves(self, side: str, quantity: str) -> dict[str, tuple[list[int], list[float], list[float]]]: ...


def draw_comparison(comparison: _Comparison, quantities: Collection[str] = FIGURES) -> dict[str, Figure]:
    """Returns the figures of these quantities by name, without those that are known of no row.

    They are the bounds, "snr" and "dsnr" of the gradients, and "cost", the variance and the bias of a gradient.
    """
    rows: dict[str, list[Row]] = {}
    for row in comparison.rows:
        rows.setdefault(row.objective, []).append(row)
    colors = {name: f"C{index}" for index, name in enumerate(rows)}
    figures = {"bounds": _draw_bounds(comparison, rows, colors)} if "bounds" in quantities else {}
    for quantity in (name for name in ("snr", "dsnr") if name in quantities):
        by_side = {side: comparison.curves(side, quantity) for side in SIDES}
        by_side = {side: curves for side, curves in by_side.items() if curves}
        if by_side:
            figures[quantity], columns = plots.figure_row(len(by_side), width=5.0, height=4.4)
            for axes, (side, curves) in zip(columns, by_side.items(), strict=True):
                label = f"{quantity.upper()} of {GRADIENT_OF_SIDE[side]}"
                plots.against_size(curves, ylabel=label, colors=colors, axes=axes)
    costs = {label: curves for label, curves in _cost_curves(comparison, rows).items() if curves}
    if costs and "cost" in quantities:
        figures["cost"], columns = plots.figure_row(len(costs), width=5.5, height=4.0)
        for axes, (label, cost) in zip(columns, costs.items(), strict=True):
            plots.against_seconds(cost, label, colors, axes)
    return figures


def _draw_bounds(comparison: _Comparison, rows: dict[str, list[Row]], colors: dict[str, str]) -> Figure:
    """Draws the bounds. If any row has a gap, those without one are left out: they are not comparable to log p(x)."""
    figure, (axes,) = plots.figure_row(1, width=5.0, height=4.4)
    has_gaps = any(row.gap is not None for row in comparison.rows)
    shown = {name: [row for row in some if row.gap is not None or not has_gaps] for name, some in rows.items()}
    bounds = {
        name: ([row.num_particles for row in some], [row.bound for row in some], [row.bound_error for row in some])
        for name, some in shown.items()
        if some
    }
    plots.compared_bounds(bounds, comparison.log_px_per_datum if has_gaps else None, colors, axes)
    return figure


def _cost_curves(comparison: _Comparison, rows: dict[str, list[Row]]) -> dict[str, dict[str, _Curve]]:
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
