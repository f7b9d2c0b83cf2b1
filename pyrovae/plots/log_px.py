"""Figures of estimates of log p(x)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from pyrovae.plots.axes import (
    Values,
    as_numpy,
    axes_or_new,
    colors_of,
    legend_inside,
    plain_numbers,
    ticks_at_sizes,
)
from pyrovae.plots.shapes import takes_arrays


@takes_arrays(sizes="(any,) positive", values="(any,)", errors="(any,) no_less", others=["()", "() no_less"])
def bounds(
    sizes: Sequence[int],
    values: Values,
    errors: Values,
    others: Mapping[str, tuple[float, float]] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draws the importance-weighted bound L_K against K, with bars of twice its standard error.

    Args:
        sizes: The numbers K of samples, `(num_sizes,)`.
        values: L_K in nats per datum, `(num_sizes,)`.
        errors: The standard errors, `(num_sizes,)`; an error that is nan or infinite is drawn as 0.
        others: Other estimates by name, each `(value, standard error)`, drawn as bands across; none by default.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.bounds([1, 10], [-2.0, -1.5], [0.1, 0.05], {"AIS": (-1.4, 0.02)}, axes)
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['AIS', '$L_K$']
    """
    axes = axes_or_new(axes)
    if len(sizes) > 0:
        _draw_bound(axes, sizes, values, errors, "$L_K$", "black")
    for index, (name, (value, error)) in enumerate((others or {}).items()):
        _draw_across(axes, value, error, name, f"C{index}")
    return _label_bounds(axes, [sizes])


@takes_arrays(curves=["(num,) positive", "(num,)", "(num,) no_less"], log_px=("()", "() no_less"))
def compared_bounds(
    curves: Mapping[str, tuple[Sequence[int], Values, Values]],
    log_px: tuple[float, float] | None,
    colors: Mapping[str, str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draws the bounds of several objectives against K, and log p(x) as a band across, with twice the standard errors.

    Args:
        curves: For each objective `(sizes, values, errors)`, each `(num_sizes,)`, in nats per datum.
        log_px: The estimate of log p(x) and its standard error; None leaves it out, for objectives that are no bound
            on it.
        colors: A colour for each objective; by default matplotlib's cycle.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> curves = {"elbo": ([1, 8], [-3.0, -2.9], [0.1, 0.1]), "iwae": ([1, 8], [-3.0, -2.2], [0.1, 0.1])}
        >>> axes = pv.plots.compared_bounds(curves, (-2.0, 0.05), axes=axes)
        >>> [text.get_text() for text in axes.get_legend().get_texts()]
        ['log p(x)', 'elbo', 'iwae']
    """
    chosen, axes = colors_of(curves, colors), axes_or_new(axes)
    for (name, (sizes, values, errors)), color in zip(curves.items(), chosen, strict=True):
        _draw_bound(axes, sizes, values, errors, name, color)
    if log_px is not None:
        _draw_across(axes, *log_px, "log p(x)", "black")
    return _label_bounds(axes, [sizes for sizes, *_ in curves.values()])


@takes_arrays(measured=["() positive", "() finite", "() no_less"])
def below_the_best(measured: Mapping[str, tuple[float, float, float]], axes: Axes | None = None) -> Axes:
    """Draws how far each method lies below the one with the largest estimate, against its time, on log axes.

    The bars are twice the standard error of the difference, for methods whose draws are independent.

    Args:
        measured: For each method `(seconds, nats per datum, standard error)`.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.below_the_best({"IS": (1.0, -2.0, 0.1), "AIS": (60.0, -1.0, 0.1)}, axes)
        >>> axes.get_ylabel()
        'nats per datum below AIS'
    """
    axes = axes_or_new(axes)
    best = max(measured, key=lambda name: measured[name][1])
    _, top, top_error = measured[best]
    gaps = []
    for name, (seconds, nats, error) in measured.items():
        if nats == top:  # as good as the best, which has no place on the log axis
            axes.axvline(seconds, color="0.6", linestyle=":", label=f"{name}, the best")
            continue
        gap, spread = top - nats, 2 * np.hypot(_or_zero(error), _or_zero(top_error))
        low = min(spread, 0.999 * gap)  # a log axis has no place for a bar that reaches below 0
        axes.errorbar([seconds], [gap], [[low], [spread]], marker="o", markersize=4, capsize=2, color="black")
        gaps.append(gap)
        axes.annotate(name, (seconds, gap), xytext=(5, 5), textcoords="offset points", fontsize="small")
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel=f"nats per datum below {best}")
    axes.margins(0.2)
    if gaps:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], min(gaps) / 4))  # not down to the ends of bars that reach 0
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    legend_inside(axes)
    return axes


def _or_zero(errors: Values | float) -> np.ndarray:
    """Returns errors with 0 in the place of those that are unknown."""
    return np.nan_to_num(errors, posinf=0.0)


def _draw_bound(axes: Axes, sizes: Sequence[int], values: Values, errors: Values, label: str, color: str) -> None:
    bars = 2 * _or_zero(as_numpy(errors))
    axes.errorbar(sizes, as_numpy(values), bars, marker="o", markersize=3, capsize=2, color=color, label=label)


def _draw_across(axes: Axes, value: float, error: float, label: str, color: str) -> None:
    place, bar = value if math.isfinite(value) else math.nan, 2 * float(_or_zero(error))
    axes.axhline(place, color=color, linewidth=1, label=label)
    axes.axhspan(place - bar, place + bar, color=color, alpha=0.2, linewidth=0)


def _label_bounds(axes: Axes, sizes: Sequence[Sequence[int]]) -> Axes:
    axes.set(xscale="log", xlabel="K, samples per datum" if any(map(len, sizes)) else "", ylabel="nats per datum")
    ticks_at_sizes(axes, sizes)
    legend_inside(axes)
    return axes
