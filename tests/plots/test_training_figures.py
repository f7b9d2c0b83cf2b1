"""Figures of trainings."""

import numpy as np
import pytest
from drawn import AS_ARRAY_OR_TENSOR, random
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


@pytest.mark.parametrize(
    ("num", "first", "low", "high"),
    [
        (10, 2, 4.0 - 0.7, 11.0 + 0.7),  # the last eight: from 4 to 11
        (4, 0, 1.0 - 0.4, 5.0 + 0.4),  # too few to leave any out
        (5, 1, 3.0 - 0.3, 6.0 + 0.3),
    ],
)
def test_the_view_is_the_range_of_the_later_80_percent_and_a_tenth(axes, num, first, low, high):
    """The values plunge in the first 20%, and are the epoch plus one after that."""
    values = [1.0 if num == 4 and i == 0 else -1e4 if i < first else i + 2.0 for i in range(num)]
    plots.training_curve(range(1, num + 1), {"elbo": values}, "nats", axes)
    assert axes.get_ylim() == pytest.approx((low, high))


def test_the_view_contains_all_curves(axes):
    curves = {"low": [0.0, -5.0, -4.0, -3.0, -4.0], "high": [9.0, 2.0, 1.0, 1.0, 1.0]}
    plots.training_curve(range(5), curves, "nats", axes)
    assert axes.get_ylim() == pytest.approx((-5.0 - 0.7, 2.0 + 0.7))


def test_a_constant_curve_is_in_the_middle_of_the_view(axes):
    plots.training_curve([1, 2, 3], {"kl": [2.0, 2.0, 2.0]}, "nats", axes)
    assert axes.get_ylim() == pytest.approx((1.9, 2.1))


def test_one_curve_needs_no_legend_and_two_have_one(axes):
    plots.training_curve([1, 2], {"elbo": [1.0, 2.0]}, "nats", axes)
    assert axes.get_legend() is None
    other = plots.training_curve([1, 2], {"elbo": [1.0, 2.0], "loss": [2.0, 1.0]}, "nats", Figure().subplots())
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["elbo", "loss"]
