"""Figures of estimates of log p(x)."""

import math

import numpy as np
import pytest
from drawn import AS_ARRAY_OR_TENSOR, lines_of

from pyrovae import plots


def bars_of(container) -> tuple[float, float]:
    """Returns the lower and the upper end of an error bar."""
    (segment,) = container.lines[2][0].get_segments()
    return segment[0][1], segment[1][1]


@AS_ARRAY_OR_TENSOR
def test_bounds_are_drawn_with_twice_their_errors_and_other_estimates_across(given, axes):
    plots.bounds([1, 10], given(np.array([-2.0, -1.5])), given(np.array([0.1, 0.2])), {"ais": (-1.4, 0.05)}, axes)
    segments = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], [(-2.2, -1.8), (-1.9, -1.1)])
    np.testing.assert_allclose(axes.containers[0].lines[0].get_xydata(), [(1, -2.0), (10, -1.5)])
    across = next(line for line in axes.lines if line.get_label() == "ais")
    np.testing.assert_allclose(across.get_ydata(), -1.4)
    box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((-1.5, -1.3))


def across_of(axes) -> tuple[float, float]:
    """Returns the lower and the upper end of the only band."""
    (band,) = axes.patches
    box = band.get_extents().transformed(axes.transData.inverted())
    return box.y0, box.y1


@AS_ARRAY_OR_TENSOR
def test_bounds_of_several_objectives_are_drawn_with_their_errors_and_log_px(given, axes):
    curves = {
        "elbo": ([1, 8], given(np.array([-3.0, -2.9])), given(np.array([0.2, 0.1]))),
        "iwae": ([2, 8, 64], given(np.array([-2.5, -2.0, -1.5])), given(np.array([0.1, math.nan, 0.05]))),
    }
    plots.compared_bounds(curves, (-1.2, 0.05), axes=axes)
    found = {c.get_label(): [s[:, 1] for s in c.lines[2][0].get_segments()] for c in axes.containers}
    np.testing.assert_allclose(found["elbo"], [(-3.4, -2.6), (-3.1, -2.7)])
    np.testing.assert_allclose(found["iwae"], [(-2.7, -2.3), (-2.0, -2.0), (-1.6, -1.4)])
    assert [list(c.lines[0].get_xdata()) for c in axes.containers] == [[1, 8], [2, 8, 64]]
    assert len({c.lines[0].get_color() for c in axes.containers}) == 2
    assert lines_of(axes)["log p(x)"][:, 1] == pytest.approx([-1.2, -1.2])
    assert across_of(axes) == pytest.approx((-1.3, -1.1))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["log p(x)", "elbo", "iwae"]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "8", "64"]
    assert axes.get_xticks().tolist() == [1, 2, 8, 64]


def test_log_px_can_be_left_out_of_the_bounds(axes):
    plots.compared_bounds({"elbo": ([1, 8], [-3.0, -2.9], [0.2, 0.1])}, None, axes=axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["elbo"]
    assert not axes.patches


def test_methods_are_drawn_below_the_best_with_the_error_of_the_difference(axes):
    measured = {"is": (3.0, -2.0, 0.3), "ais": (60.0, -1.0, 0.4), "near": (9.0, -1.1, math.nan)}
    plots.below_the_best(measured, axes)
    found = {tuple(c.lines[0].get_xydata()[0]): bars_of(c) for c in axes.containers}
    assert found.pop((3.0, 1.0)) == pytest.approx((0.001, 2.0))  # an error of 2 * 0.5 reaches down to 0
    ((seconds, gap), (low, high)), *none = found.items()
    assert not none
    assert (seconds, gap) == (9.0, pytest.approx(0.1))
    assert 0 < low < gap
    assert high == pytest.approx(0.1 + 0.8)
    assert {text.get_text() for text in axes.texts} == {"is", "near"}
    assert axes.get_ylabel() == "nats per datum below ais"
