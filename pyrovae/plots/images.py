"""Points, images and latent codes."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Ellipse

from pyrovae.plots.axes import Array, as_numpy, axes_or_new


def points(x: Array, labels: Array | None = None, title: str = "", axes: Axes | None = None) -> Axes:
    """A scatter of `(num, 2)` points with equal axes, coloured by label where labels are given."""
    axes, x = axes_or_new(axes), as_numpy(x)
    colour = {"color": "0.25"} if labels is None else {"c": as_numpy(labels)}
    if labels is not None and np.issubdtype(colour["c"].dtype, np.integer):
        colour |= {"cmap": "tab10", "vmin": 0, "vmax": 9}  # label k has matplotlib's colour C{k}, as elsewhere here
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
    _prior_circles(axes)
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    return axes


def image_grid(images: Array, columns: int, title: str = "", axes: Axes | None = None) -> Axes:
    """`(num, channels, height, width)` images in [0, 1], row by row, `columns` to a row; one channel or three."""
    axes, images = axes_or_new(axes), as_numpy(images)
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
    both = np.concatenate((as_numpy(images), as_numpy(reconstructed)))
    return image_grid(both, len(images), title, axes)


def posterior_contours(density: Array, limit: float, codes: Array | None = None, axes: Axes | None = None) -> Axes:
    """Densities of q(z|x) of several data over [-limit, limit]^2 as contours, one colour each, and the prior's circles.

    `density` is `(num_data, size, size)`, rows along z_2 and columns along z_1; `codes`, `(num_data, 2)`, marks each.
    """
    axes, density = axes_or_new(axes), as_numpy(density)
    ticks = np.linspace(-limit, limit, density.shape[-1])
    for index, one in enumerate(density):
        levels = one.max() * np.exp(-0.5 * np.array([2.0, 1.0]) ** 2)  # one and two standard deviations of a Gaussian
        axes.contour(ticks, ticks, one, levels=levels, colors=f"C{index % 10}", linewidths=1)
        if codes is not None:
            axes.plot(*as_numpy(codes)[index], marker=".", color=f"C{index % 10}")
    _prior_circles(axes)
    axes.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return axes


def posterior_ellipses(
    means: Array,
    scales: Array,
    labels: Array | None = None,
    title: str = "posteriors and prior",
    axes: Axes | None = None,
) -> Axes:
    """One-standard-deviation ellipses of diagonal Gaussians, `(num, 2)` means and scales, and the prior's circles."""
    axes, means, scales = axes_or_new(axes), as_numpy(means), as_numpy(scales)
    kinds = np.zeros(len(means), dtype=int) if labels is None else as_numpy(labels)
    for mean, scale, kind in zip(means, scales, kinds, strict=True):
        axes.add_patch(Ellipse(mean, *(2 * scale), fill=False, color=f"C{kind % 10}", linewidth=0.6, alpha=0.7))
    _prior_circles(axes)
    reach = max(2.6, 1.05 * float(np.abs(means).max() + scales.max()))
    axes.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
    return axes


def _prior_circles(axes: Axes) -> None:
    for probability in (0.5, 0.95):
        radius = math.sqrt(-2 * math.log(1 - probability))
        axes.add_patch(Circle((0, 0), radius, fill=False, color="0.6", linewidth=0.8))


def latent_plane(images: Array, limit: float, title: str = "decoded latent plane", axes: Axes | None = None) -> Axes:
    """Images decoded from a regular grid over [-limit, limit]^2 at their places in the plane.

    `images` is `(size, size, channels, height, width)`, its first axis along z_2 upwards and its second along z_1.
    """
    images = as_numpy(images)
    size = images.shape[0]
    axes = image_grid(images[::-1].reshape(-1, *images.shape[2:]), size, title, axes)
    axes.get_images()[0].set_extent((-limit, limit, -limit, limit))
    axes.set_axis_on()
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    return axes


def decoded_lattice(decoded: Array, title: str = "image of the latent lattice", axes: Axes | None = None) -> Axes:
    """The lines of a latent grid as the decoder bends them: `decoded` is `(size, size, 2)` points of the data space."""
    axes, decoded = axes_or_new(axes), as_numpy(decoded)
    for lines in (decoded, decoded.swapaxes(0, 1)):
        for line in lines:
            axes.plot(line[:, 0], line[:, 1], color="C0", linewidth=0.5, alpha=0.7)
    axes.set(aspect="equal", title=title)
    return axes


def traversal(images: Array, names: Sequence[str], title: str = "latent traversals", axes: Axes | None = None) -> Axes:
    """Rows of images along which one latent dimension changes, or along which one datum turns into another.

    `images` is `(rows, steps, channels, height, width)`; `names` labels the rows.
    """
    images = as_numpy(images)
    axes = image_grid(images.reshape(-1, *images.shape[2:]), images.shape[1], title, axes)
    for row, name in enumerate(names):
        axes.text(-2, (row + 0.5) * images.shape[3], name, ha="right", va="center", fontsize="small")
    return axes
