"""The ground of every figure: arrays, new axes, ticks, colours and legends."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from torch import Tensor

from pyrovae.common import require, require_number, require_size, shown

Array = np.ndarray | Tensor
Values = Array | Sequence[float]
MOST_TICKS = 12
DIGIT_WIDTH, SPACE_BETWEEN = 0.64, 0.5  # of labels, in units of their font size


def as_numpy(array: Values) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def axes_or_new(axes: Axes | None, projection: str | None = None) -> Axes:
    """Returns `axes`, or those of a new figure of pyplot if there are none."""
    if axes is not None:
        return axes
    return plt.subplots(figsize=(4, 4), layout="constrained", subplot_kw={"projection": projection})[1]


def figure_row(columns: int, width: float = 4.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a row of axes, which pyplot does not know and nobody has to close.

    Args:
        columns: The number of axes.
        width: The width of each in inches.
        height: The height of the figure in inches.

    Returns:
        The figure and the list of its axes.

    Example:
        >>> figure, axes = pv.plots.figure_row(3)
        >>> len(axes), figure.get_size_inches().tolist()
        (3, [12.0, 3.6])
    """
    require_size("columns", columns)
    for name, inches in {"width": width, "height": height}.items():
        require_number(name, inches, above=0)
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def colors_of(curves: Mapping[str, object], colors: Mapping[str, str] | None) -> list[str]:
    """Returns a colour for each curve: the given one, which it may have in other figures too, or matplotlib's next."""
    require(isinstance(colors, Mapping | None), f"colors must be a dict by name, got {shown(colors)}")
    for name, color in (colors or {}).items():
        require(is_color_like(color), f"colors[{name!r}] must be a colour of matplotlib's, got {shown(color)}")
    missing = [name for name in curves if colors is not None and name not in colors]
    require(not missing, f"colors must have one for each curve, got none for {missing[:3]}")
    return [f"C{index}" if colors is None else colors[name] for index, name in enumerate(curves)]


def ticks_at_sizes(axes: Axes, sizes: Sequence[Sequence[float]]) -> None:
    """Sets the ticks of the x axis to the sizes themselves, if they are few. A label without room is left out."""
    ticks = sorted({size for some in sizes for size in some})
    if len(ticks) <= MOST_TICKS:
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(_LabelsWithRoom())
        axes.xaxis.set_minor_locator(NullLocator())


class _LabelsWithRoom(Formatter):
    """Labels ticks of an x axis, whenever it is drawn, except those that would lie over the label to their right."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}"

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Returns the label of each tick, empty for those without room; the last one has it."""
        assert isinstance(self.axis, Axis)
        axes, labels, end = self.axis.axes, [f"{value:g}" for value in values], math.inf
        size = float(self.axis.get_major_ticks(1)[0].label1.get_fontsize()) / 72 * axes.figure.dpi  # in pixels
        points = np.reshape([(value, 0.0) for value in values], (-1, 2))  # of a figure without sizes, too
        places = axes.get_xaxis_transform().transform(points)[:, 0]
        for index, (place, label) in reversed(list(enumerate(zip(places, labels, strict=True)))):
            half = (DIGIT_WIDTH * len(label) + SPACE_BETWEEN) * size / 2
            if place + half > end:
                labels[index] = ""
            else:
                end = place - half
        return labels


def on_log_axis(values: Values) -> np.ndarray:
    """Returns values with nan, which is drawn as a gap, for those without a place on a log axis."""
    array = as_numpy(values).astype(float)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def limits_of_log_axis(axes: Axes) -> tuple[float, float]:
    """Returns the limits of the y axis, which is logarithmic, after setting some if nothing stands on it."""
    if axes.get_ylim()[0] <= 0:  # matplotlib's, of an axis that has only gaps
        axes.set_ylim(1, 10)
    return axes.get_ylim()


def plain_numbers(axis: Axis) -> None:
    """Labels a log axis with 0.1 instead of 10^-1, with ticks at 2 and 5 between the tens.

    The minor ticks are labelled only if the axis, whose range must be set, is short; if it is very short, there are a
    few ticks at round numbers.
    """
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    low, high = axis.get_view_interval()
    if high < 5 * low:
        axis.set_major_locator(MaxNLocator(4))
        axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


def legend_inside(axes: Axes, title: str | None = None) -> None:
    """Adds a legend inside the axes, where it hides least of what is drawn, if anything has a name."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(loc="best", framealpha=0.8, edgecolor="none", fontsize="small", title=title, title_fontsize="small")
