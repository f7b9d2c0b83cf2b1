"""Figures of trainings."""

import numpy as np
import pytest
from drawn import AS_ARRAY_OR_TENSOR, random
from helpers import refusal
from matplotlib.figure import Figure

from pyrovae import plots


@AS_ARRAY_OR_TENSOR
def test_a_training_curve_has_the_values_at_their_epochs(given, axes):
    epochs, elbo, loss = np.arange(1, 9), random(8), random(8) + 1
    plots.training_curve(given(epochs), {"elbo": given(elbo), "loss": given(loss)}, "nats per datum", axes)
    assert [line.get_label() for line in axes.lines] == ["elbo", "loss"]
    for line, values in zip(axes.lines, (elbo, loss), strict=True):
        assert np.array_equal(line.get_xdata(), epochs)
        assert np.array_equal(line.get_ydata(), values)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "nats per datum")


def test_the_first_epochs_are_in_view_however_far_off(axes):
    curves = {"low": [0.0, -5.0, -4.0, -3.0, -4.0], "high": [900.0, 2.0, 1.0, 1.0, 1.0]}
    plots.training_curve(range(1, 6), curves, "nats", axes)
    low, high = axes.get_ylim()
    assert low < -5.0
    assert 900.0 < high < 1_000.0
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_one_epoch_is_a_point_at_its_number(axes):
    plots.training_curve([1], {"kl": [2.0]}, "nats", axes)
    assert axes.lines[0].get_marker() == "o"
    assert axes.get_xticks() == [1]


def test_a_race_shows_every_point_of_every_seed(axes):
    curves = {"elbo": (np.arange(1, 5), np.array([[-90.0, -3.0, -2.0, -2.0], [-50.0, -3.0, -2.0, -1.0]]))}
    plots.race_curves(curves, axes=axes)
    low, high = axes.get_ylim()
    assert low < -90.0
    assert high > -1.0
    assert np.array_equal(axes.lines[-1].get_ydata(), [-70.0, -3.0, -2.0, -1.5])


def test_an_objective_of_a_race_has_the_colour_that_it_has_in_other_figures(axes):
    curves = {name: (np.arange(3), random(2, 3)) for name in ("elbo", "dreg")}
    plots.race_curves(curves, axes=axes, colors={"dreg": "C5", "elbo": "C2", "iwae": "C0"})
    assert [line.get_color() for line in axes.lines] == ["C2"] * 3 + ["C5"] * 3


def test_one_curve_needs_no_legend_and_two_have_one(axes):
    plots.training_curve([1, 2], {"elbo": [1.0, 2.0]}, "nats", axes)
    assert axes.get_legend() is None
    other = plots.training_curve([1, 2], {"elbo": [1.0, 2.0], "loss": [2.0, 1.0]}, "nats", Figure().subplots())
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["elbo", "loss"]


@AS_ARRAY_OR_TENSOR
def test_a_smoothed_curve_is_the_mean_around_each_epoch_beside_the_raw_values(given, axes):
    values = np.array([4.0, 1.0, 1.0, 4.0, 7.0])
    plots.training_curve(given(np.arange(1, 6)), {"elbo": given(values)}, "nats", axes, smoothed_over=3)
    raw, smoothed = axes.lines
    assert np.array_equal(raw.get_ydata(), values)
    assert smoothed.get_ydata() == pytest.approx([2.5, 2.0, 2.0, 4.0, 5.5])
    assert raw.get_color() == smoothed.get_color()
    assert raw.get_alpha() < 1
    assert smoothed.get_label() == "elbo"


def test_a_curve_shorter_than_its_smoothing_is_its_mean(axes):
    plots.training_curve([1, 2], {"a": [1.0, 3.0], "b": [2.0, 2.0]}, "nats", axes, smoothed_over=9)
    assert axes.lines[1].get_ydata() == pytest.approx([2.0, 2.0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert refusal(plots.training_curve, [1], {"a": [1.0]}, "nats", smoothed_over=0) == (
        "smoothed_over must be a whole number >= 1, got 0"
    )
