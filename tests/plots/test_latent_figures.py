"""Figures of points, latent codes and ranks."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
from drawn import AS_ARRAY_OR_TENSOR, LABELS, POINTS, random
from helpers import assert_within_standard_errors, refusal
from matplotlib.colors import to_rgba

from pyrovae import plots


@AS_ARRAY_OR_TENSOR
def test_ranks_are_drawn_with_the_band_of_uniform_ones(given, axes):
    counts = np.array([30, 50, 40, 40])
    plots.rank_histogram(given(counts), "z 1", axes)
    bars = [patch for patch in axes.patches if patch.get_height() in counts and patch.get_width() < 0.3]
    assert [bar.get_height() for bar in bars] == counts.tolist()
    assert [bar.get_center()[0] for bar in bars] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    exact = scipy.stats.binom(160, 0.25)
    assert exact.cdf(band.y1) - exact.cdf(band.y0) == pytest.approx(0.99, abs=0.005)
    assert axes.lines[0].get_ydata() == pytest.approx([40, 40])


@AS_ARRAY_OR_TENSOR
@pytest.mark.parametrize("draw", [plots.points, plots.latent_space])
def test_a_scatter_has_the_points_on_equal_axes(given, draw, axes):
    draw(given(POINTS), title="the points", axes=axes)
    (scatter,) = axes.collections
    assert np.array_equal(scatter.get_offsets(), POINTS)
    assert axes.get_aspect() == 1.0
    assert axes.get_title() == "the points"


@AS_ARRAY_OR_TENSOR
@pytest.mark.parametrize("draw", [plots.points, plots.latent_space])
def test_each_label_has_a_colour_of_its_own(given, draw, axes):
    draw(given(POINTS), given(LABELS), axes=axes)
    axes.figure.draw_without_rendering()
    colours = [tuple(colour) for colour in axes.collections[0].get_facecolors()]
    assert len(colours) == len(POINTS)
    by_label = {label: {c for c, of in zip(colours, LABELS, strict=True) if of == label} for label in range(4)}
    assert all(len(found) == 1 for found in by_label.values())
    assert len(set.union(*by_label.values())) == 4


@pytest.mark.parametrize("draw", [plots.points, plots.latent_space])
def test_points_without_labels_are_dark_grey(draw, axes):
    draw(POINTS, axes=axes)
    axes.figure.draw_without_rendering()
    assert {tuple(colour) for colour in axes.collections[0].get_facecolors()} == {to_rgba("0.25", 0.6)}


def test_ten_labels_have_the_ten_colours_in_order(axes):
    plots.points(random(10, 2), np.arange(10), axes=axes)
    axes.figure.draw_without_rendering()
    assert np.allclose(axes.collections[0].get_facecolors()[:, :3], plt.get_cmap("tab10").colors)


def test_the_legend_of_the_latent_space_has_the_colours_of_the_labels(axes):
    plots.latent_space(POINTS, np.array([2, 5, 7] * 4), axes=axes)
    axes.figure.draw_without_rendering()
    legend = axes.get_legend()
    assert ["".join(c for c in text.get_text() if c.isdigit()) for text in legend.get_texts()] == ["2", "5", "7"]
    shown = [to_rgba(handle.get_markerfacecolor())[:3] for handle in legend.legend_handles]
    assert np.allclose(shown, axes.collections[0].get_facecolors()[:3, :3])


def test_the_circles_of_the_latent_space_hold_50_and_95_percent_of_the_prior(axes):
    plots.latent_space(POINTS, axes=axes)
    radii = sorted(circle.get_radius() for circle in axes.patches)
    assert radii == pytest.approx(np.sqrt(scipy.stats.chi2.ppf([0.5, 0.95], df=2)), rel=1e-12)
    for circle in axes.patches:
        assert circle.get_center() == (0, 0)
        assert not circle.get_fill()
    z = torch.randn(40_000, 2, dtype=torch.float64)
    for radius, share in zip(radii, (0.5, 0.95), strict=True):
        inside = (z.norm(dim=-1) < radius).double().mean()
        assert_within_standard_errors(inside, share, math.sqrt(share * (1 - share) / 40_000))


def test_the_circles_are_in_view_if_the_posterior_has_collapsed(axes):
    plots.latent_space(POINTS * 1e-3, axes=axes)
    axes.figure.draw_without_rendering()
    assert axes.get_xlim()[0] < -2.44
    assert axes.get_xlim()[1] > 2.44
    assert axes.get_ylim()[0] < -2.44
    assert axes.get_ylim()[1] > 2.44


def test_three_latents_are_drawn_in_three_dimensions_and_none_is_dropped():
    z = torch.randn(12, 3)
    axes = plots.latent_space(z, torch.arange(12) % 2)
    drawn = np.stack(axes.collections[0]._offsets3d)
    np.testing.assert_allclose(np.sort(drawn, 1), np.sort(z.numpy().T, 1))
    assert [axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel()] == ["$z_1$", "$z_2$", "$z_3$"]
    assert axes.get_xlim() == axes.get_ylim() == axes.get_zlim()
    assert len(axes.get_legend().get_texts()) == 2
    assert not axes.patches
    plt.close(axes.figure)


def test_coordinates_that_would_not_be_seen_are_refused(axes):
    rule = "z must have shape (num, 2) or (num, 3), the latents to draw, got "
    assert refusal(plots.latent_space, torch.zeros(5, 4), axes=axes) == rule + "(5, 4)"
    flat = 'axes must have projection="3d" for three latents'
    assert refusal(plots.latent_space, torch.zeros(5, 3), axes=axes) == flat
    said = "x must have shape (num, 2), got (5, 3)"
    assert refusal(plots.points, torch.zeros(5, 3), axes=axes) == said
