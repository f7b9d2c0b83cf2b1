"""Relaxed codes: the densities of their logits."""

import math

import pyro.distributions as dist
import pytest
import torch
from helpers import (
    assert_within_standard_errors,
    doubles,
    suite_seed,
)
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli as LogitOfPyTorch

from pyrovae.models.code_distributions import (
    LogitRelaxedBernoulli,
    LogitRelaxedOneHot,
)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0])
def test_the_logit_of_a_relaxed_bit_has_pytorchs_density_and_does_not_overflow(temperature):
    logits, z = 3 * doubles(50), 10 * doubles(50)
    ours = LogitRelaxedBernoulli(logits, temperature)
    theirs = LogitOfPyTorch(torch.tensor(temperature, dtype=torch.float64), logits=logits)
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    log_prob = LogitRelaxedBernoulli(torch.zeros(2), temperature).log_prob(far)
    torch.testing.assert_close(log_prob, torch.full((2,), math.log(temperature) - 1e4 * temperature))
    torch.testing.assert_close(torch.autograd.grad(log_prob.sum(), far)[0], temperature * torch.tensor([1.0, -1.0]))
    assert not LogitOfPyTorch(torch.tensor(2.0), logits=torch.zeros(1)).log_prob(torch.tensor([-50.0])).isfinite()
    grid = torch.linspace(-400, 400, 200_001, dtype=torch.float64)
    one = LogitRelaxedBernoulli(torch.tensor(1.3, dtype=torch.float64), temperature)
    mass = one.log_prob(grid).exp()
    moments = [torch.trapezoid(mass * (grid - one.mean) ** power, grid).item() for power in (0, 1, 2)]
    assert moments == pytest.approx([1, 0, one.variance.item()], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.4, 1.5])
def test_the_logits_of_a_relaxed_class_are_the_gumbel_softmax_in_other_coordinates(temperature):
    logits = doubles(4)
    ours = LogitRelaxedOneHot(logits, temperature)
    theirs = dist.RelaxedOneHotCategorical(torch.tensor(temperature, dtype=torch.float64), logits=logits)
    # x(z) = softmax(z, 0) in its first three coordinates; |dx / dz| = x_1 x_2 x_3 x_4
    for z in doubles(5, 3):
        x = torch.cat((z, z.new_zeros(1))).softmax(0)
        slope = torch.autograd.functional.jacobian(lambda z: torch.cat((z, z.new_zeros(1))).softmax(0)[:3], z)
        assert slope.det().item() == pytest.approx(x.prod().item())
        assert ours.log_prob(z).item() == pytest.approx((theirs.log_prob(x) + slope.det().log()).item())
    two = LogitRelaxedOneHot(torch.tensor([0.8, -0.3], dtype=torch.float64), temperature)
    z = doubles(20)
    bit = LogitRelaxedBernoulli(torch.tensor(1.1, dtype=torch.float64), temperature)
    torch.testing.assert_close(two.log_prob(z[:, None]), bit.log_prob(z))
    torch.testing.assert_close(two.variance[0], bit.variance)

    torch.manual_seed(suite_seed(0))
    draws = ours.expand((2,)).rsample((20_000,))
    assert draws.shape == (20_000, 2, 3)
    assert_within_standard_errors(draws.mean(0), ours.mean.expand(2, 3), draws.std(0) / math.sqrt(20_000))
    squares = (draws - ours.mean).square()
    assert_within_standard_errors(squares.mean(0), ours.variance.expand(2, 3), squares.std(0) / math.sqrt(20_000))
    # The largest element falls on each class as often as a categorical with these logits does.
    first = torch.cat((draws, draws.new_zeros(20_000, 2, 1)), -1).argmax(-1).flatten()
    shares, expected = first.bincount(minlength=4) / len(first), logits.softmax(0)
    assert_within_standard_errors(shares.double(), expected, (expected * (1 - expected) / len(first)).sqrt())
    with pytest.raises(ValueError, match="support"):
        ours.log_prob(torch.full((3,), math.nan, dtype=torch.float64))
