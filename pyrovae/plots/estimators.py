"""Estimates of log p(x) and estimators of its gradient."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from pyrovae.plots.axes import Array, as_numpy, axes_or_new
from pyrovae.plots.slope import fitted_slope

# name -> (K or seconds, values, and the floors below which a value is nothing but noise; None of what has no floor)
Curves = Mapping[str, tuple[Sequence[float], Array, Array | None]]


def bounds(
    sizes: Sequence[int],
    values: Array,
    errors: Array,
    others: Mapping[str, tuple[float, float]] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """L_K with twice its standard error against K = `sizes`, and other estimates `(value, error)` as bands across."""
    axes = axes_or_new(axes)
    _bound(axes, sizes, values, errors, "$L_K$", "black")
    for index, (name, (value, error)) in enumerate((others or {}).items()):
        _across(axes, value, error, name, f"C{index}")
    return _of_bounds(axes)


def compared_bounds(
    curves: Mapping[str, tuple[Sequence[int], Array, Array]],
    log_px: tuple[float, float] | None,
    colors: Mapping[str, str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Of each objective its bound against K, `(sizes, values, errors)`, below log p(x) = `(value, error)` across.

    With twice the standard errors, nats per datum. None leaves log p(x) out, where the bounds are not on it.
    """
    axes = axes_or_new(axes)
    for (name, (sizes, values, errors)), color in zip(curves.items(), _colors(curves, colors), strict=True):
        _bound(axes, sizes, values, errors, name, color)
    if log_px is not None:
        _across(axes, *log_px, "log p(x)", "black")
    _of_bounds(axes)
    _sizes(axes, [sizes for sizes, *_ in curves.values()])
    _legend_below(axes, columns=2)
    return axes


def _bound(axes: Axes, sizes: Sequence[int], values: Array, errors: Array, label: str, color: str) -> None:
    values, errors = as_numpy(values), np.nan_to_num(as_numpy(errors))
    axes.errorbar(sizes, values, 2 * errors, marker="o", markersize=3, capsize=2, color=color, label=label)


def _across(axes: Axes, value: float, error: float, label: str, color: str) -> None:
    axes.axhline(value, color=color, linewidth=1, label=label)
    axes.axhspan(value - 2 * error, value + 2 * error, color=color, alpha=0.2, linewidth=0)


def _of_bounds(axes: Axes) -> Axes:
    axes.set(xscale="log", xlabel="K, samples per datum", ylabel="nats per datum")
    axes.legend(frameon=False, loc="lower right")
    return axes


def below_the_best(measured: Mapping[str, tuple[float, float, float]], axes: Axes | None = None) -> Axes:
    """How far each method, `(seconds, nats, error)`, lies below the largest of them, against its time; log axes.

    With twice the error of the difference, of methods whose draws are independent.
    """
    axes = axes_or_new(axes)
    best = max(measured, key=lambda name: measured[name][1])
    _, top, top_error = measured[best]
    for name, (seconds, nats, error) in measured.items():
        if name == best:
            continue
        gap, spread = top - nats, 2 * np.hypot(np.nan_to_num(error), np.nan_to_num(top_error))
        low = min(spread, 0.999 * gap)  # an error that reaches below nothing has no place on a log axis
        axes.errorbar([seconds], [gap], [[low], [spread]], marker="o", markersize=4, capsize=2, color="black")
        axes.annotate(name, (seconds, gap), xytext=(5, 5), textcoords="offset points", fontsize="small")
    axes.axvline(measured[best][0], color="0.6", linestyle=":", label=f"{best}, the best")
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel=f"nats per datum below {best}")
    axes.margins(0.2)
    axes.legend(frameon=False, loc="lower left")
    return axes


def against_size(
    curves: Curves,
    theory: Mapping[str, float] | None = None,
    xlabel: str = "K, samples per datum",
    ylabel: str = "signal-to-noise ratio",
    colors: Mapping[str, str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Each objective's signal-to-noise ratio, or bias, against K, its floor dotted; `Comparison.curves` has them.

    In the legend the slope that `fitted_slope` finds (its standard error in brackets), beside that of
    `theory` where it names the objective. It is fitted to the filled points alone: those more than three times their
    floor, of these the ones within a factor of 16 of the largest K.
    """
    axes = axes_or_new(axes)
    for (name, (sizes, values, floors)), color in zip(curves.items(), _colors(curves, colors), strict=True):
        slope = fitted_slope(sizes, as_numpy(values).tolist(), as_numpy(floors).tolist())
        label = name if math.isnan(slope.value) else f"{name}: {slope.value:+.2f}"
        label += "" if math.isnan(slope.error) else f" ({slope.error:.2f})"
        label += f", theory {theory[name]:+g}" if name in (theory or {}) else ""
        _above_floor(axes, sizes, values, floors, slope.fitted, label, color)
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    _sizes(axes, [sizes for sizes, *_ in curves.values()])
    _plain_numbers(axes.yaxis)
    _legend_below(axes, title="slope of filled points (standard error)")
    return axes


def against_seconds(
    curves: Curves, ylabel: str, colors: Mapping[str, str] | None = None, axes: Axes | None = None
) -> Axes:
    """A gradient's bias, or its variance, against the seconds of a step, log axes, a line per estimator.

    Each has its name to the right, at the height of its slowest step or next to it. With floors those are dotted, and
    points that are not twice theirs hollow: no bias was seen there. What is 0, the variance of an exact gradient, has
    no place on a log axis and is left out.
    """
    axes = axes_or_new(axes)
    ends = []
    for (name, (seconds, values, floors)), color in zip(curves.items(), _colors(curves, colors), strict=True):
        shown = as_numpy(values) > 0
        if not shown.any():
            continue
        seconds, values = as_numpy(seconds)[shown], as_numpy(values)[shown]
        floors = None if floors is None else as_numpy(floors)[shown]
        seen = np.full(len(values), True) if floors is None else values > 2 * floors
        _above_floor(axes, seconds, values, floors, seen, name, color)
        last = int(np.argmax(seconds))
        ends.append((float(values[last]), float(seconds[last]), name, color))
    axes.set(xscale="log", yscale="log", xlabel="seconds per step", ylabel=ylabel)
    for axis in (axes.xaxis, axes.yaxis):
        _plain_numbers(axis)
    low, high = np.log(axes.get_ylim())
    height = math.inf
    for value, at, name, color in sorted(ends, reverse=True):
        height = min(math.log(value), height - 0.05 * (high - low))  # names do not lie upon each other
        place = {"xytext": (1.02, math.exp(height)), "textcoords": axes.get_yaxis_transform()}
        axes.annotate(name, (at, value), **place, color=color, fontsize="small", va="center", annotation_clip=False)
    return axes


def _colors(curves: Mapping[str, object], colors: Mapping[str, str] | None) -> list[str]:
    """Those given, so that an estimator keeps its colour from figure to figure; else in matplotlib's order."""
    return [f"C{index}" if colors is None else colors[name] for index, name in enumerate(curves)]


def _sizes(axes: Axes, sizes: Sequence[Sequence[float]]) -> None:
    """Ticks at the sizes themselves, where they are few."""
    ticks = sorted({size for some in sizes for size in some})
    if len(ticks) <= 12:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())


def _plain_numbers(axis: Axis) -> None:
    """0.1 and not 10^-1, on an axis that has its range; 2 and 5 between the tens, and labelled where there are few."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    low, high = axis.get_view_interval()
    axis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


def _legend_below(axes: Axes, columns: int = 1, title: str | None = None) -> None:
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
    axes.legend(**place, frameon=False, fontsize="small", title=title, title_fontsize="small", ncols=columns)


def _above_floor(
    axes: Axes, x: Sequence[float], values: Array, floors: Array | None, filled: Sequence[bool], label: str, color: str
) -> None:
    values, faces = as_numpy(values), [color if one else "white" for one in filled]
    axes.plot(x, values, color=color, linewidth=1, label=label)
    axes.scatter(x, values, s=16, facecolors=faces, edgecolors=color, zorder=3)
    if floors is not None:
        axes.plot(x, as_numpy(floors), color=color, linewidth=1, linestyle=":")


def race_curves(curves: Mapping[str, tuple[Array, Array]], xlabel: str = "epochs", axes: Axes | None = None) -> Axes:
    """log p(x) along trainings: `(points,)` of epochs or seconds and `(seeds, points)` of nats for each objective.

    A thick line is the mean over seeds, thin ones are the seeds. The view is set by the later half of the points.
    """
    axes, settled = axes_or_new(axes), []
    for index, (name, (x, values)) in enumerate(curves.items()):
        x, values = as_numpy(x), as_numpy(values)
        axes.plot(x, values.T, color=f"C{index}", linewidth=0.5, alpha=0.6)
        axes.plot(x, values.mean(0), color=f"C{index}", linewidth=1.8, label=name)
        settled.append(values[:, len(x) // 2 :].ravel())
    settled = np.concatenate(settled)
    margin = np.ptp(settled) or 1.0
    axes.set(xlabel=xlabel, ylabel="held-out log p(x), nats", ylim=(settled.min() - margin, settled.max() + margin / 5))
    axes.legend(frameon=False, fontsize="small")
    return axes


def rank_histogram(counts: Array, title: str = "", axes: Axes | None = None) -> Axes:
    """`(num_bins,)` counts of ranks, of simulation-based calibration, with the mean and 99% band of uniform ones."""
    axes, counts = axes_or_new(axes), as_numpy(counts)
    num, share = int(counts.sum()), 1 / len(counts)
    mean, deviation = num * share, math.sqrt(num * share * (1 - share))  # of a binomial count, near normal
    band = (mean - 2.576 * deviation, mean + 2.576 * deviation)
    axes.axhspan(*band, color="0.85", linewidth=0, label="99% of each bin, if uniform")
    axes.axhline(mean, color="0.6", linewidth=1)
    axes.bar((np.arange(len(counts)) + 0.5) * share, counts, width=0.9 * share, color="C0")
    axes.set(xlabel="rank of the latent among the guide's draws", ylabel="data", xlim=(0, 1), title=title)
    axes.legend(frameon=False, fontsize="small")
    return axes
