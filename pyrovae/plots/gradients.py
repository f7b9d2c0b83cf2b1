"""Figures of estimators of the gradient: signal-to-noise ratio, bias and variance against size and time."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from pyrovae.plots.axes import (
    Values,
    as_numpy,
    axes_or_new,
    colors_of,
    legend_inside,
    limits_of_log_axis,
    on_log_axis,
    plain_numbers,
    ticks_at_sizes,
)
from pyrovae.plots.shapes import takes_arrays
from pyrovae.plots.slope import fitted_slope

# By name: (K or seconds, values, floors). A value below its floor is nothing but noise; floors may be None.
Curves = Mapping[str, tuple[Sequence[float], Values, Values | None]]
CurvesWithFloors = Mapping[str, tuple[Sequence[float], Values, Values]]


@takes_arrays(curves=["(num,) positive", "(num,)", "(num,)"])
def against_size(
    curves: CurvesWithFloors,
    theory: Mapping[str, float] | None = None,
    xlabel: str = "K, samples per datum",
    ylabel: str = "signal-to-noise ratio",
    colors: Mapping[str, str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draws the signal-to-noise ratio or the bias of each objective against K on log axes, with its floor dotted.

    The legend has the slope that `fitted_slope` finds, with its standard error in brackets. It is fitted to the filled
    points: those that are more than three times their floor, and within a factor of 16 of the largest such K.

    Args:
        curves: For each objective `(sizes, values, floors)`, each `(num_sizes,)`, as `Comparison.curves` returns.
        theory: The theoretical slope of some of the objectives, for the legend; none by default.
        xlabel: The label of the x axis.
        ylabel: The label of the y axis.
        colors: A colour for each objective; by default matplotlib's cycle.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> curves = {"iwae": ([1, 4, 16], [2.0, 1.0, 0.5], [0.01, 0.01, 0.01])}
        >>> axes = pv.plots.against_size(curves, {"iwae": -0.5}, axes=axes)
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['iwae: -0.50 (0.00), theory -0.5']
    """
    chosen, axes, theory = colors_of(curves, colors), axes_or_new(axes), theory or {}
    for (name, (sizes, values, floors)), color in zip(curves.items(), chosen, strict=True):
        slope = fitted_slope(sizes, as_numpy(values).tolist(), as_numpy(floors).tolist())
        label = name if math.isnan(slope.value) else f"{name}: {slope.value:+.2f}"
        label += "" if math.isnan(slope.error) else f" ({slope.error:.2f})"
        label += f", theory {theory[name]:+g}" if name in theory else ""
        _draw_above_floor(axes, sizes, values, floors, slope.fitted, label, color)
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    ticks_at_sizes(axes, [sizes for sizes, *_ in curves.values()])
    axes.autoscale(axis="y")  # as an earlier figure that shares this axis has set its limits
    low, high = limits_of_log_axis(axes)
    axes.set_ylim(top=high * (high / low) ** (0.06 * (len(curves) + 1)))  # room for the legend
    plain_numbers(axes.yaxis)
    legend_inside(axes, title="slope of filled points (standard error)")
    return axes


@takes_arrays(curves=["(num,) positive", "(num,)", "(num,) or None"])
def against_seconds(
    curves: Curves, ylabel: str, colors: Mapping[str, str] | None = None, axes: Axes | None = None
) -> Axes:
    """Draws the bias or the variance of a gradient against the seconds of a step on log axes, a line per estimator.

    The name of an estimator stands at the right, as close to the height of its slowest step as the other names allow.
    Points of at most twice their floor are hollow, because no bias was seen there. Values without a place on a log
    axis, such as the variance 0 of an exact gradient, are left out.

    Args:
        curves: For each estimator `(seconds, values, floors)`, each `(num_sizes,)`; floors are dotted, and may be
            None.
        ylabel: The label of the y axis.
        colors: A colour for each estimator; by default matplotlib's cycle.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> curves = {"elbo": ([0.01, 0.02], [3.0, 1.5], None), "exact": ([0.05], [0.0], None)}
        >>> axes = pv.plots.against_seconds(curves, "variance", axes=axes)
        >>> [text.get_text() for text in axes.texts]
        ['elbo']
    """
    chosen, axes = colors_of(curves, colors), axes_or_new(axes)
    ends = []
    for (name, (seconds, values, floors)), color in zip(curves.items(), chosen, strict=True):
        shown = np.isfinite(on_log_axis(values))
        if not shown.any():
            continue
        x, y = as_numpy(seconds)[shown], as_numpy(values)[shown]
        floor = None if floors is None else as_numpy(floors)[shown]
        seen = np.full(len(y), True) if floor is None else y > 2 * floor
        _draw_above_floor(axes, x, y, floor, seen, name, color)
        last = int(np.argmax(x))
        ends.append((float(y[last]), float(x[last]), name, color))
    axes.set(xscale="log", yscale="log", xlabel="seconds per step", ylabel=ylabel)
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    low, high = np.log(axes.get_ylim())
    height = math.inf
    for value, at, name, color in sorted(ends, reverse=True):
        height = min(math.log(value), height - 0.05 * (high - low))  # names must not overlap
        axes.annotate(
            name,
            (at, value),
            xytext=(1.02, math.exp(height)),
            textcoords=axes.get_yaxis_transform(),
            color=color,
            fontsize="small",
            va="center",
            annotation_clip=False,
        )
    return axes


def _draw_above_floor(
    axes: Axes, x: Values, values: Values, floors: Values | None, filled: Iterable[bool], label: str, color: str
) -> None:
    values, faces = on_log_axis(values), [color if one else "white" for one in filled]
    axes.plot(x, values, color=color, linewidth=1, label=label)
    axes.scatter(x, values, s=16, facecolors=faces, edgecolors=color, zorder=3)
    if floors is not None:
        axes.plot(x, on_log_axis(floors), color=color, linewidth=1, linestyle=":")
