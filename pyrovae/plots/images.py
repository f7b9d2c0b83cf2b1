"""Figures of images: grids, reconstructions, the decoded latent plane and traversals."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from pyrovae.common import require, require_number, require_sequence, require_size
from pyrovae.plots.axes import Array, as_numpy, axes_or_new
from pyrovae.plots.shapes import takes_arrays


@takes_arrays(images="(num, channels, height, width)")
def image_grid(images: Array, columns: int, title: str = "", axes: Axes | None = None) -> Axes:
    """Draws images row by row; those of one channel as ink on paper, those of three in their colours.

    Args:
        images: The images with values in [0, 1], `(num, channels, height, width)`.
        columns: The number of images in a row.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.image_grid(torch.rand(5, 1, 8, 6), 3, axes=axes)
        >>> axes.images[0].get_array().shape
        (16, 18)
    """
    images = as_numpy(images)
    num, channels, height, width = images.shape
    require(channels in (1, 3), f"images must have 1 or 3 channels, got {channels}")
    require_size("columns", columns)
    axes = axes_or_new(axes)
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


@takes_arrays(images="(num, channels, height, width)", reconstructed="(num, channels, height, width)")
def reconstructions(
    images: Array, reconstructed: Array, title: str = "data above, reconstruction below", axes: Axes | None = None
) -> Axes:
    """Draws a row of images above the row of their reconstructions.

    Args:
        images: The images with values in [0, 1], `(num, channels, height, width)`.
        reconstructed: The reconstructions, of the same shape.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.reconstructions(torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8), axes=axes)
        >>> axes.images[0].get_array().shape
        (16, 32)
    """
    both = np.concatenate((as_numpy(images), as_numpy(reconstructed)))
    return image_grid(both, len(images), title, axes)


@takes_arrays(images="(size, size, channels, height, width)", limit="() finite")
def latent_plane(images: Array, limit: float, title: str = "decoded latent plane", axes: Axes | None = None) -> Axes:
    """Draws images that were decoded from a regular grid over [-limit, limit]^2 at their places in the plane.

    Args:
        images: The images with values in [0, 1], `(size, size, channels, height, width)`; the first axis is along z_2
            upwards and the second along z_1.
        limit: The end of the grid.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.latent_plane(torch.rand(3, 3, 1, 8, 8), 2.0, axes=axes)
        >>> axes.images[0].get_extent()
        [-2.0, 2.0, -2.0, 2.0]
    """
    require_number("limit", limit, above=0)
    images = as_numpy(images)
    size = images.shape[0]
    axes = image_grid(images[::-1].reshape(-1, *images.shape[2:]), size, title, axes)
    axes.get_images()[0].set_extent((-limit, limit, -limit, limit))
    axes.set_axis_on()
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    return axes


@takes_arrays(images="(rows, steps, channels, height, width)")
def traversal(images: Array, names: Sequence[str], title: str = "latent traversals", axes: Axes | None = None) -> Axes:
    """Draws rows of images along which one latent dimension changes, or one datum turns into another.

    Args:
        images: The images with values in [0, 1], `(rows, steps, channels, height, width)`.
        names: A label for each row.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.traversal(torch.rand(2, 5, 1, 8, 8), ["$z_1$", "$z_2$"], axes=axes)
        >>> [text.get_text() for text in axes.texts]
        ['$z_1$', '$z_2$']
    """
    images = as_numpy(images)
    require_sequence("names", names, "texts")
    require(len(names) == len(images), f"names must hold one for each of {len(images)} rows, got {len(names)}")
    axes = image_grid(images.reshape(-1, *images.shape[2:]), images.shape[1], title, axes)
    for row, name in enumerate(names):
        axes.text(-2, (row + 0.5) * images.shape[3], name, ha="right", va="center", fontsize="small")
    return axes
