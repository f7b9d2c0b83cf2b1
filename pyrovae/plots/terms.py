"""A training, and the ELBO's terms against each other."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from pyrovae.plots.axes import as_numpy, axes_or_new


def training_curve(
    epochs: Sequence[float], curves: Mapping[str, Sequence[float]], ylabel: str, axes: Axes | None = None
) -> Axes:
    """Each named curve against the epoch. The view leaves out the first epochs' plunge: it is set by the later 80%."""
    axes = axes_or_new(axes)
    for name, values in curves.items():
        axes.plot(epochs, values, label=name)
    settled = np.concatenate([as_numpy(values)[len(epochs) // 5 :] for values in curves.values()])
    margin = 0.1 * (np.ptp(settled) or 1.0)
    axes.set(xlabel="epoch", ylabel=ylabel, ylim=(settled.min() - margin, settled.max() + margin))
    if len(curves) > 1:
        axes.legend(frameon=False)
    return axes


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
    axes = axes_or_new(axes)
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
    axes = axes_or_new(axes)
    for name, term in terms.items():
        axes.plot(values, term, marker="o", label=name)
    axes.set(xlabel=xlabel, ylabel="nats per datum", xscale="log" if log_x else "linear")
    axes.legend(frameon=False)
    return axes
