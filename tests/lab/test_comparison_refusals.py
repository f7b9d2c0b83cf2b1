"""compare refuses bad input in one line before any work."""

import math
import re

import pytest
import torch
from compared_pairs import FEW, plain_guide, plain_model, poorly_guided
from helpers import draw, refusal, small_vae

import pyrovae as pv
from pyrovae.lab.comparing import compare
from pyrovae.objectives import ELBO, MIWAE


def test_a_function_is_called_only_with_the_numbers_of_particles_that_were_given():
    asked = []

    def eighths(number):
        asked.append(number)
        return MIWAE(number // 8, num_batches=8)

    vae = poorly_guided()
    compare(vae.model, vae.guide, draw(vae, 5), objectives=[eighths], num_particles=[8, 16], **FEW)
    assert asked == [8, 16]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": []}, "objectives and num_particles must name at least one each"),
        ({"objectives": ["vae"]}, "objective must be one of elbo, "),
        ({"objectives": [ELBO(3)]}, "objectives must be names, or take a number of particles"),
        ({"objectives": [lambda k: k]}, "objectives must be names, or take a number of particles .* got 1"),
        ({"objectives": ["vimco"], "num_particles": [1]}, r"no objective takes num_particles \[1\]"),
        (
            {"objectives": ["score_function(baseline=leave_one_out)"], "num_particles": [1]},
            "num_particles must be >= 2 with baseline leave_one_out, got 1",
        ),
        ({"num_particles": [0]}, "num_particles must be a whole number >= 1, got 0"),
        ({"objectives": ["elbo", "iwae", "elbo"]}, "objectives must differ, got elbo, iwae, elbo"),
        ({"num_particles": [2, 2]}, "num_particles must differ, got 2, 2"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"repeats": 3}, "repeats must be a whole number >= 4, got 3"),
        ({"max_seconds": 0}, "max_seconds must be a finite number > 0, got 0"),
        ({"log_px": 3.0}, r"log_px must be an Estimate, got 3\.0"),
        ({"log_px": torch.zeros(5)}, "log_px must be an Estimate, got a Tensor of shape"),
        (
            {"log_px": pv.Estimate(torch.zeros(4), torch.zeros(4))},
            r"log_px must be of the 5 data given, got values of shape \(4,\)",
        ),
        ({"compile": "auto"}, "compile must be true or false, got 'auto'"),
        ({"objectives": "elbo"}, "objectives must be a list or a tuple of names or functions, got 'elbo'"),
        ({"num_particles": 8}, "num_particles must be a list or a tuple of whole numbers >= 1, got 8"),
        ({"num_particles": []}, "objectives and num_particles must name at least one each"),
        ({"objectives": [ELBO, lambda k: ELBO(k) if k == 1 else "elbo"]}, "must be names, or .* got 'elbo'"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(settings, message):
    vae = poorly_guided()

    def model(x):
        raise AssertionError("the work has begun")

    assert "\n" not in refusal(compare, model, vae.guide, draw(vae, 5), **settings)
    assert re.search(message, refusal(compare, model, vae.guide, draw(vae, 5), **settings))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(5, 9), r"x must have shape \(batch, 2\), got \(5, 9\)"),
        (torch.full((5, 2), math.nan), r"x must be finite, got nan at index \(0, 0\)"),
        (torch.randn(0, 2), "x must hold at least one datum, got 0"),
    ],
)
def test_data_of_the_wrong_shape_are_refused(x, message):
    vae = small_vae()
    with pytest.raises(pv.InputError, match=message):
        compare(vae.model, vae.guide, x)


def test_an_objective_that_does_not_fit_the_pair_is_refused():
    with pytest.raises(pv.InputError, match='elbo_analytic_kl needs a reparameterised guide, and site "z" has'):
        compare(plain_model, plain_guide, torch.randn(6, 3), objectives=["elbo", "elbo_analytic_kl"])
