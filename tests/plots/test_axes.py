"""Every figure is drawn in the axes that it is given, or in those of one new figure."""

import inspect
import math
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from drawn import LABELS, POINTS, random
from helpers import refusal

import pyrovae as pv
from pyrovae import plots

DRAW = {
    "training_curve": lambda axes: plots.training_curve([1, 2, 3], {"a": [1.0, 2.0, 3.0]}, "nats", axes=axes),
    "bounds": lambda axes: plots.bounds([1, 10], [-2.0, -1.5], [0.1, math.nan], {"ais": (-1.4, 0.1)}, axes),
    "compared_bounds": lambda axes: plots.compared_bounds(
        {"a": ([1, 2], [-2.0, -1.5], [0.1, 0.1])}, (-1.0, 0.1), axes=axes
    ),
    "against_size": lambda axes: plots.against_size({"a": ([1, 2], [3.0, 2.0], [0.1, 0.1])}, axes=axes),
    "against_seconds": lambda axes: plots.against_seconds({"a": ([0.1, 0.2], [3.0, 2.0], None)}, "variance", axes=axes),
    "below_the_best": lambda axes: plots.below_the_best({"a": (1.0, -2.0, 0.1), "b": (2.0, -1.0, 0.1)}, axes),
    "rank_histogram": lambda axes: plots.rank_histogram(np.array([3, 5, 4]), "z", axes),
    "replicated_statistic": lambda axes: plots.replicated_statistic(POINTS[:, 0], 3.0, axes=axes),
    "points": lambda axes: plots.points(POINTS, axes=axes),
    "points with labels": lambda axes: plots.points(POINTS, LABELS, axes=axes),
    "latent_space": lambda axes: plots.latent_space(POINTS, axes=axes),
    "latent_space with labels": lambda axes: plots.latent_space(POINTS, LABELS, axes=axes),
    "column": lambda axes: plots.column(POINTS[:, 0], POINTS[:, 1], axes=axes),
    "column of categories": lambda axes: plots.column(LABELS, LABELS, True, "abcdefgh", axes=axes),
    "image_grid": lambda axes: plots.image_grid(random(5, 1, 4, 3), 3, axes=axes),
    "reconstructions": lambda axes: plots.reconstructions(random(5, 1, 4, 3), random(5, 1, 4, 3), axes=axes),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_a_figure_is_drawn_in_the_given_axes_and_no_other_is_opened(draw, axes):
    assert draw(axes) is axes
    assert plt.get_fignums() == []
    assert axes.figure.axes == [axes]
    axes.figure.draw_without_rendering()


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_without_axes_one_figure_is_opened_and_its_axes_returned(draw):
    found = draw(None)
    assert len(plt.get_fignums()) == 1
    assert plt.figure(plt.get_fignums()[0]).axes == [found]


def test_tensors_with_a_gradient_are_drawn_too(axes):
    x = torch.from_numpy(POINTS).requires_grad_()
    plots.points(x, axes=axes)
    assert np.array_equal(axes.collections[0].get_offsets(), POINTS)
    images = torch.from_numpy(random(2, 1, 4, 5)).requires_grad_()
    plots.image_grid(images, 2, axes=axes)
    assert np.array_equal(axes.images[0].get_array()[:, :5], images[0, 0].detach())


def inside(axes) -> bool:
    """Returns whether the legend lies within its axes."""
    axes.figure.draw_without_rendering()
    legend, frame = axes.get_legend().get_window_extent(), axes.get_window_extent()
    return frame.x0 <= legend.x0 and frame.y0 <= legend.y0 and legend.x1 <= frame.x1 and legend.y1 <= frame.y1


NAMES = ("elbo", "iwae", "dreg", "sticking_the_landing", "score_function")
WITH_LEGEND = {
    "training_curve": lambda axes: plots.training_curve([1, 2], {"a": [1.0, 2.0], "b": [2.0, 1.0]}, "nats", axes),
    "race_curves": lambda axes: plots.race_curves({name: (np.arange(3), random(2, 3)) for name in NAMES}, axes=axes),
    "bounds": lambda axes: plots.bounds([1, 10], [-2.0, -1.5], [0.1, 0.1], {"ais": (-1.4, 0.1)}, axes),
    "compared_bounds": lambda axes: plots.compared_bounds(
        {name: ([1, 2], [-2.0, -1.5], [0.1, 0.1]) for name in NAMES}, (-1.0, 0.1), axes=axes
    ),
    "against_size": lambda axes: plots.against_size(
        {name: ([1, 4, 16], [3.0, 2.0, 1.0], [0.1, 0.1, 0.1]) for name in NAMES}, axes=axes
    ),
    "below_the_best": lambda axes: plots.below_the_best({"a": (1.0, -2.0, 0.1), "b": (2.0, -1.0, 0.1)}, axes),
}


@pytest.mark.parametrize("draw", WITH_LEGEND.values(), ids=WITH_LEGEND)
def test_legends_are_inside_the_axes(draw):
    _, (axes,) = plots.figure_row(1)
    assert inside(draw(axes))


HISTORY = pv.History([1], [3.0], [None], [None], [None], [0.1], [None], [1.0])


@pytest.mark.parametrize(
    ("draw", "result", "hint"),
    [
        (plots.training_curve, HISTORY, "its own plot() draws it"),
        (plots.race_curves, pv.Race((), "epochs"), "its own plot() draws it"),
        (plots.against_size, pv.Comparison((), None, True), "its own plot() draws it"),
        (plots.bounds, pv.Estimate(torch.ones(2), torch.ones(2)), "give some of its values"),
        (plots.latent_space, pv.load("ring", num_train=5), "give some of its values"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_result_is_refused_in_one_line(draw, result, hint):
    kind = type(result).__name__
    assert refusal(draw, result) == f"plots.{draw.__name__} takes arrays, got {kind}: {hint}"
    assert refusal(draw, axes=result).startswith(f"plots.{draw.__name__} takes arrays, got {kind}")


def test_every_figure_refuses_results():
    drawing = [value for name, value in vars(plots).items() if name in plots.__all__ and inspect.isfunction(value)]
    own = {plots.figure_row}  # which draws nothing
    assert {function.__name__ for function in drawing if not hasattr(function, "__wrapped__")} == {
        function.__name__ for function in own
    }


def labels_of(axes):
    """Returns the labels of the x axis that are shown, and whether none of them lies over another."""
    axes.figure.draw_without_rendering()
    shown = [label for label in axes.get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in shown]
    return [label.get_text() for label in shown], all(a.x1 < b.x0 for a, b in pairwise(boxes))


# Each value of one meets each of another once, and the largest letters meet the most numbers in the least width.
WIDTHS, FONTS = (2.5, 4.0, 9.0), (12, 7, 10)
SIZES = ((1, 2, 3, 4, 5, 6, 7, 8, 1_000), (1, 5, 10, 50, 500, 1_000, 4_000, 5_000), (1, 2))
LABELLED = [(SIZES[i], WIDTHS[j], FONTS[(i - j) % 3]) for i in range(3) for j in range(3)]


@pytest.mark.parametrize(("sizes", "width", "font"), LABELLED)
def test_labels_of_sizes_do_not_lie_over_each_other_and_the_largest_is_shown(sizes, width, font):
    values = random(len(sizes))
    with mpl.rc_context({"font.size": font}):
        for draw in (
            lambda axes: plots.bounds(sizes, values, values, axes=axes),
            lambda axes: plots.against_size({"a": (sizes, values, 0 * values)}, axes=axes),
        ):
            _, (axes,) = plots.figure_row(1, width)
            labels, are_apart = labels_of(draw(axes))
            assert are_apart, labels
            assert labels[-1] == f"{sizes[-1]:g}"
            assert axes.get_xticks().tolist() == list(sizes)


def test_labels_that_have_room_are_all_shown():
    _, (axes,) = plots.figure_row(1)
    sizes = [1, 10, 50, 500, 5_000]
    assert labels_of(plots.bounds(sizes, random(5), random(5), axes=axes))[0] == [str(size) for size in sizes]
