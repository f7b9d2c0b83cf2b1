"""Figures of trainings: one training's terms, and the learning curves of a race."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from pyrovae.common import require_size
from pyrovae.plots.axes import Array, as_numpy, axes_or_new, colors_of, legend_inside
from pyrovae.plots.shapes import takes_arrays


@takes_arrays(epochs="(num,)", curves=["(num,)"])
def training_curve(
    epochs: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    ylabel: str,
    axes: Axes | None = None,
    smoothed_over: int = 1,
) -> Axes:
    """Draws named curves against the epoch. Two curves or more get a legend.

    Smoothed curves are drawn over the raw ones, which are pale then.

    Args:
        epochs: The epochs, `(num_epochs,)`.
        curves: The values by name, each `(num_epochs,)`.
        ylabel: The label of the y axis, with the unit.
        axes: The axes to draw in; by default those of a new figure.
        smoothed_over: The number of epochs around each over which a curve is averaged; fewer at its two ends.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.training_curve(range(1, 6), {"loss": [9.0, 4.0, 3.0, 2.0, 2.0]}, "nats", axes)
        >>> axes.lines[0].get_ydata().tolist()
        [9.0, 4.0, 3.0, 2.0, 2.0]
    """
    require_size("smoothed_over", smoothed_over)
    axes = axes_or_new(axes)
    marker = "o" if len(epochs) == 1 else None  # a line has no length then
    for index, (name, values) in enumerate(curves.items()):
        line = as_numpy(values)
        if smoothed_over > 1:
            axes.plot(epochs, line, color=f"C{index}", alpha=0.3, linewidth=0.8)
            line = _smoothed(line, smoothed_over)
        axes.plot(epochs, line, color=f"C{index}", label=name, marker=marker)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(FixedLocator(epochs) if marker else MaxNLocator(integer=True))
    if len(curves) > 1:
        legend_inside(axes)
    return axes


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Returns the mean of the `width` values around each, as far as there are so many."""
    around = [values[max(0, i - (width - 1) // 2) : i + width // 2 + 1] for i in range(len(values))]
    return np.array([each.mean() for each in around])


@takes_arrays(curves=["(points,)", "(seeds, points)"])
def race_curves(
    curves: Mapping[str, tuple[Array, Array]],
    xlabel: str = "epochs",
    axes: Axes | None = None,
    colors: Mapping[str, str] | None = None,
) -> Axes:
    """Draws log p(x) along the trainings of a race: a thin line for each seed, a thick one for their mean.

    Args:
        curves: For each objective the epochs or seconds, `(points,)`, and log p(x) in nats per datum,
            `(seeds, points)`, as `Race.curves` returns them.
        xlabel: The label of the x axis.
        axes: The axes to draw in; by default those of a new figure.
        colors: A colour for each objective; by default matplotlib's cycle.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.race_curves({"elbo": (torch.arange(1, 4), torch.randn(2, 3))}, axes=axes)
        >>> len(axes.lines)
        3
    """
    chosen, axes = colors_of(curves, colors), axes_or_new(axes)
    for (name, (x, values)), color in zip(curves.items(), chosen, strict=True):
        x, values = as_numpy(x), as_numpy(values)
        axes.plot(x, values.T, color=color, linewidth=0.5, alpha=0.6)
        axes.plot(x, values.mean(0), color=color, linewidth=1.8, label=name)
    axes.set(xlabel=xlabel, ylabel="held-out log p(x), nats")
    legend_inside(axes)
    return axes
