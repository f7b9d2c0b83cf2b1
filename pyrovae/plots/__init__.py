"""Figures: arrays (and Axes) in, Axes out. Nothing here calls a model or saves a file."""

from pyrovae.plots.axes import figure_row
from pyrovae.plots.checks import replicated_statistic
from pyrovae.plots.gradients import against_seconds, against_size
from pyrovae.plots.images import image_grid, latent_plane, reconstructions, traversal
from pyrovae.plots.latents import (
    decoded_lattice,
    latent_space,
    most_active_latents,
    points,
    posterior_contours,
    posterior_ellipses,
    rank_histogram,
)
from pyrovae.plots.log_px import below_the_best, bounds, compared_bounds
from pyrovae.plots.rate_and_distortion import elbo_terms, gaussian_kl, rate_distortion
from pyrovae.plots.slope import Slope, fitted_slope
from pyrovae.plots.tables import column
from pyrovae.plots.training import race_curves, training_curve

__all__ = [
    "figure_row",
    "Slope",
    "fitted_slope",
    "points",
    "column",
    "latent_space",
    "most_active_latents",
    "image_grid",
    "reconstructions",
    "posterior_contours",
    "posterior_ellipses",
    "latent_plane",
    "decoded_lattice",
    "traversal",
    "training_curve",
    "gaussian_kl",
    "rate_distortion",
    "elbo_terms",
    "bounds",
    "compared_bounds",
    "below_the_best",
    "against_size",
    "against_seconds",
    "race_curves",
    "rank_histogram",
    "replicated_statistic",
]
