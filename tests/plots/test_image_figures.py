"""Figures of images."""

import numpy as np
import pytest
from drawn import AS_ARRAY_OR_TENSOR, random
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae import plots


def shown(axes: Axes) -> np.ndarray:
    """Returns the colours of the only image in `axes` as they reach the screen, `(height, width, 4)`."""
    (image,) = axes.images
    assert image.origin == "upper"
    return image.to_rgba(image.get_array(), norm=True)


@AS_ARRAY_OR_TENSOR
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
def test_the_cells_after_the_last_image_are_white(channels, axes):
    plots.image_grid(np.full((4, channels, 2, 2), 0.5), 3, axes=axes)
    colours = shown(axes)
    assert colours.shape == (4, 6, 4)
    assert (colours[2:, 2:] == 1.0).all()
    assert (colours[:2] != 1.0).any(-1).all()


def test_a_grey_image_is_ink_on_paper_at_fixed_levels(axes):
    """0 is white and 1 is black, even in an image that has neither."""
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


@AS_ARRAY_OR_TENSOR
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
