"""Figures: arrays (and Axes) in, Axes out. Nothing here calls a model or saves a file."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

Array = np.ndarray | Tensor


def _numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def _axes(axes: Axes | None) -> Axes:
    return plt.subplots(figsize=(4, 4), layout="constrained")[1] if axes is None else axes


def training_curve(
    epochs: Sequence[float], curves: Mapping[str, Sequence[float]], ylabel: str, axes: Axes | None = None
) -> Axes:
    """Each named curve against the epoch. The view leaves out the first epochs' plunge: it is set by the later 80%."""
    axes = _axes(axes)
    for name, values in curves.items():
        axes.plot(epochs, values, label=name)
    settled = np.concatenate([_numpy(values)[len(epochs) // 5 :] for values in curves.values()])
    margin = 0.1 * (np.ptp(settled) or 1.0)
    axes.set(xlabel="epoch", ylabel=ylabel, ylim=(settled.min() - margin, settled.max() + margin))
    if len(curves) > 1:
        axes.legend(frameon=False)
    return axes


def points(x: Array, labels: Array | None = None, title: str = "", axes: Axes | None = None) -> Axes:
    """A scatter of `(num, 2)` points with equal axes, coloured by label where labels are given."""
    axes, x = _axes(axes), _numpy(x)
    colour = {"color": "0.25"} if labels is None else {"c": _numpy(labels), "cmap": "tab10"}
    axes.scatter(x[:, 0], x[:, 1], **colour, s=3, alpha=0.6, linewidths=0, rasterized=True)
    axes.set_aspect("equal")
    axes.set_title(title)
    return axes


def latent_space(
    z: Array, labels: Array | None = None, title: str = "posterior means", axes: Axes | None = None
) -> Axes:
    """`(num, 2)` latent codes coloured by label, with the circles that hold 50% and 95% of a standard normal prior."""
    axes = points(z, labels, title, axes)
    if labels is not None:
        handles, names = axes.collections[-1].legend_elements(num=None)
        axes.legend(handles, names, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handletextpad=0.0)
    for probability in (0.5, 0.95):
        circle = plt.Circle((0, 0), math.sqrt(-2 * math.log(1 - probability)), fill=False, color="0.6", linewidth=0.8)
        axes.add_patch(circle)
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    return axes


def image_grid(images: Array, columns: int, title: str = "", axes: Axes | None = None) -> Axes:
    """`(num, channels, height, width)` images in [0, 1], row by row, `columns` to a row; one channel or three."""
    axes, images = _axes(axes), _numpy(images)
    num, channels, height, width = images.shape
    rows = math.ceil(num / columns)
    white = 0.0 if channels == 1 else 1.0  # one channel is drawn as ink on paper
    cells = np.full((rows * columns, channels, height, width), white)
    cells[:num] = images
    grid = cells.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    axes.imshow(grid.squeeze(-1) if channels == 1 else grid, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()
    return axes


def reconstructions(
    images: Array, reconstructed: Array, title: str = "data above, reconstruction below", axes: Axes | None = None
) -> Axes:
    """A row of images over the row of their reconstructions, each `(num, channels, height, width)`."""
    both = np.concatenate((_numpy(images), _numpy(reconstructed)))
    return image_grid(both, len(images), title, axes)
