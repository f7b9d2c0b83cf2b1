"""Figures of predictive checks: a statistic of replicated data beside that of the data."""

import numpy as np
from matplotlib.axes import Axes

from pyrovae.plots.axes import Values, as_numpy, axes_or_new
from pyrovae.plots.shapes import takes_arrays

BINS = 30


@takes_arrays(replicated="(num,) finite", observed="() finite")
def replicated_statistic(replicated: Values, observed: float, title: str = "", axes: Axes | None = None) -> Axes:
    """Draws the histogram of a statistic of replicated data sets, and that of the data as a line.

    Args:
        replicated: The statistic of each replicated data set, `(num,)`.
        observed: The statistic of the data.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.replicated_statistic(torch.randn(100), 3.0, axes=axes)
        >>> axes.lines[0].get_xdata()
        [3.0, 3.0]
    """
    axes, values, at = axes_or_new(axes), as_numpy(replicated), float(observed)
    low, high = values.min(), values.max()
    edges = np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts, *_ = axes.hist(values, edges.tolist(), color="0.8", label=f"{len(values):,} replicated data sets")
    axes.axvline(at, color="C0", linewidth=2, label="data")
    top = 1.3 * float(np.max(counts))  # with room for the legend
    axes.set(xlabel="mean statistic of a data set", ylabel="data sets", ylim=(0, top), title=title)
    axes.legend(frameon=False, fontsize="small")
    return axes
