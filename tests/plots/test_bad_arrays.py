"""What cannot be drawn is refused in one line, before a figure is opened, and never by a traceback of matplotlib's."""

import inspect
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from drawn import LABELS, POINTS, random
from helpers import refusal
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae import plots

SIZES, VALUES, ERRORS = [1, 2, 4], [3.0, 2.0, 1.0], [0.1, 0.1, 0.1]
CURVES = {"a": (SIZES, VALUES, ERRORS), "b": (SIZES[:2], VALUES[:2], ERRORS[:2])}
GIVEN = {
    "points": {"x": POINTS, "labels": LABELS},
    "latent_space": {"z": POINTS, "labels": LABELS},
    "most_active_latents": {"means": random(12, 3), "labels": LABELS},
    "posterior_contours": {"density": random(3, 5, 5), "limit": 2.0, "codes": POINTS[:3]},
    "posterior_ellipses": {"means": POINTS, "scales": random(12, 2), "labels": LABELS},
    "decoded_lattice": {"decoded": random(4, 4, 2)},
    "rank_histogram": {"counts": np.array([3, 5, 4])},
    "replicated_statistic": {"replicated": np.array(VALUES), "observed": 2.5},
    "image_grid": {"images": random(5, 3, 4, 6), "columns": 3},
    "reconstructions": {"images": random(5, 1, 4, 3), "reconstructed": random(5, 1, 4, 3)},
    "latent_plane": {"images": random(3, 3, 1, 4, 4), "limit": 2.0},
    "traversal": {"images": random(2, 5, 1, 4, 4), "names": ["$z_1$", "$z_2$"]},
    "column": {"data": LABELS, "samples": LABELS, "whole": True, "categories": "abcd"},
    "training_curve": {"epochs": SIZES, "curves": {"a": VALUES, "b": VALUES}, "ylabel": "nats", "smoothed_over": 2},
    "race_curves": {"curves": {"a": (np.arange(3), random(2, 3)), "b": (np.arange(4), random(2, 4))}},
    "gaussian_kl": {},
    "rate_distortion": {"rate": VALUES, "distortion": VALUES, "betas": VALUES},
    "elbo_terms": {"values": SIZES, "terms": {"ELBO": VALUES, "KL": VALUES}, "xlabel": "beta"},
    "bounds": {"sizes": SIZES, "values": VALUES, "errors": ERRORS, "others": {"AIS": (-1.0, 0.1)}},
    "compared_bounds": {"curves": CURVES, "log_px": (-2.0, 0.1), "colors": {"a": "C0", "b": "C1"}},
    "below_the_best": {"measured": {"a": (1.0, -2.0, 0.1), "b": (2.0, -1.0, 0.1)}},
    "against_size": {"curves": CURVES, "colors": {"a": "C0", "b": "C1"}},
    "against_seconds": {"curves": CURVES, "ylabel": "variance"},
    "fitted_slope": {"sizes": SIZES, "values": VALUES, "floors": ERRORS},
    "figure_row": {"columns": 2, "width": 3.0},
}


def worse(value):
    """Yields what somebody might give in the place of a value: other shapes, empty, not finite, no numbers."""
    if isinstance(value, dict):
        yield from ({}, [], None, 3.0, list(value.values()))
        for one in worse(next(iter(value.values()))):
            yield {**value, next(iter(value)): one}
    elif isinstance(value, tuple):
        yield from ((), value[:1], (*value, 1.0), 3.0, None)
        for index, inner in enumerate(value):
            for one in worse(inner):
                yield (*value[:index], one, *value[index + 1 :])
    elif isinstance(value, (str, bool)) or (isinstance(value, list) and isinstance(value[0], str)):
        yield from (None, [], 3.0, value[:1]) if not isinstance(value, bool) else (None, 3.0, "yes")
    else:
        array = np.asarray(value)
        yield from (None, "text", {}, [[1.0], [2.0, 3.0]], np.array(["a", "b"]), torch.ones(3, 2).to_sparse(), 1j, [])
        yield from (array[None], np.full(array.shape, np.nan), np.full(array.shape, np.inf), -array - 1, 0 * array)
        if array.ndim > 0:
            yield from (array[0], array[:0], array[:1], array[..., :1], array[..., :-1], np.full(array.shape, 1.5))


def test_what_may_be_left_out_may_be_empty():
    for others in (None, {}):
        axes = Figure().subplots()
        assert plots.bounds(SIZES, VALUES, ERRORS, others, axes) is axes
    assert plots.bounds([], [], [], {"AIS": (-1.0, 0.1)}, Figure().subplots()).lines


def test_every_figure_is_here():
    drawing = {name for name in plots.__all__ if inspect.isfunction(getattr(plots, name))}
    assert GIVEN.keys() == drawing


@pytest.mark.parametrize("name", GIVEN)
def test_whatever_is_given_is_drawn_or_refused_in_one_line(name):
    draw, given = getattr(plots, name), GIVEN[name]
    draw(**given)
    plt.close("all")
    takes_axes = "axes" in inspect.signature(draw).parameters
    own = {"axes": Figure().subplots()} if takes_axes and name != "gaussian_kl" else {}
    for argument, value in given.items():
        for bad in worse(value):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="matplotlib|numpy")  # of limits without a width, for example
                try:
                    draw(**{**given, argument: bad}, **own)
                except pv.InputError:
                    with pytest.raises(pv.InputError):
                        draw(**{**given, argument: bad})
            assert plt.get_fignums() == [], (argument, bad)
            if own and own["axes"].has_data():  # clearing takes longer than most calls
                own["axes"].clear()
    for bad in (3, "axes", plt.figure, [None, 3]):
        if takes_axes:
            assert refusal(draw, **given, axes=bad).startswith("axes must be ")


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("points", {"x": random(12, 3)}, "x must have shape (num, 2), got (12, 3)"),
        ("points", {"labels": LABELS[:5]}, "labels must have shape (12,), got (5,)"),
        ("points", {"x": POINTS[:0], "labels": None}, "x must not be empty, got shape (0, 2)"),
        ("points", {"x": "data.csv"}, "x must be an array of numbers, got 'data.csv'"),
        ("latent_space", {"z": [[1.0], [2.0, 3.0]]}, "z must be an array of numbers, got a list of 2"),
        ("posterior_ellipses", {"scales": np.full((12, 2), np.nan)}, "scales must be finite, got nan at index (0, 0)"),
        (
            "posterior_contours",
            {"density": np.zeros((3, 5, 5))},
            "density must be > 0 somewhere for each datum, got 0 at most",
        ),
        (
            "image_grid",
            {"images": random(5, 4, 3)},
            "images must have shape (num, channels, height, width), got (5, 4, 3)",
        ),
        ("image_grid", {"images": random(5, 2, 4, 3)}, "images must have 1 or 3 channels, got 2"),
        ("image_grid", {"columns": 0}, "columns must be a whole number >= 1, got 0"),
        (
            "reconstructions",
            {"reconstructed": random(4, 1, 4, 3)},
            "reconstructed must have shape (5, 1, 4, 3), got (4, 1, 4, 3)",
        ),
        ("traversal", {"names": ["z"]}, "names must hold one for each of 2 rows, got 1"),
        ("column", {"data": np.full(4, np.nan)}, "data must have a cell that is not missing, got none"),
        ("column", {"categories": "abc"}, "data must be numbers of categories, 0 to 2, got 0 to 3"),
        ("training_curve", {"curves": {"a": VALUES[:2]}}, "curves['a'] must have shape (3,), got (2,)"),
        ("race_curves", {"curves": {}}, "curves must hold at least one entry, got none"),
        ("against_size", {"curves": {"a": (SIZES, VALUES)}}, "curves['a'] must be a tuple of 3, got a tuple of 2"),
        (
            "against_size",
            {"curves": {"a": (SIZES, VALUES[:2], ERRORS)}},
            "curves['a'][1] must have shape (3,), got (2,)",
        ),
        ("compared_bounds", {"colors": {"a": "C0"}}, "colors must have one for each curve, got none for ['b']"),
        ("race_curves", {"colors": {"a": "C0"}}, "colors must have one for each curve, got none for ['b']"),
        (
            "below_the_best",
            {"measured": {"a": (1.0, np.nan, 0.1)}},
            "measured['a'][1] must be finite, got nan",
        ),
        ("rank_histogram", {"counts": np.zeros(3)}, "counts must be >= 0, and not all 0"),
    ],
)
def test_the_line_names_the_argument_the_rule_and_what_was_found(name, changed, said):
    assert refusal(getattr(plots, name), **{**GIVEN[name], **changed}) == said


def test_a_dict_that_may_be_left_out_may_be_without_entries():
    """So it is where there is no other estimate to draw; a figure of log p(x) was refused for it."""
    assert plots.bounds(SIZES, VALUES, ERRORS, {}).get_ylabel() == "nats per datum"
    assert refusal(plots.compared_bounds, {}, None) == "curves must hold at least one entry, got none"
    plt.close("all")
