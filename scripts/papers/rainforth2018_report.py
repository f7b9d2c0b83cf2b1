"""The tables and figures of Rainforth et al. 2018's experiment."""

import math
from typing import cast

from matplotlib.figure import Figure
from rainforth2018_experiment import BIAS_THEORY, COLORS, IN_M, K_IN_M, RATIOS, SIDES, THEORY, Line, Points, theory_of
from tabulate import tabulate

import pyrovae as pv


def ratio_table(signals: dict[tuple[str, str], Points], quantity: str, tablefmt: str) -> str:
    sides = {side: points for (which, side), points in signals.items() if which == quantity}
    sizes = sorted({size for points in sides.values() for numbers, *_ in points.values() for size in numbers})
    lines = [
        [side, name, *cells(of, sizes)] for side, points in sides.items() for name, of in points.items()
    ]  # fmt: skip
    return tabulate(lines, ["", "estimator", *map(str, sizes)], tablefmt, disable_numparse=True)


def cells(points: tuple[list[int], list[float], list[float]], sizes: list[int]) -> list[str]:
    at = {size: f"{value:.2g} ({floor:.1g})" for size, value, floor in zip(*points, strict=True)}
    return [at.get(size, "") for size in sizes]


def slope_table(lines: list[Line], tablefmt: str) -> str:
    rows = []
    for line in lines:
        error = "" if math.isnan(line.slope.error) else f" ({line.slope.error:.2f})"
        shown = "in the noise" if math.isnan(line.slope.value) else f"{line.slope.value:+.2f}{error}"
        over = f"{line.fitted[0]} .. {line.fitted[-1]}" if line.fitted else ""
        rows.append([line.quantity, line.side, line.estimator, over, shown, f"{line.theory:+g}"])
    return tabulate(rows, ["", "", "estimator", "from .. to", "power", "theory"], tablefmt, disable_numparse=True)


def bias_table(biases: dict[str, Points], iwae: pv.Comparison, tablefmt: str) -> str:
    """Adds the size of IWAE's own mean gradient of the guide, to compare a bias with."""
    sizes = [row.num_particles for row in iwae.rows]
    norms = [row.guide.norm for row in iwae.rows if row.guide is not None]  # all have one
    lines = [["guide", "(size of iwae's)", *(f"{norm:.2g}" for norm in norms)]]
    for side, points in biases.items():
        for name, of in points.items():
            lines.append([side, name, *cells(of, sizes)])
    return tabulate(lines, ["", "estimator", *map(str, sizes)], tablefmt, disable_numparse=True)


def draw(signals: dict, biases: dict, found: dict[str, pv.Comparison]) -> dict[str, Figure]:
    figures = {}
    for quantity in RATIOS:
        figures[quantity] = Figure(figsize=(14, 6), layout="constrained")
        axes = figures[quantity].subplots(1, 3)
        for index, side in enumerate(SIDES):
            points = {name: one for name, one in signals[quantity, side].items() if name != IN_M}
            theory = {name: theory_of(name, side) for name in points}
            pv.plots.against_size(points, theory, "draws of z per datum", quantity.upper(), COLORS, axes[index])
            axes[index].set_title(f"gradient of the {side}")
        in_m = {side: signals[quantity, side][IN_M] for side in SIDES}
        theory = {side: theory_of(IN_M, side) for side in SIDES}
        pv.plots.against_size(in_m, theory, "M", quantity.upper(), COLORS, axes[2])
        axes[2].set_title(f"MIWAE(M, {K_IN_M})")
    figures["bias"] = Figure(figsize=(11, 5), layout="constrained")
    axes = figures["bias"].subplots(1, 2)
    pv.plots.against_size(biases["model"], BIAS_THEORY, "draws of z per datum", "bias", COLORS, axes[0])
    axes[0].set_title("gradient of the model, against that of log p(x)")
    pv.plots.against_size(biases["guide"], {}, "draws of z per datum", "bias", COLORS, axes[1])
    axes[1].set_title("gradient of the guide, against IWAE's or the ELBO's")
    rows: dict[str, list] = {}
    for row in (row for comparison in found.values() for row in comparison.rows if row.objective != IN_M):
        rows.setdefault(row.objective, []).append(row)
    bounds = {
        name: ([r.num_particles for r in of], [r.bound for r in of], [r.bound_error for r in of])
        for name, of in rows.items()
        if THEORY[name][0] is not None  # the bound of the others is IWAE's
    }
    variances = {name: ([r.seconds for r in of], [r.guide.variance for r in of], None) for name, of in rows.items()}
    figures["cost"] = Figure(figsize=(11, 5), layout="constrained")
    axes = figures["cost"].subplots(1, 2)
    log_px = cast(pv.Estimate, found["iwae"].log_px)
    pv.plots.compared_bounds(bounds, (log_px.mean, 0.0), COLORS, axes[0])
    pv.plots.against_seconds(variances, "variance of the guide's gradient", COLORS, axes[1])
    return figures
