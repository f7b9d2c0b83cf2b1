"""The Renyi bound at every alpha: near 1, above it and below 0, with weights of 0, and where it goes with K."""

import math

import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error
from torch.distributions import Normal

from pyrovae.objectives import Renyi

ONE = torch.ones(())
NEAR_ONE = [1 + sign * 10.0**-digits for digits in (1, 2, 4, 6, 8, 12, 15) for sign in (-1, 1)]


@pytest.mark.parametrize("alpha", [-3.0, -0.5, 0.0, 0.5, *NEAR_ONE, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("level", [0.0, -100.0, -3e4])
def test_float32_is_float64_to_rounding_at_every_alpha(alpha, level):
    """The plain formula gives -99.66 for -99.92 at 1 - 1e-6: a difference of two numbers near 1, divided by 1e-6."""
    log_weights = level + 3 * torch.randn(50, 6)
    objective = Renyi(50, alpha=alpha)
    exact = objective.bound(log_weights.double())
    rounding = 1e-6 * max(20, abs(level))
    assert (objective.bound(log_weights) - exact).abs().max() < rounding
    powers = (1 - alpha) * log_weights.double()
    if abs(1 - alpha) > 1e-3:
        plain = (powers.logsumexp(0) - math.log(50)) / (1 - alpha)
        torch.testing.assert_close(exact, plain, rtol=1e-11, atol=1e-11)
    weights = objective.coefficients(log_weights, ONE).model
    torch.testing.assert_close(weights.double(), powers.softmax(0), rtol=1e-4 * max(1, abs(level) / 1e3), atol=1e-6)


@pytest.mark.parametrize("alpha", NEAR_ONE)
def test_value_and_gradient_are_continuous_at_one(alpha):
    """To first order the bound at 1 + h is the ELBO minus h / 2 times the variance of the log-weights."""
    log_weights, h = 3 * torch.randn(50, 6) - 100, alpha - 1
    at_one, near = Renyi(50, alpha=1), Renyi(50, alpha=alpha)
    slope = (at_one.bound(log_weights) - near.bound(log_weights)).double()
    expected = h / 2 * log_weights.double().var(0, unbiased=False)
    assert (slope - expected).abs().max() < 40 * h**2 + 5e-5
    coefficients = (near.coefficients(log_weights, ONE).model - at_one.coefficients(log_weights, ONE).model).abs()
    assert coefficients.max() < abs(h) + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1 - 1e-3, 1.0, 1 + 1e-9, 1.5, 3.0])
def test_a_weight_of_zero_counts_as_zero_below_one_and_decides_alone_from_one_on(alpha, dtype):
    none = torch.tensor([-100.0, -101.0, -103.0], dtype=dtype)
    log_weights = torch.stack(
        (none, torch.cat((none[:2], none.new_tensor([-math.inf]))), torch.full_like(none, -math.inf))
    )
    objective = Renyi(3, alpha=alpha)
    full, one_zero, all_zero = objective.bound(log_weights.T).tolist()
    assert math.isfinite(full)
    assert all_zero == -math.inf
    if alpha < 1:
        two = Renyi(2, alpha=alpha).bound(none[:2].unsqueeze(1)).item()
        assert one_zero == pytest.approx(two + math.log(2 / 3) / (1 - alpha), rel=1e-5)
    else:
        assert one_zero == -math.inf
    weights = objective.coefficients(log_weights.T, ONE).model
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(0), torch.ones(3, dtype=dtype))
    if alpha != 1:
        assert weights[2, 1] == (0 if alpha < 1 else 1)


def log_weights(num_particles: int, num: int) -> torch.Tensor:
    """Returns log-weights of z ~ N(0, 1), x = 1.5 ~ N(z, 0.7), q = N(0.7, 0.8), which have all moments used here."""
    z = 0.7 + 0.8 * torch.randn(num_particles, num, dtype=torch.float64)
    x = torch.tensor(1.5, dtype=torch.float64)
    return Normal(0.0, 1.0).log_prob(z) + Normal(z, 0.7).log_prob(x) - Normal(0.7, 0.8).log_prob(z)


def limit(alpha: float) -> float:
    """Returns 1/(1 - alpha) log E_q[w^(1 - alpha)], by quadrature."""
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    q, x = Normal(0.7, 0.8).log_prob(z), torch.tensor(1.5, dtype=torch.float64)
    log_w = Normal(0.0, 1.0).log_prob(z) + Normal(z, 0.7).log_prob(x) - q
    return (((1 - alpha) * log_w + q).logsumexp(0) + math.log(24 / 20_000)).item() / (1 - alpha)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.2, 1.4])
def test_with_k_the_mean_goes_from_the_elbo_to_its_limit(alpha):
    """The mean moves upwards below alpha = 1 and downwards above it, as the docstring says."""
    log_px, sizes = Normal(0.0, math.sqrt(1.49)).log_prob(torch.tensor(1.5)).item(), (1, 4, 16, 64)
    means, errors = zip(
        *(mean_and_error(Renyi(size, alpha=alpha).bound(log_weights(size, 20_000))) for size in sizes), strict=True
    )
    elbo, elbo_error = mean_and_error(log_weights(1, 100_000)[0])
    assert_within_standard_errors(means[0], elbo, (errors[0] ** 2 + elbo_error**2).sqrt())
    upwards = 1 if alpha < 1 else -1
    for before, after, error in zip(means, means[1:], errors[1:], strict=False):
        assert upwards * (after - before) > 3 * error
    assert upwards * (limit(alpha) - means[-1]) > -3 * errors[-1]
    assert (limit(alpha) > log_px + 1e-3) == (alpha < 0)
    assert means[0] < log_px
    assert (means[-1] > log_px) == (alpha < 0)  # a lower bound at K = 1, and none at K = 64
