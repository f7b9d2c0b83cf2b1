"""The figure of one model's evaluation: bounds against samples, and methods against their seconds."""

import math
from collections.abc import Mapping

from matplotlib.figure import Figure

import pyrovae.plots as plots
from pyrovae.evaluation.estimate import Estimate, MarginalLikelihood


def draw_estimates(measured: Mapping[str, tuple[Estimate, float]]) -> Figure:
    """Draws the bounds L_K against K and, if there are several methods, what each is below the best in its seconds.

    The bounds are those of the importance sampling with the most samples; without any, those of the methods "elbo",
    which is L_1, and "iwae_K".

    Args:
        measured: the estimate of each method and its seconds, by the name of the method.
    """
    estimates = {method: estimate for method, (estimate, _) in measured.items()}
    sampled = [estimate for estimate in estimates.values() if isinstance(estimate, MarginalLikelihood)]
    if sampled:
        largest = max(sampled, key=lambda estimate: estimate.num_samples)
        points: list[tuple[int, float, float]] = largest.mean_bounds
    else:
        bounds = {method: estimate for method, estimate in estimates.items() if not method.startswith("ais_")}
        points = sorted(
            (int(method.removeprefix("iwae_").replace("elbo", "1")), estimate.mean, estimate.monte_carlo_error)
            for method, estimate in bounds.items()
        )
    sizes, values, errors = zip(*points, strict=True) if points else ((), (), ())
    annealed = {
        method: (estimate.mean, estimate.monte_carlo_error)
        for method, estimate in estimates.items()
        if method.startswith("ais_")
    }
    # One weight of 0 makes the ELBO -inf, which has no place in a figure.
    below = {
        method: (seconds, estimate.mean, estimate.monte_carlo_error)
        for method, (estimate, seconds) in measured.items()
        if math.isfinite(estimate.mean)
    }
    figure, axes = plots.figure_row(1 + (len(below) > 1), width=4.5)
    plots.bounds(sizes, values, errors, annealed, axes[0])
    if len(below) > 1:
        plots.below_the_best(below, axes[1])
    return figure
