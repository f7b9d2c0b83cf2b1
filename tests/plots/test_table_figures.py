"""Figures of the columns of a table."""

import numpy as np
import pytest
from drawn import AS_ARRAY_OR_TENSOR

from pyrovae import plots


@AS_ARRAY_OR_TENSOR
def test_categories_are_bars_of_shares_with_their_names(given, axes):
    data, samples = np.array([0.0, 0, 2, 2, np.nan]), np.array([1.0, 2, 2, 2, 5])
    plots.column(given(data), given(samples), whole=True, categories=("red", "green", "blue"), title="t", axes=axes)
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([0.5, 0, 0.5, 0, 0.2, 0.6])  # the missing cell counts for nothing
    assert [bar.get_center()[0] for bar in axes.patches] == pytest.approx([-0.2, 0.8, 1.8, 0.2, 1.2, 2.2])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["red", "green", "blue"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["data", "samples"]


@pytest.mark.parametrize("whole", [False, True])
def test_many_values_are_two_densities_over_the_range_of_the_data(whole, axes):
    data = np.arange(1_000.0)
    plots.column(data, data + 500, whole=whole, title="age", axes=axes)
    outlines = [patch.get_xy() for patch in axes.patches]
    assert len(outlines) == 2
    assert axes.get_title() == "age"
    low, high = (0, 999) if whole else (4.995, 994.005)
    for outline in outlines:
        assert (outline[:, 0].min(), outline[:, 0].max()) == pytest.approx((low, high))
    assert outlines[0][:, 1].max() == pytest.approx(1 / 1_000, rel=0.05)


@pytest.mark.parametrize("whole", [False, True])
def test_a_column_of_one_value_is_drawn(whole, axes):
    plots.column(np.full(5, 3.0), np.full(5, 3.0), whole=whole, axes=axes)
    axes.figure.draw_without_rendering()
