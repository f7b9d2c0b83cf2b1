"""Distributions of pixels: densities that integrate to 1 and masses that sum to 1, means, draws, gradients."""

import math

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import (
    CHANCE,
    GREY_LEVELS,
    doubles,
    suite_seed,
    unit_quadrature,
)

from pyrovae.models.pixel_distributions import CategoricalLevels, ContinuousBernoulli, DiscretizedLogistic

DTYPES = {torch.float32: 5e-5, torch.float64: 1e-10}  # the largest error of a total or a mean

LOGITS = (-500.0, -100.0, -30.0, -5.0, -0.1001, -0.1, -0.0999, -1e-5, 0.0, 1e-4, 0.0999, 0.1, 0.1001, 2.0, 30.0, 500.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logits", LOGITS)
def test_continuous_bernoulli_integrates_to_one_and_has_the_mean_it_says(logits, dtype):
    x, weights = unit_quadrature()
    family = ContinuousBernoulli(torch.tensor(logits, dtype=dtype))
    density = family.log_prob(x.to(dtype)).double().exp()
    total, mean = (density @ weights).item(), ((density * x) @ weights).item()
    assert total == pytest.approx(1, abs=DTYPES[dtype])
    # The series of the mean has an error of 3e-10 at the end of its range.
    assert family.mean.item() == pytest.approx(mean / total, abs=5 * DTYPES[dtype])


@pytest.mark.parametrize(
    ("logits", "dtype"), [(30.0, torch.float32), (-30.0, torch.float32), (50.0, torch.float64), (-50.0, torch.float64)]
)
def test_torchs_continuous_bernoulli_does_not_integrate_to_one(logits, dtype):
    """Torch clips the probability in its normaliser, which is why we have our own. If this fails, torch has changed."""
    x, weights = unit_quadrature()
    theirs = torch.distributions.ContinuousBernoulli(logits=torch.tensor(logits, dtype=dtype), validate_args=False)
    assert abs(theirs.log_prob(x.to(dtype)).double().exp() @ weights - 1) > 0.25


def test_continuous_bernoulli_is_torchs_where_torchs_is_right():
    logits, x = torch.linspace(-12, 12, 97, dtype=torch.float64), torch.linspace(0, 1, 21, dtype=torch.float64)[:, None]
    ours, theirs = ContinuousBernoulli(logits), torch.distributions.ContinuousBernoulli(logits=logits)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-8)


def test_continuous_bernoulli_stays_finite_with_its_gradient_far_out():
    logits = torch.tensor([-1e8, -1e4, 1e4, 1e8], requires_grad=True)
    log_prob = ContinuousBernoulli(logits).log_prob(torch.tensor([0.3, 0.0, 1.0, 0.3]))
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    assert log_prob.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(log_prob[1:3], torch.full((2,), math.log(1e4)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("logits", [-500.0, -5.0, -1e-3, -1e-5, 0.0, 0.3, 5.0, 500.0])
def test_draws_of_continuous_bernoulli_follow_its_distribution_function(logits):
    draws = ContinuousBernoulli(torch.tensor(logits, dtype=torch.float64)).sample((20_000,))
    exact = scipy.stats.uniform() if logits == 0 else scipy.stats.truncexpon(b=abs(logits), scale=1 / abs(logits))
    # The density of truncexpon falls on [0, 1]; draws from a rising density are mirrored.
    assert scipy.stats.kstest((1 - draws if logits > 0 else draws).numpy(), exact.cdf).pvalue > CHANCE


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_no_draw_of_continuous_bernoulli_leaves_its_support(uniform, monkeypatch):
    logits = torch.cat([sign * torch.logspace(-6, 3, 40_001) for sign in (-1, 1)])
    monkeypatch.setattr(torch, "rand", lambda shape: torch.full(shape, uniform))
    family = ContinuousBernoulli(logits)
    assert family.support.check(family.sample()).all()


@pytest.mark.parametrize("logits", [-40.0, -0.5, -5e-5, 0.0, 5e-5, 1e-3, 0.5, 40.0])
def test_the_gradient_of_a_draw_of_continuous_bernoulli_is_the_implicit_one(logits):
    """x(l) at fixed F(x; l) = expm1(l x) / expm1(l): dx/dl = -(dF/dl) / p(x); near l = 0 that is u (1 - u) / 2."""
    at = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    draws = ContinuousBernoulli(at).rsample((6,))
    found = torch.stack([torch.autograd.grad(draw, at, retain_graph=True)[0] for draw in draws])
    x, free = draws.detach(), at.detach().clone().requires_grad_()
    if abs(logits) < 0.01:
        expected = x * (1 - x) / 2
    else:
        slopes = torch.autograd.functional.jacobian(lambda f: torch.expm1(f * x) / torch.expm1(f), free)
        expected = -slopes / ContinuousBernoulli(at.detach()).log_prob(x).exp()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-4 if abs(logits) < 0.01 else 1e-8)


@pytest.mark.parametrize(
    "logits", [-0.1 - 1e-4, -0.1, -0.1 + 1e-4, -0.02, 0.02, 0.1 - 1e-4, 0.1, 0.1 + 1e-4, 0.0, 7.0, -60.0]
)
def test_the_gradient_of_continuous_bernoulli_is_that_of_its_log_prob_at_the_series_too(logits):
    free = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.001, 0.3, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda at, x: ContinuousBernoulli(at).log_prob(x), (free, x), atol=1e-5)
    near = torch.tensor([logits - 1e-12, logits + 1e-12], dtype=torch.float64)
    assert ContinuousBernoulli(near).mean.diff().abs() < 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_scale", [-20.0, -10.0, -7.0, -5.0, -2.0, 0.0, 5.0])
def test_discretized_logistic_sums_to_one_over_the_levels_wherever_it_is(log_scale, dtype):
    loc = torch.tensor([-1e3, -3.0, 0.0, 0.5 / 255, 0.2, 0.5, 100.5 / 255, 1.0, 4.0, 1e3], dtype=dtype)
    log_prob = DiscretizedLogistic(loc, torch.tensor(log_scale, dtype=dtype)).log_prob(GREY_LEVELS[:, None].to(dtype))
    assert log_prob.isfinite().all()
    totals = log_prob.double().exp().sum(0)
    torch.testing.assert_close(totals, torch.ones_like(totals), rtol=0, atol=DTYPES[dtype])


def test_discretized_logistic_is_the_difference_of_the_distribution_function():
    loc, scale = 0.37, 0.05
    logistic = scipy.stats.logistic(loc, scale)
    steps = logistic.cdf([-math.inf, *((k + 0.5) / 255 for k in range(255)), math.inf])
    family = DiscretizedLogistic(*(torch.tensor(v, dtype=torch.float64) for v in (loc, math.log(scale))))
    expected = torch.from_numpy(steps[1:] - steps[:-1])
    torch.testing.assert_close(family.log_prob(GREY_LEVELS).exp(), expected, rtol=1e-9, atol=1e-15)


def test_discretized_logistic_falls_linearly_in_the_far_tails_and_not_to_minus_infinity():
    """log F(x) ~ x for x far below: seen from n scales away, the mass of level 128 is n nats lower."""
    scale = 1e-3
    loc = torch.tensor([-1.0, -3.0, 4.0, 6.0], requires_grad=True)
    log_scale = torch.tensor(math.log(scale), requires_grad=True)
    log_prob = DiscretizedLogistic(loc, log_scale).log_prob(torch.tensor(128 / 255))
    distance = (loc - 128 / 255).abs() / scale - 0.5 / 255 / scale
    expected = -distance + math.log(-math.expm1(-1 / 255 / scale))
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=0)
    gradients = torch.autograd.grad(log_prob.sum(), (loc, log_scale))
    torch.testing.assert_close(gradients[0], torch.tensor([1, 1, -1, -1]) / scale, rtol=1e-3, atol=0)
    assert gradients[1].isfinite()


@pytest.mark.parametrize("scale", [1e-4, 0.01, 0.3])
def test_the_mean_of_a_discretized_logistic_is_that_of_its_levels(scale):
    """It was the location, clipped, also where the end levels take a tail."""
    loc = torch.tensor([-0.5, -0.05, 0.0, 0.3, 0.5, 100.5 / 255, 1.0, 1.1, 3.0], dtype=torch.float64)
    family = DiscretizedLogistic(loc, torch.tensor(math.log(scale), dtype=torch.float64))
    expected = GREY_LEVELS @ family.log_prob(GREY_LEVELS[:, None]).exp()
    torch.testing.assert_close(family.mean, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.01, 3.0, 100.0])
def test_categorical_levels_are_a_mass_with_the_mean_it_says(spread, dtype):
    logits = (spread * doubles(5, 256)).to(dtype)
    family = CategoricalLevels(logits)
    log_prob = family.log_prob(GREY_LEVELS[:, None].to(dtype)).double()
    assert log_prob.isfinite().all()
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(5, dtype=torch.float64), rtol=0, atol=DTYPES[dtype])
    torch.testing.assert_close(log_prob.T, logits.log_softmax(-1).double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(log_prob.exp().T @ GREY_LEVELS, family.mean.double(), rtol=0, atol=DTYPES[dtype])


def mass_families() -> dict[str, dist.TorchDistribution]:
    return {
        "discretized_logistic, narrow": DiscretizedLogistic(*torch.tensor([0.4, -5.0])),
        "discretized_logistic, at the end": DiscretizedLogistic(*torch.tensor([0.02, -3.0])),
        "discretized_logistic, wide": DiscretizedLogistic(*torch.tensor([0.6, 0.0])),
        "categorical": CategoricalLevels(torch.randn(256, generator=torch.Generator().manual_seed(suite_seed(0)))),
    }


@pytest.mark.parametrize("name", mass_families())
def test_draws_of_a_mass_have_its_frequencies(name):
    family, num = mass_families()[name], 100_000
    draws = family.sample((num,))
    assert draws.shape == (num,)
    assert family.support.check(draws).all()
    counts = torch.bincount((draws * 255).round().long(), minlength=256)
    expected = num * family.log_prob(GREY_LEVELS.float()).exp().double().numpy()
    rare = expected < 20
    observed, expected = ([*v[~rare], *([v[rare].sum()] if rare.any() else [])] for v in (counts.numpy(), expected))
    expected = [value * num / sum(expected) for value in expected]  # the same total up to rounding
    assert scipy.stats.chisquare(observed, expected).pvalue > CHANCE


@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
def test_the_gradient_of_discretized_logistic_is_that_of_its_log_prob_at_the_ends_too(log_scale):
    loc = torch.tensor([-0.2, 0.0, 0.3, 1.0, 1.4], dtype=torch.float64, requires_grad=True)
    free = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    x = GREY_LEVELS[[0, 1, 100, 254, 255]][:, None]
    assert torch.autograd.gradcheck(lambda loc, s: DiscretizedLogistic(loc, s).log_prob(x), (loc, free))


def test_the_gradient_of_categorical_levels_is_that_of_its_log_prob():
    logits = doubles(2, 256).requires_grad_()
    x = GREY_LEVELS[[0, 255]]
    (gradient,) = torch.autograd.grad(CategoricalLevels(logits).log_prob(x).sum(), logits)
    expected = -logits.detach().softmax(-1)
    expected[[0, 1], [0, 255]] += 1
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
