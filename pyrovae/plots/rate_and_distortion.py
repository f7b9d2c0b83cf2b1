"""Figures of the terms of the ELBO: the KL, and rate against distortion."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from pyrovae.common import require
from pyrovae.plots.axes import axes_or_new
from pyrovae.plots.shapes import takes_arrays


@takes_arrays()
def gaussian_kl(axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draws KL(N(mu, sigma^2) || N(0, 1)) against mu (at sigma = 1) and against log sigma^2 (at mu = 0).

        KL = (mu^2 + sigma^2 - 1 - log sigma^2) / 2

    Args:
        axes: Two axes to draw in; by default those of a new figure.

    Returns:
        The two axes.

    Example:
        >>> _, axes = pv.plots.figure_row(2)
        >>> left, right = pv.plots.gaussian_kl(axes)
        >>> right.get_xlabel()
        '$\\\\log\\\\sigma^2$'
    """
    axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")[1] if axes is None else axes
    mean, log_variance = np.linspace(-3, 3, 200), np.linspace(-4, 3, 200)
    axes[0].plot(mean, 0.5 * mean**2)
    axes[0].set(xlabel=r"$\mu$", ylabel="KL, nats")
    axes[1].plot(log_variance, 0.5 * (np.exp(log_variance) - 1 - log_variance))
    axes[1].set(xlabel=r"$\log\sigma^2$", ylabel="KL, nats")
    return axes


@takes_arrays(rate="(num,)", distortion="(num,)", betas="(num,)")
def rate_distortion(
    rate: Sequence[float], distortion: Sequence[float], betas: Sequence[float], axes: Axes | None = None
) -> Axes:
    """Draws the distortion -E[log p(x|z)] against the rate E[KL], a point for each beta.

        ELBO = -(rate + distortion)

    Args:
        rate: The rates in nats per datum, `(num_betas,)`.
        distortion: The distortions in nats per datum, `(num_betas,)`.
        betas: The weights of the KL in training, `(num_betas,)`, which label the points.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.rate_distortion([5.0, 2.0], [80.0, 90.0], [0.5, 4.0], axes)
        >>> [text.get_text() for text in axes.texts]
        ['$\\\\beta$ = 0.5', '$\\\\beta$ = 4']

    Source:
        Alexander Alemi et al. 2018, Fixing a Broken ELBO, arXiv:1711.00464.
    """
    axes = axes_or_new(axes)
    axes.plot(rate, distortion, marker="o")
    for x, y, beta in zip(rate, distortion, betas, strict=True):
        axes.annotate(rf"$\beta$ = {beta:g}", (x, y), textcoords="offset points", xytext=(6, 4), fontsize="small")
    axes.margins(0.15)
    axes.autoscale(axis="x")  # as an earlier figure that shares this axis has set its limits
    left, right = axes.get_xlim()
    axes.set_xlim(right=right + 0.2 * (right - left))  # room for the labels, which stand to the right of their points
    axes.set(xlabel="rate, KL, nats", ylabel="distortion, $-E_q[\\log p(x|z)]$, nats")
    return axes


@takes_arrays(values="(num,)", terms=["(num,)"])
def elbo_terms(
    values: Sequence[float],
    terms: Mapping[str, Sequence[float]],
    xlabel: str,
    log_x: bool = True,
    axes: Axes | None = None,
) -> Axes:
    """Draws named terms of the ELBO against a setting of the model, such as beta or the variance of the decoder.

    Args:
        values: The values of the setting, `(num_values,)`.
        terms: The terms by name in nats per datum, each `(num_values,)`.
        xlabel: The label of the x axis, which names the setting.
        log_x: If True, the x axis is logarithmic.
        axes: The axes to draw in; by default those of a new figure.

    Returns:
        The axes.

    Example:
        >>> _, (axes,) = pv.plots.figure_row(1)
        >>> axes = pv.plots.elbo_terms([0.1, 1.0], {"ELBO": [-3.0, -2.0], "KL": [2.0, 1.0]}, "beta", axes=axes)
        >>> [text.get_text() for text in axes.get_legend().get_texts()], axes.get_xscale()
        (['ELBO', 'KL'], 'log')
    """
    require(not log_x or min(values) > 0, f"values must be > 0 on a log axis, got {min(values):g}")
    axes = axes_or_new(axes)
    for name, term in terms.items():
        axes.plot(values, term, marker="o", label=name)
    axes.set(xlabel=xlabel, ylabel="nats per datum", xscale="log" if log_x else "linear")
    axes.legend(frameon=False)
    return axes
