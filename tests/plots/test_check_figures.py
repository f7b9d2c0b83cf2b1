"""Figures of predictive checks."""

import numpy as np
import pytest
from drawn import AS_ARRAY_OR_TENSOR

from pyrovae import plots


@AS_ARRAY_OR_TENSOR
def test_every_replicate_is_in_a_bar_and_the_data_are_a_line(given, axes):
    values = np.array([1.0, 1.1, 1.2, 2.0, 2.05, 4.0])
    plots.replicated_statistic(given(values), 5.0, "p = 0.000", axes)
    assert sum(bar.get_height() for bar in axes.patches) == 6
    left, right = axes.patches[0].get_x(), axes.patches[-1].get_x() + axes.patches[-1].get_width()
    assert (left, right) == pytest.approx((1.0, 4.0))
    assert list(axes.lines[0].get_xdata()) == [5.0, 5.0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["6 replicated data sets", "data"]
    assert axes.get_ylim()[1] > max(bar.get_height() for bar in axes.patches)
    assert axes.get_title() == "p = 0.000"


def test_replicates_that_are_all_the_same_have_a_bar(axes):
    plots.replicated_statistic(np.full(9, 2.0), 2.0, axes=axes)
    assert [bar.get_height() for bar in axes.patches] == [9]
