"""Figures of trainings: one training's terms, and the learning curves of a race."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from pyrovae.plots.axes import Array, as_numpy, axes_or_new


def training_curve(
    epochs: Sequence[float], curves: Mapping[str, Sequence[float]], ylabel: str, axes: Axes | None = None
) -> Axes:
    """Draws named curves against the epoch, with a view that leaves out the plunge of the first epochs.

    The range of the y axis is that of the later 80% of the epochs. Two curves or more get a legend.

    Args:
        epochs: The epochs, `(num_epochs,)`.
        curves: The values by name, each `(num_epochs,)`.
        ylabel: The label of the y axis, with the unit.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.training_curve(range(1, 6), {"loss": [99.0, 4.0, 3.0, 2.0, 2.0]}, "nats", axes)
        >>> [round(float(end), 1) for end in axes.get_ylim()]
        [1.8, 4.2]
    """
    axes = axes_or_new(axes)
    for name, values in curves.items():
        axes.plot(epochs, values, label=name)
    settled = np.concatenate([as_numpy(values)[len(epochs) // 5 :] for values in curves.values()])
    margin = 0.1 * (np.ptp(settled) or 1.0)
    axes.set(xlabel="epoch", ylabel=ylabel, ylim=(settled.min() - margin, settled.max() + margin))
    if len(curves) > 1:
        axes.legend(frameon=False)
    return axes


def race_curves(curves: Mapping[str, tuple[Array, Array]], xlabel: str = "epochs", axes: Axes | None = None) -> Axes:
    """Draws log p(x) along the trainings of a race: a thin line for each seed, a thick one for their mean.

    The range of the y axis is that of the later half of the points.

    Args:
        curves: For each objective the epochs or seconds, `(points,)`, and log p(x) in nats per datum,
            `(seeds, points)`, as `Race.curves` returns them.
        xlabel: The label of the x axis.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.race_curves({"elbo": (torch.arange(1, 4), torch.randn(2, 3))}, axes=axes)
        >>> len(axes.lines)
        3
    """
    axes = axes_or_new(axes)
    later: list[np.ndarray] = []
    for index, (name, (x, values)) in enumerate(curves.items()):
        x, values = as_numpy(x), as_numpy(values)
        axes.plot(x, values.T, color=f"C{index}", linewidth=0.5, alpha=0.6)
        axes.plot(x, values.mean(0), color=f"C{index}", linewidth=1.8, label=name)
        later.append(values[:, len(x) // 2 :].ravel())
    settled = np.concatenate(later)
    margin = np.ptp(settled) or 1.0
    axes.set(xlabel=xlabel, ylabel="held-out log p(x), nats", ylim=(settled.min() - margin, settled.max() + margin / 5))
    axes.legend(frameon=False, fontsize="small")
    return axes
