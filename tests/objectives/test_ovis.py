"""OVIS: its factors in the paper's form and in float32, its exact mean over all draws, and what it refuses."""

import math

import pytest
import torch
from helpers import refusal, small_vae
from mixed_pairs import Grid
from scalar_pairs import double
from torch import Tensor

import pyrovae as pv
from pyrovae.lab.repeats import reference_of
from pyrovae.objectives import IWAE, OVIS, VIMCO

ONE = double(1.0)


def in_the_papers_form(log_weights: Tensor, gamma: float) -> Tensor:
    """Returns log Z - w~_k - c_k, with every Z without a draw a sum of its own."""
    count = len(log_weights)
    without = [torch.cat((log_weights[:k], log_weights[k + 1 :])).logsumexp(0) for k in range(count)]
    shares = log_weights.softmax(0)
    control = torch.stack(without) - math.log(count - 1) - gamma * shares + (1 - gamma) * math.log(1 - 1 / count)
    return log_weights.logsumexp(0) - math.log(count) - shares - control


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_factors_are_those_of_the_paper(gamma):
    for count, spread in ((2, 1.0), (7, 0.1), (7, 3.0)):
        log_weights = spread * torch.randn(count, 100, dtype=torch.float64)
        found = OVIS(count, gamma=gamma).coefficients(log_weights, ONE)
        torch.testing.assert_close(found.score, in_the_papers_form(log_weights, gamma), atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(found.model, log_weights.softmax(0))
        assert found.path is None


def test_the_factors_at_both_ends_of_gamma_are_nearly_w_squared_over_2_and_w_less_its_mean():
    log_weights = 0.1 * torch.randn(1_000, 5, dtype=torch.float64)
    shares = log_weights.softmax(0)
    unbiased, wake = (OVIS(1_000, gamma=gamma).coefficients(log_weights, ONE).score for gamma in (0.0, 1.0))
    torch.testing.assert_close(unbiased, shares**2 / 2, rtol=2e-3, atol=0)
    torch.testing.assert_close(wake, shares - 1e-3, rtol=0, atol=2e-6)
    of_vimco = VIMCO(1_000).coefficients(log_weights, ONE).score  # the same for every draw, as the docs say
    torch.testing.assert_close(of_vimco, torch.full_like(of_vimco, -1e-3), rtol=0.02, atol=0)


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_in_float32_the_factors_are_right_to_four_digits_where_logarithms_of_means_lose_them(spread):
    log_weights = (spread * torch.randn(64, 200) - 100).float()
    exact = in_the_papers_form(log_weights.double(), 0.0)
    found = OVIS(64).coefficients(log_weights, torch.ones(())).score.double()
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-8)
    if spread < 1:
        lost = (in_the_papers_form(log_weights, 0.0).double() - exact).abs() / exact
        assert lost.median() > 0.01


def test_a_draw_with_all_of_the_weight_keeps_its_factor():
    """Its share is 1 to the last bit of float32, from a distance of 17 nats on."""
    for distance in (10.0, 40.0, 200.0):
        log_weights = torch.tensor([[0.0], [-distance], [-distance]])
        first, *others = OVIS(3).coefficients(log_weights, torch.ones(())).score.flatten().tolist()
        assert first == pytest.approx(distance - math.log(2) - 1, rel=1e-4)
        assert others == pytest.approx([0.0, 0.0], abs=1e-8)


def test_where_all_other_weights_are_0_a_draw_has_no_part_in_the_guides_gradient():
    log_weights = double([[0.3, -math.inf], [-math.inf, -math.inf], [-math.inf, -math.inf]])
    found = OVIS(3).coefficients(log_weights, ONE).finite()
    assert not found.score.any()
    assert found.model.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(("count", "beta"), [(2, 1.0), (3, 1.0), (2, 0.5)])
def test_over_all_discrete_draws_the_mean_gradient_is_iwaes(count, beta):
    grid = Grid("c and b", count, 1, beta)
    exact = grid.exact(IWAE(count).bound)
    for found, expected in zip(grid.mean_gradient(OVIS(count)), exact, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("gamma", [0.4, 1.0])
def test_with_gamma_the_guide_moves_by_the_mean_of_its_own_terms_and_the_model_by_iwaes(gamma):
    grid = Grid("c and b", 3, 1)
    of_guide, of_model = grid.mean_gradient(OVIS(3, gamma=gamma))
    a = grid.a.clone().requires_grad_()
    _, log_q, log_w, chance = grid.by_hand(a, grid.t)
    factors = in_the_papers_form(log_w.detach()[grid.index], gamma)
    mean = (grid.mass(chance.detach()) * (factors * sum(log_q.values())[grid.index]).sum(0)).sum()
    torch.testing.assert_close(of_guide, torch.autograd.grad(-mean, a)[0], atol=1e-10, rtol=0)
    exact = grid.exact(IWAE(3).bound)
    torch.testing.assert_close(of_model, exact[1], atol=1e-10, rtol=0)
    assert (of_guide - exact[0]).norm() > 0.1 * exact[0].norm()  # another direction, and no reference


def test_only_gamma_0_has_a_reference_takes_a_beta_and_is_the_bounds_own_factor():
    log_weights = torch.randn(3, 5, dtype=torch.float64)
    assert reference_of(OVIS(3)) == IWAE(3)
    assert OVIS(3).outer_score(log_weights) is None
    for gamma in (1e-3, 1.0):
        objective = OVIS(3, gamma=gamma)
        assert reference_of(objective) is None
        expected = OVIS(3).coefficients(log_weights, ONE).score
        torch.testing.assert_close(objective.outer_score(log_weights), expected)
        said = refusal(pv.fit, small_vae(beta=3.0), torch.randn(5, 2), epochs=1, objective=objective)
        assert said == "OVIS is not defined for a beta on the latents, got 3"


@pytest.mark.parametrize("gamma", [-0.1, 1.5])
def test_gamma_out_of_its_range_is_refused(gamma):
    assert refusal(OVIS, 3, gamma=gamma) == f"gamma must lie in [0, 1], got {gamma}"
    assert refusal(pv.objectives.from_text, f"ovis(gamma={gamma})") == f"gamma must lie in [0, 1], got {gamma}"
