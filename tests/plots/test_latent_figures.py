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


def test_two_latents_are_drawn_in_their_order(axes):
    means = random(12, 2) * [0.1, 3.0]  # the second varies more
    plots.most_active_latents(means, LABELS, "means", axes)
    assert np.array_equal(axes.collections[0].get_offsets(), means)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("$z_{1}$", "$z_{2}$", "means")


@AS_ARRAY_OR_TENSOR
def test_of_more_latents_the_two_most_active_are_drawn_and_named(given, axes):
    means = random(12, 5) * [1.0, 3.0, 0.1, 2.0, 0.5]
    means[:, 2] += 100  # far from 0, and still the least active
    plots.most_active_latents(given(means), title="means", axes=axes)
    assert np.array_equal(axes.collections[0].get_offsets(), means[:, [1, 3]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_{2}$", "$z_{4}$")
    assert axes.get_title() == "means\nthe two most active of 5 latents"


def test_the_legend_of_a_label_that_is_no_whole_number_is_short(axes):
    plots.latent_space(random(500, 2), random(500), axes=axes)
    assert 3 <= len(axes.get_legend().get_texts()) <= 10


def test_a_lattice_has_the_lines_of_its_grid_in_the_colours_of_their_places(axes):
    ticks = np.linspace(-2, 2, 5)
    grid = np.stack(np.meshgrid(ticks, ticks), -1)
    bent = grid[..., ::-1] ** 3
    drawn = [plots.decoded_lattice(one, axes=axes).collections[-1] for one in (grid, bent)]
    lines, bent_lines = (np.array(one.get_segments()) for one in drawn)
    assert len({tuple(map(tuple, line)) for line in lines}) == 2 * 5 * 4
    assert np.allclose(np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1), 1.0)  # neighbours are joined, and no others
    assert np.array_equal(bent_lines, lines[..., ::-1] ** 3)
    colours = drawn[0].get_colors()[:, :3]
    assert np.array_equal(drawn[1].get_colors()[:, :3], colours)
    (right,) = np.flatnonzero(np.isclose(lines.mean(1), [1.5, 0.0]).all(1))
    (left,) = np.flatnonzero(np.isclose(lines.mean(1), [-1.5, 0.0]).all(1))
    assert np.argmax(colours[right]) == 0  # red is to the right
    assert np.argmin(colours[left]) == 0
    x0, x1 = axes.get_xlim()
    assert x0 < -8 < 8 < x1


def test_a_lattice_of_one_point_has_no_lines():
    assert refusal(plots.decoded_lattice, POINTS[:1, None]) == "decoded must be of a grid of 2 x 2 or more, got 1 x 1"


def test_one_latent_is_not_drawn_as_two():
    rule = "means must be of two latents or more, got 1"
    assert refusal(plots.most_active_latents, POINTS[:, :1]) == rule
