"""Fixtures of the tests of figures."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def _no_figure_is_left(laid_out_figures):
    yield
    plt.close("all")


@pytest.fixture
def axes() -> Axes:
    """Returns the axes of a figure that pyplot does not know."""
    return Figure().subplots()
