"""Figures of points and latent codes: scatters, posteriors beside the prior, ranks of calibration."""

import math
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.patches import Circle, Ellipse

from pyrovae.common import require, require_number
from pyrovae.plots.axes import Array, as_numpy, axes_or_new
from pyrovae.plots.shapes import takes_arrays


@takes_arrays(x="(num, 2)", labels="(num,)")
def points(x: Array, labels: Array | None = None, title: str = "", axes: Axes | None = None) -> Axes:
    """Draws a scatter of points in the plane, coloured by label if there are labels.

    Args:
        x: The points, `(num, 2)`.
        labels: The labels, `(num,)`: whole numbers get a colour each, others a colour map; dark grey by default.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes, with equal scales.

    Raises:
        InputError: If x has another shape.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.points(torch.randn(5, 2), torch.tensor([0, 1, 0, 1, 2]), "data", axes)
        >>> tuple(axes.collections[0].get_offsets().shape)
        (5, 2)
    """
    return _scatter(axes_or_new(axes), as_numpy(x), labels, title)


@takes_arrays(z="(num, latents) finite", labels="(num,) finite")
def latent_space(
    z: Array, labels: Array | None = None, title: str = "posterior means", axes: Axes | None = None
) -> Axes:
    """Draws latent codes, with the circles that hold 50% and 95% of a standard normal prior.

    Three latents are drawn in three dimensions, without circles.

    Args:
        z: The codes, `(num, 2)` or `(num, 3)`.
        labels: The labels, `(num,)`, which colour the codes and get a legend; none by default.
        title: The title.
        axes: The axes to draw in; by default those of a new figure. For three latents they must have
            `projection="3d"`.

    Returns:
        The axes.

    Raises:
        InputError: If z has another shape, of which some would not be seen: choose the latents to draw; or if three
            latents are given axes of two dimensions.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.latent_space(torch.randn(5, 2), axes=axes)
        >>> [round(circle.get_radius(), 2) for circle in axes.patches]
        [1.18, 2.45]
        >>> pv.plots.latent_space(torch.randn(5, 3)).get_zlabel()
        '$z_3$'
    """
    z = as_numpy(z)
    few = z.shape[1] in (2, 3)
    require(few, f"z must have shape (num, 2) or (num, 3), the latents to draw, got {z.shape}")
    solid = z.shape[1] == 3
    axes = axes_or_new(axes, "3d" if solid else None)
    require(not solid or axes.name == "3d", 'axes must have projection="3d" for three latents')
    axes = _scatter(axes, z, labels, title)
    if labels is not None:
        scattered = cast(PathCollection, axes.collections[-1])
        whole = np.issubdtype(as_numpy(labels).dtype, np.integer)
        of_each: Any = None if whole else "auto"  # an entry for each label, or for a few values of a colour map
        handles, names = scattered.legend_elements(num=of_each)
        place = (1.04 if solid else 1.0, 0.5)  # beside the label of the third axis
        axes.legend(handles, names, loc="center left", bbox_to_anchor=place, frameon=False, handletextpad=0.0)
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    if solid:
        reach = max(2.5, 1.05 * float(np.abs(z).max()))  # a cube in which a latent that has collapsed looks flat
        axes.set(zlabel="$z_3$", **dict.fromkeys(("xlim", "ylim", "zlim"), (-reach, reach)))
        axes.set_aspect("equal")  # which goes by the limits that there are
        axes.locator_params(nbins=5)
    else:
        _draw_prior_circles(axes)
    return axes


def _scatter(axes: Axes, x: np.ndarray, labels: Array | None, title: str) -> Axes:
    """Draws points of as many dimensions as the axes have, coloured by label."""
    kinds = None if labels is None else as_numpy(labels)
    colour: dict[str, Any] = {"color": "0.25"} if kinds is None else {"c": kinds}
    if kinds is not None and np.issubdtype(kinds.dtype, np.integer):
        colour |= {"cmap": "tab10", "vmin": 0, "vmax": 9}  # label k has matplotlib's colour C{k}, as in other figures
    draw: Any = axes.scatter  # which takes a third coordinate where the axes have one
    draw(*x.T, **colour, s=3, alpha=0.6, linewidths=0, rasterized=True)
    axes.set_aspect("equal")
    axes.set_title(title)
    return axes


@takes_arrays(means="(num, latents) finite", labels="(num,) finite")
def most_active_latents(
    means: Array, labels: Array | None = None, title: str = "posterior means", axes: Axes | None = None
) -> Axes:
    """Draws the two latents whose posterior means vary most, the first of them across and the other up.

    The axes name them, and of more than two latents the title says that they are the most active.

    Args:
        means: The posterior means, `(num, latent_dim)`.
        labels: The labels, `(num,)`, which colour the codes and get a legend; none by default.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        InputError: If there is only one latent.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> means = torch.randn(50, 4) * torch.tensor([0.1, 0.8, 0.1, 1.0])
        >>> axes = pv.plots.most_active_latents(means, axes=axes)
        >>> axes.get_xlabel(), axes.get_ylabel()
        ('$z_{2}$', '$z_{4}$')

    Source:
        Yuri Burda et al. 2016, Importance Weighted Autoencoders, arXiv:1509.00519, for the variance of the means.
    """
    means = as_numpy(means)
    num = means.shape[1]
    require(num > 1, "means must be of two latents or more, got 1")
    across, up = sorted(np.argsort(-means.var(0), kind="stable")[:2].tolist())
    said = title if num == 2 else f"{title}\nthe two most active of {num} latents"
    axes = latent_space(means[:, [across, up]], labels, said, axes)
    axes.set(xlabel=f"$z_{{{across + 1}}}$", ylabel=f"$z_{{{up + 1}}}$")
    return axes


@takes_arrays(density="(num, size, size) finite", limit="() finite", codes="(num, 2)")
def posterior_contours(density: Array, limit: float, codes: Array | None = None, axes: Axes | None = None) -> Axes:
    """Draws the densities q(z|x) of several data as contours, one colour each, and the circles of the prior.

    The contours of a Gaussian are those at one and two standard deviations.

    Args:
        density: The densities on a grid over [-limit, limit]^2, `(num_data, size, size)`, with rows along z_2 and
            columns along z_1.
        limit: The end of the grid.
        codes: A point to mark for each datum, `(num_data, 2)`; none by default.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> z = torch.linspace(-3, 3, 50)
        >>> density = torch.exp(-0.5 * (z[:, None] ** 2 + z**2))[None]
        >>> axes = pv.plots.posterior_contours(density, 3.0, axes=axes)
        >>> len(axes.patches)
        2
    """
    require_number("limit", limit, above=0)
    density = as_numpy(density)
    size, largest = density.shape[-1], density.max((1, 2))
    require(size > 1, f"density must be on a grid of 2 x 2 or more, got {size} x {size}")
    require(bool((largest > 0).all()), f"density must be > 0 somewhere for each datum, got {largest.min():g} at most")
    axes = axes_or_new(axes)
    ticks = np.linspace(-limit, limit, density.shape[-1])
    for index, one in enumerate(density):
        levels = one.max() * np.exp(-0.5 * np.array([2.0, 1.0]) ** 2)  # one and two standard deviations of a Gaussian
        axes.contour(ticks, ticks, one, levels=levels, colors=f"C{index % 10}", linewidths=1)
        if codes is not None:
            axes.plot(*as_numpy(codes)[index], marker=".", color=f"C{index % 10}")
    _draw_prior_circles(axes)
    axes.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return axes


@takes_arrays(means="(num, 2) finite", scales="(num, 2) finite", labels="(num,)")
def posterior_ellipses(
    means: Array,
    scales: Array,
    labels: Array | None = None,
    title: str = "posteriors and prior",
    axes: Axes | None = None,
) -> Axes:
    """Draws diagonal Gaussians as ellipses of one standard deviation, and the circles of the prior.

    Args:
        means: The means, `(num, 2)`.
        scales: The standard deviations, `(num, 2)`.
        labels: Whole numbers that colour the ellipses, `(num,)`; one colour by default.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.posterior_ellipses(torch.zeros(3, 2), torch.ones(3, 2), axes=axes)
        >>> len(axes.patches)
        5
    """
    means, scales = as_numpy(means), as_numpy(scales)
    kinds = np.zeros(len(means), dtype=int) if labels is None else as_numpy(labels)
    require(kinds.dtype.kind in "iu", f"labels must be whole numbers, got {kinds.dtype}")
    axes = axes_or_new(axes)
    for mean, scale, kind in zip(means, scales, kinds, strict=True):
        axes.add_patch(Ellipse(mean, *(2 * scale), fill=False, color=f"C{kind % 10}", linewidth=0.6, alpha=0.7))
    _draw_prior_circles(axes)
    reach = max(2.6, 1.05 * float(np.abs(means).max() + scales.max()))
    axes.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=title)
    return axes


@takes_arrays(decoded="(size, size, 2)")
def decoded_lattice(decoded: Array, title: str = "image of the latent lattice", axes: Axes | None = None) -> Axes:
    """Draws the lines of a latent grid as the decoder bends them, in colours that say where in the grid they come from.

    The hue is the direction from the grid's middle, which is grey. The grid itself, drawn in the same way, is the key.

    Args:
        decoded: The decoded points of the grid in a data space of two dimensions, `(size, size, 2)`, with rows along
            z_2 and columns along z_1.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes, with equal scales.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.decoded_lattice(torch.randn(4, 4, 2), axes=axes)
        >>> len(axes.collections[0].get_segments())  # three for each of eight lines
        24
    """
    decoded = as_numpy(decoded)
    require(len(decoded) > 1, "decoded must be of a grid of 2 x 2 or more, got 1 x 1")
    axes = axes_or_new(axes)
    ticks = np.linspace(-1, 1, len(decoded))
    place = np.stack(np.meshgrid(ticks, ticks), -1)
    ends = [(of[:, :-1], of[:, 1:]) for of in (decoded, decoded.swapaxes(0, 1))]
    middles = [(of[:, :-1] + of[:, 1:]) / 2 for of in (place, place.swapaxes(0, 1))]
    segments = np.concatenate([np.stack(pair, 2).reshape(-1, 2, 2) for pair in ends])
    z = np.concatenate([middle.reshape(-1, 2) for middle in middles])
    axes.add_collection(LineCollection(list(segments), colors=_colours_of_places(z), linewidths=0.7))
    axes.autoscale_view()
    axes.set(aspect="equal", title=title)
    return axes


@takes_arrays(counts="(num_bins,) finite")
def rank_histogram(counts: Array, title: str = "", axes: Axes | None = None) -> Axes:
    """Draws ranks of simulation-based calibration, with the mean and the 99% band of each bin if they are uniform.

    Args:
        counts: The number of ranks in each bin, `(num_bins,)`.
        title: The title.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.rank_histogram(torch.tensor([30, 50, 40]), "z", axes)
        >>> axes.lines[0].get_ydata()[0]
        40.0

    Source:
        Sean Talts et al. 2018, Validating Bayesian Inference Algorithms with Simulation-Based Calibration,
        arXiv:1804.06788.
    """
    counts = as_numpy(counts)
    require(bool((counts >= 0).all()) and counts.sum() > 0, "counts must be >= 0, and not all 0")
    axes = axes_or_new(axes)
    num, share = int(counts.sum()), 1 / len(counts)
    mean, deviation = num * share, math.sqrt(num * share * (1 - share))  # of a binomial count, which is near normal
    band = (mean - 2.576 * deviation, mean + 2.576 * deviation)
    axes.axhspan(*band, color="0.85", linewidth=0, label="99% of each bin, if uniform")
    axes.axhline(mean, color="0.6", linewidth=1)
    axes.bar((np.arange(len(counts)) + 0.5) * share, counts, width=0.9 * share, color="C0")
    axes.set(xlabel="rank of the latent among the guide's draws", ylabel="data", xlim=(0, 1), title=title)
    axes.legend(frameon=False, fontsize="small")
    return axes


def _colours_of_places(z: np.ndarray) -> np.ndarray:
    """Returns a colour for each place in [-1, 1]^2, `(num, 2)`: its direction as the hue, more vivid farther out."""
    hue = np.arctan2(z[:, 1], z[:, 0]) / (2 * math.pi) % 1.0
    vivid = np.clip(np.hypot(z[:, 0], z[:, 1]), 0, 1)
    return hsv_to_rgb(np.stack((hue, vivid, 0.55 + 0.3 * vivid), 1))


def _draw_prior_circles(axes: Axes) -> None:
    for probability in (0.5, 0.95):
        radius = math.sqrt(-2 * math.log(1 - probability))
        axes.add_patch(Circle((0, 0), radius, fill=False, color="0.6", linewidth=0.8))
