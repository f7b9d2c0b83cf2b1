"""Figures of rate and distortion."""

import pytest

from pyrovae import plots


@pytest.mark.parametrize(
    ("rate", "distortion", "betas"),
    [
        ([35.5, 26.7, 17.0, 9.1], [68.8, 75.5, 89.4, 112.9], [0.5, 1, 2, 4]),
        ([3.0], [2.0], [0.0625]),
        ([1e-3, 5.0], [90.0, 80.0], [64, 0.0625]),
    ],
)
@pytest.mark.parametrize("width", [4.0, 4.5])
def test_the_labels_of_the_points_are_within_the_frame(rate, distortion, betas, width):
    figure, (axes,) = plots.figure_row(1, width=width)
    plots.rate_distortion(rate, distortion, betas, axes)
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    assert [text.get_text() for text in axes.texts] == [rf"$\beta$ = {beta:g}" for beta in betas]
    for text in axes.texts:
        label = text.get_window_extent()
        assert frame.x0 < label.x0 < label.x1 < frame.x1
        assert frame.y0 < label.y0 < label.y1 < frame.y1
