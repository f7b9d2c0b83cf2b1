"""Figures of estimators of the gradient."""

import numpy as np
import pytest
from drawn import AS_ARRAY_OR_TENSOR, filled_of, lines_of
from matplotlib.figure import Figure

from pyrovae import plots


def test_a_variance_of_zero_has_no_place_on_a_log_axis(axes):
    """The variance of an exact gradient is 0; drawing it once ended in a math domain error."""
    curves = {"exact": ([0.1], [0.0], None), "some": ([0.1, 0.2, 0.3], [2.0, 0.0, 1.0], [0.1, 0.2, 0.4])}
    plots.against_seconds(curves, "variance", axes=axes)
    assert [text.get_text() for text in axes.texts] == ["some"]
    solid, floor = axes.lines
    np.testing.assert_allclose(solid.get_xydata(), [(0.1, 2.0), (0.3, 1.0)])
    np.testing.assert_allclose(floor.get_xydata(), [(0.1, 0.1), (0.3, 0.4)])
    plots.against_seconds({"exact": ([0.1], [0.0], None)}, "variance", axes=Figure().subplots())


def test_names_that_would_overlap_are_moved_apart(axes):
    curves = {name: ([0.1], [value], None) for name, value in {"a": 1.0, "b": 1.01, "c": 0.99, "d": 1e-3}.items()}
    plots.against_seconds(curves, "variance", axes=axes)
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert heights["d"] < heights["c"] < heights["a"] < heights["b"]
    assert (heights["b"], heights["d"]) == pytest.approx((1.01, 1e-3))
    step = 0.05 * np.ptp(np.log(axes.get_ylim()))
    assert np.log(heights["b"] / heights["a"]) == pytest.approx(step)
    assert np.log(heights["a"] / heights["c"]) == pytest.approx(step)


@AS_ARRAY_OR_TENSOR
def test_signal_to_noise_is_drawn_with_floors_and_the_slope_of_the_points_above_them(given, axes):
    sizes = [1, 4, 16, 64, 256]
    falling, rising = 2.0 * np.array(sizes) ** -0.5, 0.5 * np.array(sizes) ** 0.25
    curves = {
        "iwae": (sizes, given(np.where(np.array(sizes) > 16, 0.2, falling)), given(np.full(5, 0.1))),
        "dreg": (sizes, given(rising), given(np.full(5, 0.01))),
        "noise": (sizes, given(np.full(5, 0.1)), given(np.full(5, 0.1))),
    }
    plots.against_size(curves, {"iwae": -0.5}, axes=axes)
    labels = ["iwae: -0.50 (0.00), theory -0.5", "dreg: +0.25 (0.00)", "noise"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == labels
    solid, dotted = ([line for line in axes.lines if line.get_linestyle() == style] for style in ("-", ":"))
    for line, floor, points, (x, values, floors) in zip(solid, dotted, axes.collections, curves.values(), strict=True):
        for array in (line.get_xydata(), points.get_offsets()):
            np.testing.assert_allclose(array, np.stack((x, values), 1))
        np.testing.assert_allclose(floor.get_xydata(), np.stack((x, floors), 1))
        assert line.get_color() == floor.get_color()
    assert [filled_of(points) for points in axes.collections] == [
        [True, True, True, False, False],
        [False, False, True, True, True],  # a theory holds for large K
        [False] * 5,
    ]
    assert len({line.get_color() for line in solid}) == 3
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


@pytest.mark.parametrize("first_is_larger", [False, True])
def test_figures_that_share_an_axis_show_all_points(first_is_larger):
    """The second of two panels with one y axis was cut off at the limits of the first."""
    scales = (100.0, 1.0) if first_is_larger else (1.0, 100.0)
    ratios, planes = Figure().subplots(1, 2, sharey=True), Figure().subplots(1, 2, sharex=True)
    for scale, ratio, plane in zip(scales, ratios, planes, strict=True):
        plots.against_size({"a": ([1, 4], [scale, 2 * scale], [0.01, 0.01])}, axes=ratio)
        plots.rate_distortion([scale, 2 * scale], [1.0, 0.0], [1.0, 2.0], axes=plane)
    for low, high in (ratios[0].get_ylim(), planes[0].get_xlim()):
        assert low < 1.0
        assert high > 200.0


@AS_ARRAY_OR_TENSOR
def test_bias_and_variance_are_drawn_against_seconds_with_a_name_at_the_slowest_step(given, axes):
    curves = {
        "naive": ([0.2, 0.1], given(np.array([3.0, 4.0])), given(np.array([0.1, 0.3]))),
        "dreg": ([0.3, 0.5], given(np.array([0.19, 0.02])), given(np.array([0.1, 0.02]))),
    }
    plots.against_seconds(curves, "bias", {"naive": "C3", "dreg": "C1"}, axes)
    assert {text.get_text(): text.xy for text in axes.texts} == {"naive": (0.2, 3.0), "dreg": (0.5, 0.02)}
    np.testing.assert_allclose(lines_of(axes)["naive"], [(0.2, 3.0), (0.1, 4.0)])
    dotted = [line.get_xydata() for line in axes.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted, [[(0.2, 0.1), (0.1, 0.3)], [(0.3, 0.1), (0.5, 0.02)]])
    assert [filled_of(points) for points in axes.collections] == [[True, True], [False, False]]
    assert {text.get_text(): text.get_color() for text in axes.texts} == {"naive": "C3", "dreg": "C1"}
    assert [line.get_color() for line in axes.lines if line.get_label() in curves] == ["C3", "C1"]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylabel()) == ("log", "log", "bias")
    without = plots.against_seconds({"a": ([0.1], given(np.array([2.0])), None)}, "variance", axes=Figure().subplots())
    assert len(without.lines) == 1
    assert filled_of(without.collections[0]) == [True]
