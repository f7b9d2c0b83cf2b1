"""Figures of which an axis has nothing on it: what they were measured for is not lost to a drawing."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae import plots
from pyrovae.evaluation.evaluation_table import Evaluation, Measured

BY_METHOD = {
    "elbo": pv.Estimate(torch.zeros(3) - 2, torch.ones(3)),
    "iwae_5": pv.Estimate(torch.zeros(3) - 1, torch.ones(3)),
    "ais_7": pv.Estimate(torch.zeros(3), torch.full((3,), math.nan)),
    "ais_prior_7": pv.Estimate(torch.full((3,), -math.inf), torch.zeros(3)),
}
NOT_SHOWN = (math.nan, math.inf, -math.inf, 0.0, -1.0)  # on a log axis


def draw(axes) -> None:
    FigureCanvasAgg(axes.figure).draw()


@pytest.mark.parametrize("number", [1, 2])
def test_each_method_alone_and_each_pair_of_methods_is_drawn(number):
    """AIS alone, which a verdict advises, ended in an IndexError after hours of work: no size stands on the x axis."""
    for methods in itertools.combinations(BY_METHOD, number):
        measured = tuple(Measured(method, BY_METHOD[method], seconds=1.0) for method in methods)
        figure = Evaluation(measured, None, None).plot()
        draw(figure.axes[0])
        labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        assert labels == [text for method, text in (("elbo", "1"), ("iwae_5", "5")) if method in methods]
        assert bool(figure.axes[0].get_xlabel()) == bool(labels)
        assert figure.axes[0].get_legend() is not None


@pytest.mark.parametrize("value", NOT_SHOWN)
def test_what_has_no_place_on_an_axis_is_a_gap(value):
    """Without one point between 0 and infinity the range of a log axis was not a range."""
    axes, values = Figure(figsize=(18, 3)).subplots(1, 9), [value, value]
    plots.against_size({"a": ([1, 8], values, values)}, axes=axes[0])
    plots.against_size({"a": ([1, 8], values, [0.1, 0.1]), "b": ([1], [2.0], [value])}, axes=axes[1])
    plots.against_seconds({"a": ([1.0, 8.0], values, None)}, "variance", axes=axes[2])
    plots.against_seconds({"a": ([1.0], [value], None), "b": ([1.0], [2.0], [value])}, "bias", axes=axes[3])
    plots.bounds([1, 8], values, [math.nan, math.nan], {"AIS": (value, math.nan)}, axes[4])
    plots.bounds([1, 8], values, [math.inf, math.inf], {"AIS": (value, math.inf)}, axes[5])
    plots.compared_bounds({"a": ([1], [value], [math.inf])}, (value, math.inf), axes=axes[6])
    plots.training_curve([1], {"a": [value]}, "nats", axes[7])
    plots.race_curves({"a": (torch.ones(1), torch.full((2, 1), value))}, axes=axes[8])
    for one in axes[:4]:
        low, high = one.get_ylim()
        assert 0 < low < high < math.inf
        drawn = np.concatenate([line.get_ydata() for line in one.lines] or [[]])
        assert bool((np.isnan(drawn) | (drawn > 0)).all())
    draw(axes[0])


def test_a_figure_of_nothing_has_no_legend():
    axes = plots.bounds([], [], [], axes=new_axes())
    draw(axes)
    assert axes.get_legend() is None


def test_methods_that_agree_are_all_the_best():
    axes = plots.below_the_best({"is": (1.0, -2.0, 0.0), "ais": (9.0, -2.0, 0.0)}, new_axes())
    draw(axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["is, the best", "ais, the best"]
    assert not axes.containers


def new_axes():
    return Figure().subplots()
