"""Figures of tables: the values of a column beside those of a model's samples."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from pyrovae.common import require, shown
from pyrovae.plots.axes import Array, as_numpy, axes_or_new
from pyrovae.plots.shapes import takes_arrays

MOST_BARS = 30


@takes_arrays(data="(num_data,)", samples="(num_samples,)")
def column(
    data: Array,
    samples: Array,
    whole: bool = False,
    categories: Sequence[str] = (),
    title: str = "",
    axes: Axes | None = None,
) -> Axes:
    """Draws how often each value of a column of a table is found in the data, and in samples of a model.

    Real numbers get two histograms with the same bins, which span 99% of the data. Whole numbers get two bars each if
    they span at most 30 values.

    Args:
        data: The column's values in the data, `(num_data,)`. NaN is a missing cell and is left out.
        samples: Its values in the samples, `(num_samples,)`.
        whole: Whether the values are whole numbers: counts, 0 and 1, or the numbers of categories.
        categories: The names of the values 0, 1, 2, ...; none by default.
        title: The title, such as the column's name.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.column(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 0, 1]), whole=True, axes=axes)
        >>> [float(bar.get_height()) for bar in axes.patches]
        [0.25, 0.75, 0.5, 0.5]
    """
    data, samples = as_numpy(data).astype(float), as_numpy(samples).astype(float)
    data, samples = data[~np.isnan(data)], samples[~np.isnan(samples)]
    for name, values in {"data": data, "samples": samples}.items():
        require(len(values) > 0, f"{name} must have a cell that is not missing, got none")
        require(bool(np.isfinite(values).all()), f"{name} must be finite, got inf")
    require(isinstance(categories, Sequence), f"categories must be a list of texts, got {shown(categories)}")
    if categories:
        most = len(categories) - 1
        known = whole and data.min() >= 0 and data.max() <= most
        require(known, f"data must be numbers of categories, 0 to {most}, got {data.min():g} to {data.max():g}")
    axes = axes_or_new(axes)
    low, high = (data.min(), data.max()) if whole else np.quantile(data, (0.005, 0.995))
    if whole and high - low < MOST_BARS:
        values = np.arange(low, high + 1)
        for shift, found, name in ((-0.2, data, "data"), (0.2, samples, "samples")):
            shares = [(found == value).mean() for value in values]
            axes.bar(values + shift, shares, width=0.4, label=name)
        if categories:
            axes.set_xticks(values, [categories[int(value)] for value in values], rotation=30, ha="right")
        axes.set_ylabel("share")
    else:
        num_bins = min(MOST_BARS, max(5, int(2 * len(data) ** 0.5)))
        bins = np.linspace(low, high if high > low else low + 1, num_bins + 1).tolist()
        for found, name in ((data, "data"), (samples, "samples")):  # of all of them, also those beyond the frame
            weights = np.full(len(found), 1 / (len(found) * (bins[1] - bins[0])))
            axes.hist(found, bins, weights=weights, histtype="step", label=name)
        axes.set_ylabel("density")
    axes.set_title(title)
    axes.legend(fontsize="small", framealpha=0.7, edgecolor="none")
    return axes
