"""Figures: arrays (and Axes) in, Axes out. Nothing here calls a model or saves a file."""

from pyrovae.plots.axes import figure_row
from pyrovae.plots.estimators import (
    against_seconds,
    against_size,
    below_the_best,
    bounds,
    compared_bounds,
    race_curves,
    rank_histogram,
)
from pyrovae.plots.images import (
    decoded_lattice,
    image_grid,
    latent_plane,
    latent_space,
    points,
    posterior_contours,
    posterior_ellipses,
    reconstructions,
    traversal,
)
from pyrovae.plots.slope import fitted_slope
from pyrovae.plots.terms import elbo_terms, gaussian_kl, rate_distortion, training_curve

__all__ = [
    "figure_row",
    "fitted_slope",
    "points",
    "latent_space",
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
]
