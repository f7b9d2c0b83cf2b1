import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
from helpers import assert_within_standard_errors
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pyrovae import plots

AS = pytest.mark.parametrize("given", [np.asarray, torch.from_numpy], ids=["array", "tensor"])


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    yield
    plt.close("all")


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


POINTS, LABELS = random(12, 2) * 6 - 3, np.arange(12) % 4
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
    "points": lambda axes: plots.points(POINTS, axes=axes),
    "points with labels": lambda axes: plots.points(POINTS, LABELS, axes=axes),
    "latent_space": lambda axes: plots.latent_space(POINTS, axes=axes),
    "latent_space with labels": lambda axes: plots.latent_space(POINTS, LABELS, axes=axes),
    "image_grid": lambda axes: plots.image_grid(random(5, 1, 4, 3), 3, axes=axes),
    "reconstructions": lambda axes: plots.reconstructions(random(5, 1, 4, 3), random(5, 1, 4, 3), axes=axes),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_a_figure_is_drawn_in_the_axes_given_and_no_other_is_opened(draw, axes):
    assert draw(axes) is axes
    assert plt.get_fignums() == []
    assert axes.figure.axes == [axes]
    axes.figure.draw_without_rendering()


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_without_axes_one_figure_is_opened_and_its_axes_returned(draw):
    found = draw(None)
    assert len(plt.get_fignums()) == 1
    assert plt.figure(plt.get_fignums()[0]).axes == [found]


# Estimates ----------------------------------------------------------------------------------------------------------


def bars_of(container) -> tuple[float, float]:
    """The lower and the upper end of an error bar."""
    (segment,) = container.lines[2][0].get_segments()
    return segment[0][1], segment[1][1]


@AS
def test_bounds_have_twice_their_errors_and_other_estimates_lie_across(given, axes):
    plots.bounds([1, 10], given(np.array([-2.0, -1.5])), given(np.array([0.1, 0.2])), {"ais": (-1.4, 0.05)}, axes)
    segments = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], [(-2.2, -1.8), (-1.9, -1.1)])
    np.testing.assert_allclose(axes.containers[0].lines[0].get_xydata(), [(1, -2.0), (10, -1.5)])
    across = next(line for line in axes.lines if line.get_label() == "ais")
    np.testing.assert_allclose(across.get_ydata(), -1.4)
    box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((-1.5, -1.3))


def lines_of(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def across_of(axes) -> tuple[float, float]:
    """The lower and the upper end of the one band."""
    (band,) = axes.patches
    box = band.get_extents().transformed(axes.transData.inverted())
    return box.y0, box.y1


@AS
def test_bounds_of_several_objectives_have_their_own_errors_below_log_px(given, axes):
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


def test_bounds_that_are_none_on_log_px_have_no_log_px_across(axes):
    plots.compared_bounds({"elbo": ([1, 8], [-3.0, -2.9], [0.2, 0.1])}, None, axes=axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["elbo"]
    assert not axes.patches


def test_a_variance_of_zero_has_no_place_on_a_log_axis(axes):
    """An exact gradient's; it was a math domain error after all the work."""
    curves = {"exact": ([0.1], [0.0], None), "some": ([0.1, 0.2, 0.3], [2.0, 0.0, 1.0], [0.1, 0.2, 0.4])}
    plots.against_seconds(curves, "variance", axes=axes)
    assert [text.get_text() for text in axes.texts] == ["some"]
    solid, floor = axes.lines
    np.testing.assert_allclose(solid.get_xydata(), [(0.1, 2.0), (0.3, 1.0)])
    np.testing.assert_allclose(floor.get_xydata(), [(0.1, 0.1), (0.3, 0.4)])
    plots.against_seconds({"exact": ([0.1], [0.0], None)}, "variance", axes=Figure().subplots())


def test_names_that_would_lie_upon_each_other_are_moved_apart(axes):
    curves = {name: ([0.1], [value], None) for name, value in {"a": 1.0, "b": 1.01, "c": 0.99, "d": 1e-3}.items()}
    plots.against_seconds(curves, "variance", axes=axes)
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert heights["d"] < heights["c"] < heights["a"] < heights["b"]
    assert (heights["b"], heights["d"]) == pytest.approx((1.01, 1e-3))
    step = 0.05 * np.ptp(np.log(axes.get_ylim()))
    assert np.log(heights["b"] / heights["a"]) == pytest.approx(step)
    assert np.log(heights["a"] / heights["c"]) == pytest.approx(step)


def filled_of(collection) -> list[bool]:
    return [tuple(face[:3]) != (1, 1, 1) for face in collection.get_facecolors()]


@AS
def test_signal_to_noise_has_values_floors_and_the_slope_of_what_is_above_them(given, axes):
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
        [False, False, True, True, True],  # a theory is of large K
        [False] * 5,
    ]
    assert len({line.get_color() for line in solid}) == 3
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


@AS
def test_bias_and_variance_stand_against_seconds_with_the_estimators_name_at_its_slowest(given, axes):
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


def test_methods_are_drawn_as_far_as_they_lie_below_the_best_with_the_error_of_the_difference(axes):
    measured = {"is": (3.0, -2.0, 0.3), "ais": (60.0, -1.0, 0.4), "near": (9.0, -1.1, math.nan)}
    plots.below_the_best(measured, axes)
    found = {tuple(c.lines[0].get_xydata()[0]): bars_of(c) for c in axes.containers}
    assert found.pop((3.0, 1.0)) == pytest.approx((0.001, 2.0))  # an error of 2 * 0.5 reaches to nothing
    ((seconds, gap), (low, high)), *none = found.items()
    assert not none
    assert (seconds, gap) == (9.0, pytest.approx(0.1))
    assert 0 < low < gap
    assert high == pytest.approx(0.1 + 0.8)
    assert {text.get_text() for text in axes.texts} == {"is", "near"}
    assert axes.get_ylabel() == "nats per datum below ais"


@AS
def test_ranks_are_drawn_beside_what_uniform_ones_would_be(given, axes):
    counts = np.array([30, 50, 40, 40])
    plots.rank_histogram(given(counts), "z 1", axes)
    bars = [patch for patch in axes.patches if patch.get_height() in counts and patch.get_width() < 0.3]
    assert [bar.get_height() for bar in bars] == counts.tolist()
    assert [bar.get_center()[0] for bar in bars] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    exact = scipy.stats.binom(160, 0.25)
    assert exact.cdf(band.y1) - exact.cdf(band.y0) == pytest.approx(0.99, abs=0.005)
    assert axes.lines[0].get_ydata() == pytest.approx([40, 40])


# Curves -------------------------------------------------------------------------------------------------------------


@AS
def test_a_training_curve_is_the_values_at_their_epochs(given, axes):
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
    """The values are a plunge in the first 20%, then the epoch plus one."""
    values = [1.0 if num == 4 and i == 0 else -1e4 if i < first else i + 2.0 for i in range(num)]
    plots.training_curve(range(1, num + 1), {"elbo": values}, "nats", axes)
    assert axes.get_ylim() == pytest.approx((low, high))


def test_the_view_holds_all_curves(axes):
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


# Points -------------------------------------------------------------------------------------------------------------


@AS
@pytest.mark.parametrize("draw", [plots.points, plots.latent_space])
def test_a_scatter_has_the_points_with_equal_axes(given, draw, axes):
    draw(given(POINTS), title="the points", axes=axes)
    (scatter,) = axes.collections
    assert np.array_equal(scatter.get_offsets(), POINTS)
    assert axes.get_aspect() == 1.0
    assert axes.get_title() == "the points"


@AS
@pytest.mark.parametrize("draw", [plots.points, plots.latent_space])
def test_points_of_one_label_have_one_colour_of_their_own(given, draw, axes):
    draw(given(POINTS), given(LABELS), axes=axes)
    axes.figure.draw_without_rendering()
    colours = [tuple(colour) for colour in axes.collections[0].get_facecolors()]
    assert len(colours) == len(POINTS)
    by_label = {label: {c for c, of in zip(colours, LABELS, strict=True) if of == label} for label in range(4)}
    assert all(len(found) == 1 for found in by_label.values())
    assert len(set.union(*by_label.values())) == 4


@pytest.mark.parametrize("draw", [plots.points, plots.latent_space])
def test_points_without_labels_are_all_of_one_dark_grey(draw, axes):
    draw(POINTS, axes=axes)
    axes.figure.draw_without_rendering()
    assert {tuple(colour) for colour in axes.collections[0].get_facecolors()} == {to_rgba("0.25", 0.6)}


def test_ten_labels_have_the_ten_colours_in_order(axes):
    plots.points(random(10, 2), np.arange(10), axes=axes)
    axes.figure.draw_without_rendering()
    assert np.allclose(axes.collections[0].get_facecolors()[:, :3], plt.get_cmap("tab10").colors)


def test_the_latent_space_says_which_label_has_which_colour(axes):
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


def test_the_circles_are_in_view_where_the_posterior_has_collapsed(axes):
    plots.latent_space(POINTS * 1e-3, axes=axes)
    axes.figure.draw_without_rendering()
    assert axes.get_xlim()[0] < -2.44
    assert axes.get_xlim()[1] > 2.44
    assert axes.get_ylim()[0] < -2.44
    assert axes.get_ylim()[1] > 2.44


# Images -------------------------------------------------------------------------------------------------------------


def shown(axes: Axes) -> np.ndarray:
    """The colours of the one image in `axes`, `(height, width, 4)`, as they reach the screen."""
    (image,) = axes.images
    assert image.origin == "upper"
    return image.to_rgba(image.get_array(), norm=True)


@AS
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("num", "columns", "rows"), [(6, 3, 2), (5, 3, 2), (7, 3, 3), (4, 1, 4), (4, 4, 1), (2, 4, 1)])
def test_an_image_grid_has_every_pixel_of_every_image_in_its_place(given, channels, num, columns, rows, axes):
    images = random(num, channels, 4, 5)
    plots.image_grid(given(images), columns, "the images", axes)
    (image,) = axes.images
    array = np.asarray(image.get_array()).reshape(rows * 4, columns * 5, channels)
    for i in range(num):
        row, column = divmod(i, columns)
        for channel in range(channels):
            for y in range(4):
                for x in range(5):
                    assert array[row * 4 + y, column * 5 + x, channel] == images[i, channel, y, x]
    assert axes.get_title() == "the images"
    assert image.origin == "upper"
    assert image.get_interpolation() == "nearest"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_places_after_the_last_image_are_left_white(channels, axes):
    plots.image_grid(np.full((4, channels, 2, 2), 0.5), 3, axes=axes)
    colours = shown(axes)
    assert colours.shape == (4, 6, 4)
    assert (colours[2:, 2:] == 1.0).all()
    assert (colours[:2] != 1.0).any(-1).all()


def test_a_grey_image_is_ink_on_paper_with_levels_that_no_other_pixel_moves(axes):
    """0 is white and 1 is black, also in an image that has neither."""
    plots.image_grid(np.array([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3), 1, axes=axes)
    white, half, black = shown(axes)[0]
    assert white == pytest.approx((1, 1, 1, 1))
    assert black == pytest.approx((0, 0, 0, 1))
    assert half[:3] == pytest.approx([0.5] * 3, abs=0.01)
    alone = plots.image_grid(np.full((1, 1, 2, 2), 0.5), 1, axes=Figure().subplots())
    assert shown(alone)[0, 0] == pytest.approx(half)


def test_a_colour_image_has_its_own_colours(axes):
    images = random(1, 3, 2, 2)
    plots.image_grid(images, 1, axes=axes)
    assert shown(axes)[..., :3] == pytest.approx(images[0].transpose(1, 2, 0))


@AS
@pytest.mark.parametrize("channels", [1, 3])
def test_reconstructions_are_below_their_data(given, channels, axes):
    data, reconstructed = random(3, channels, 4, 5), 1 - random(3, channels, 4, 5)
    plots.reconstructions(given(data), given(reconstructed), axes=axes)
    (image,) = axes.images
    array = np.asarray(image.get_array()).reshape(8, 15, channels)
    for i in range(3):
        columns = slice(5 * i, 5 * (i + 1))
        assert np.array_equal(array[:4, columns], data[i].transpose(1, 2, 0))
        assert np.array_equal(array[4:, columns], reconstructed[i].transpose(1, 2, 0))


def test_tensors_with_a_gradient_are_drawn_too(axes):
    x = torch.from_numpy(POINTS).requires_grad_()
    plots.points(x, axes=axes)
    assert np.array_equal(axes.collections[0].get_offsets(), POINTS)
    images = torch.from_numpy(random(2, 1, 4, 5)).requires_grad_()
    plots.image_grid(images, 2, axes=axes)
    assert np.array_equal(axes.images[0].get_array()[:, :5], images[0, 0].detach())
