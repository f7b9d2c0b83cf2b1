"""Figures: arrays (and Axes) in, Axes out. Nothing here calls a model or saves a file."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.patches import Circle, Ellipse
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from torch import Tensor

from pyrovae.moments import fitted_slope

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
    colour = {"color": "0.25"} if labels is None else {"c": _numpy(labels)}
    if labels is not None and np.issubdtype(colour["c"].dtype, np.integer):
        colour |= {"cmap": "tab10", "vmin": 0, "vmax": 9}  # label k has matplotlib's colour C{k}, as elsewhere here
    axes.scatter(x[:, 0], x[:, 1], **colour, s=3, alpha=0.6, linewidths=0, rasterized=True)
    axes.set_aspect("equal")
    axes.set_title(title)
    return axes


def bounds(
    sizes: Sequence[int],
    values: Array,
    errors: Array,
    others: Mapping[str, tuple[float, float]] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """L_K with twice its standard error against K = `sizes`, and other estimates `(value, error)` as bands across."""
    axes = _axes(axes)
    _bound(axes, sizes, values, errors, "$L_K$", "black")
    for index, (name, (value, error)) in enumerate((others or {}).items()):
        _across(axes, value, error, name, f"C{index}")
    return _of_bounds(axes)


def compared_bounds(
    curves: Mapping[str, tuple[Sequence[int], Array, Array]],
    log_px: tuple[float, float],
    colors: Mapping[str, str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Of each objective its bound against K, `(sizes, values, errors)`, below log p(x) = `(value, error)` across.

    With twice the standard errors, nats per datum.
    """
    axes = _axes(axes)
    for (name, (sizes, values, errors)), color in zip(curves.items(), _colors(curves, colors), strict=True):
        _bound(axes, sizes, values, errors, name, color)
    _across(axes, *log_px, "log p(x)", "black")
    _of_bounds(axes)
    _sizes(axes, [sizes for sizes, *_ in curves.values()])
    _legend_below(axes, columns=2)
    return axes


def _bound(axes: Axes, sizes: Sequence[int], values: Array, errors: Array, label: str, color: str) -> None:
    values, errors = _numpy(values), np.nan_to_num(_numpy(errors))
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
    axes = _axes(axes)
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


# name -> (K or seconds, values, and the floors below which a value is nothing but noise; None of what has no floor)
Curves = Mapping[str, tuple[Sequence[float], Array, Array | None]]


def against_size(
    curves: Curves,
    theory: Mapping[str, float] | None = None,
    xlabel: str = "K, samples per datum",
    ylabel: str = "signal-to-noise ratio",
    colors: Mapping[str, str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Each objective's signal-to-noise ratio, or bias, against K, its floor dotted; `Comparison.curves` has them.

    In the legend the slope that `moments.fitted_slope` finds (its standard error in brackets), beside that of
    `theory` where it names the objective. It is fitted to the filled points alone: those more than three times their
    floor, of these the ones within a factor of 16 of the largest K.
    """
    axes = _axes(axes)
    for (name, (sizes, values, floors)), color in zip(curves.items(), _colors(curves, colors), strict=True):
        slope = fitted_slope(sizes, _numpy(values).tolist(), _numpy(floors).tolist())
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
    points that are not twice theirs hollow: no bias was seen there.
    """
    axes = _axes(axes)
    ends = []
    for (name, (seconds, values, floors)), color in zip(curves.items(), _colors(curves, colors), strict=True):
        values = _numpy(values)
        seen = np.full(len(values), True) if floors is None else values > 2 * _numpy(floors)
        _above_floor(axes, seconds, values, floors, seen, name, color)
        last = int(np.argmax(seconds))
        ends.append((float(values[last]), seconds[last], name, color))
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
    values, faces = _numpy(values), [color if one else "white" for one in filled]
    axes.plot(x, values, color=color, linewidth=1, label=label)
    axes.scatter(x, values, s=16, facecolors=faces, edgecolors=color, zorder=3)
    if floors is not None:
        axes.plot(x, _numpy(floors), color=color, linewidth=1, linestyle=":")


def race_curves(curves: Mapping[str, tuple[Array, Array]], xlabel: str = "epochs", axes: Axes | None = None) -> Axes:
    """log p(x) along trainings: `(points,)` of epochs or seconds and `(seeds, points)` of nats for each objective.

    A thick line is the mean over seeds, thin ones are the seeds. The view is set by the later half of the points.
    """
    axes, settled = _axes(axes), []
    for index, (name, (x, values)) in enumerate(curves.items()):
        x, values = _numpy(x), _numpy(values)
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
    axes, counts = _axes(axes), _numpy(counts)
    num, share = int(counts.sum()), 1 / len(counts)
    mean, deviation = num * share, math.sqrt(num * share * (1 - share))  # of a binomial count, near normal
    band = (mean - 2.576 * deviation, mean + 2.576 * deviation)
    axes.axhspan(*band, color="0.85", linewidth=0, label="99% of each bin, if uniform")
    axes.axhline(mean, color="0.6", linewidth=1)
    axes.bar((np.arange(len(counts)) + 0.5) * share, counts, width=0.9 * share, color="C0")
    axes.set(xlabel="rank of the latent among the guide's draws", ylabel="data", xlim=(0, 1), title=title)
    axes.legend(frameon=False, fontsize="small")
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


# The latent space of two dimensions ---------------------------------------------------------------------------------


def posterior_contours(density: Array, limit: float, codes: Array | None = None, axes: Axes | None = None) -> Axes:
    """Densities of q(z|x) of several data over [-limit, limit]^2 as contours, one colour each, and the prior's circles.

    `density` is `(num_data, size, size)`, rows along z_2 and columns along z_1; `codes`, `(num_data, 2)`, marks each.
    """
    axes, density = _axes(axes), _numpy(density)
    ticks = np.linspace(-limit, limit, density.shape[-1])
    for index, one in enumerate(density):
        levels = one.max() * np.exp(-0.5 * np.array([2.0, 1.0]) ** 2)  # one and two standard deviations of a Gaussian
        axes.contour(ticks, ticks, one, levels=levels, colors=f"C{index % 10}", linewidths=1)
        if codes is not None:
            axes.plot(*_numpy(codes)[index], marker=".", color=f"C{index % 10}")
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
    axes, means, scales = _axes(axes), _numpy(means), _numpy(scales)
    kinds = np.zeros(len(means), dtype=int) if labels is None else _numpy(labels)
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
    images = _numpy(images)
    size = images.shape[0]
    axes = image_grid(images[::-1].reshape(-1, *images.shape[2:]), size, title, axes)
    axes.get_images()[0].set_extent((-limit, limit, -limit, limit))
    axes.set_axis_on()
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    return axes


def decoded_lattice(decoded: Array, title: str = "image of the latent lattice", axes: Axes | None = None) -> Axes:
    """The lines of a latent grid as the decoder bends them: `decoded` is `(size, size, 2)` points of the data space."""
    axes, decoded = _axes(axes), _numpy(decoded)
    for lines in (decoded, decoded.swapaxes(0, 1)):
        for line in lines:
            axes.plot(line[:, 0], line[:, 1], color="C0", linewidth=0.5, alpha=0.7)
    axes.set(aspect="equal", title=title)
    return axes


def traversal(images: Array, names: Sequence[str], title: str = "latent traversals", axes: Axes | None = None) -> Axes:
    """Rows of images along which one latent dimension changes, or along which one datum turns into another.

    `images` is `(rows, steps, channels, height, width)`; `names` labels the rows.
    """
    images = _numpy(images)
    axes = image_grid(images.reshape(-1, *images.shape[2:]), images.shape[1], title, axes)
    for row, name in enumerate(names):
        axes.text(-2, (row + 0.5) * images.shape[3], name, ha="right", va="center", fontsize="small")
    return axes


# Quantities against quantities --------------------------------------------------------------------------------------


def gaussian_kl(axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """KL(N(mu, sigma^2) || N(0, 1)) against mu (at sigma = 1) and against log sigma^2 (at mu = 0), two Axes."""
    axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")[1] if axes is None else axes
    mean, log_variance = np.linspace(-3, 3, 200), np.linspace(-4, 3, 200)
    axes[0].plot(mean, 0.5 * mean**2)
    axes[0].set(xlabel=r"$\mu$", ylabel="KL, nats")
    axes[1].plot(log_variance, 0.5 * (np.exp(log_variance) - 1 - log_variance))
    axes[1].set(xlabel=r"$\log\sigma^2$", ylabel="KL, nats")
    return axes


def rate_distortion(
    rate: Sequence[float], distortion: Sequence[float], betas: Sequence[float], axes: Axes | None = None
) -> Axes:
    """Distortion -E[log p(x|z)] against rate E[KL], nats per datum, a point per beta. The ELBO is minus their sum."""
    axes = _axes(axes)
    axes.plot(rate, distortion, marker="o")
    for x, y, beta in zip(rate, distortion, betas, strict=True):
        axes.annotate(rf"$\beta$ = {beta:g}", (x, y), textcoords="offset points", xytext=(6, 4), fontsize="small")
    axes.margins(0.15)  # room for the labels
    axes.set(xlabel="rate, KL, nats", ylabel="distortion, $-E_q[\\log p(x|z)]$, nats")
    return axes


def elbo_terms(
    values: Sequence[float],
    terms: Mapping[str, Sequence[float]],
    xlabel: str,
    log_x: bool = True,
    axes: Axes | None = None,
) -> Axes:
    """Each named term, nats per datum, against a setting of the model: beta, or the decoder's variance."""
    axes = _axes(axes)
    for name, term in terms.items():
        axes.plot(values, term, marker="o", label=name)
    axes.set(xlabel=xlabel, ylabel="nats per datum", xscale="log" if log_x else "linear")
    axes.legend(frameon=False)
    return axes
