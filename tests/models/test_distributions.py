"""Families of our own and the likelihoods built on them: densities that sum or integrate to 1, means, draws, bounds."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import CHANCE, assert_within_standard_errors, doubles, refusal, suite_seed
from numpy.polynomial.legendre import leggauss
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli as LogitOfPyTorch

import pyrovae as pv
from pyrovae.models.distributions import (
    CategoricalLevels,
    ContinuousBernoulli,
    DiscretizedLogistic,
    IsotropicNormal,
    LogitRelaxedBernoulli,
    LogitRelaxedOneHot,
    mixture_of,
)
from pyrovae.objectives.registry import from_name

DTYPES = {torch.float32: 5e-5, torch.float64: 1e-10}  # with what a total or a mean may be off by
LOGITS = (-500.0, -100.0, -30.0, -5.0, -0.1001, -0.1, -0.0999, -1e-5, 0.0, 1e-4, 0.0999, 0.1, 0.1001, 2.0, 30.0, 500.0)
LEVELS = torch.arange(256, dtype=torch.float64) / 255


def unit_quadrature(panels: int = 64, order: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre on each of the `panels` of [0, 1], in float64."""
    nodes, weights = (torch.from_numpy(values) for values in leggauss(order))
    left = torch.arange(panels, dtype=torch.float64)[:, None]
    return ((left + (nodes + 1) / 2) / panels).flatten(), (weights / (2 * panels)).repeat(panels)


# ContinuousBernoulli ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logits", LOGITS)
def test_continuous_bernoulli_integrates_to_one_and_has_the_mean_it_says(logits, dtype):
    x, weights = unit_quadrature()
    family = ContinuousBernoulli(torch.tensor(logits, dtype=dtype))
    density = family.log_prob(x.to(dtype)).double().exp()
    total, mean = (density @ weights).item(), ((density * x) @ weights).item()
    assert total == pytest.approx(1, abs=DTYPES[dtype])
    # The mean's own series stops at a^3: what is left out is 3e-10 where it is left.
    assert family.mean.item() == pytest.approx(mean / total, abs=5 * DTYPES[dtype])


@pytest.mark.parametrize(
    ("logits", "dtype"), [(30.0, torch.float32), (-30.0, torch.float32), (50.0, torch.float64), (-50.0, torch.float64)]
)
def test_torchs_continuous_bernoulli_does_not_integrate_to_one(logits, dtype):
    """Why ours is there: torch's clips the probability in its normaliser. If this fails, torch has changed."""
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
    # truncexpon falls on [0, 1]: for a rising density the draws are mirrored.
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


# DiscretizedLogistic and CategoricalLevels ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_scale", [-20.0, -10.0, -7.0, -5.0, -2.0, 0.0, 5.0])
def test_discretized_logistic_sums_to_one_over_the_levels_wherever_it_is(log_scale, dtype):
    loc = torch.tensor([-1e3, -3.0, 0.0, 0.5 / 255, 0.2, 0.5, 100.5 / 255, 1.0, 4.0, 1e3], dtype=dtype)
    log_prob = DiscretizedLogistic(loc, torch.tensor(log_scale, dtype=dtype)).log_prob(LEVELS[:, None].to(dtype))
    assert log_prob.isfinite().all()
    totals = log_prob.double().exp().sum(0)
    torch.testing.assert_close(totals, torch.ones_like(totals), rtol=0, atol=DTYPES[dtype])


def test_discretized_logistic_is_the_difference_of_the_distribution_function():
    loc, scale = 0.37, 0.05
    logistic = scipy.stats.logistic(loc, scale)
    steps = logistic.cdf([-math.inf, *((k + 0.5) / 255 for k in range(255)), math.inf])
    family = DiscretizedLogistic(*(torch.tensor(v, dtype=torch.float64) for v in (loc, math.log(scale))))
    expected = torch.from_numpy(steps[1:] - steps[:-1])
    torch.testing.assert_close(family.log_prob(LEVELS).exp(), expected, rtol=1e-9, atol=1e-15)


def test_discretized_logistic_falls_linearly_in_the_far_tails_and_not_to_minus_infinity():
    """log F(x) ~ x for x far below: the mass of level 128 seen from so many scales away is that many nats down."""
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


@pytest.mark.parametrize("loc", [0.3, 0.5, 100.5 / 255])
def test_the_mean_of_a_discretized_logistic_is_that_of_its_levels_away_from_the_ends(loc):
    family = DiscretizedLogistic(*torch.tensor([loc, math.log(0.01)], dtype=torch.float64))
    assert (family.log_prob(LEVELS).exp() @ LEVELS).item() == pytest.approx(family.mean.item(), abs=1e-9)


def test_the_mean_of_a_discretized_logistic_is_a_grey_level_wherever_its_location_is():
    family = DiscretizedLogistic(torch.tensor([-0.5, 0.0, 0.25, 1.0, 3.0]), torch.tensor(-4.0))
    assert family.mean.tolist() == [0.0, 0.0, 0.25, 1.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.01, 3.0, 100.0])
def test_categorical_levels_are_a_mass_with_the_mean_it_says(spread, dtype):
    logits = (spread * doubles(5, 256)).to(dtype)
    family = CategoricalLevels(logits)
    log_prob = family.log_prob(LEVELS[:, None].to(dtype)).double()
    assert log_prob.isfinite().all()
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(5, dtype=torch.float64), rtol=0, atol=DTYPES[dtype])
    torch.testing.assert_close(log_prob.T, logits.log_softmax(-1).double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(log_prob.exp().T @ LEVELS, family.mean.double(), rtol=0, atol=DTYPES[dtype])


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
    expected = num * family.log_prob(LEVELS.float()).exp().double().numpy()
    rare = expected < 20
    observed, expected = ([*v[~rare], *([v[rare].sum()] if rare.any() else [])] for v in (counts.numpy(), expected))
    expected = [value * num / sum(expected) for value in expected]  # the same total, to rounding
    assert scipy.stats.chisquare(observed, expected).pvalue > CHANCE


# All families -------------------------------------------------------------------------------------------------------


def families(shape: tuple[int, ...], dtype=torch.float64) -> dict[str, tuple]:
    """Name to (constructor, parameters of batch shape `shape`, a value of that shape)."""
    parameter = torch.randn(shape, dtype=dtype)
    level = (255 * torch.rand(shape)).round().to(dtype) / 255
    return {
        "IsotropicNormal": (IsotropicNormal, (parameter, torch.tensor(-0.7, dtype=dtype)), torch.randn_like(parameter)),
        "LogitRelaxedBernoulli": (
            partial(LogitRelaxedBernoulli, temperature=0.7),
            (parameter,),
            2 * parameter,
        ),
        "ContinuousBernoulli": (ContinuousBernoulli, (5 * parameter,), torch.rand_like(parameter)),
        "DiscretizedLogistic": (DiscretizedLogistic, (parameter, torch.tensor(-1.5, dtype=dtype)), level),
        "CategoricalLevels": (CategoricalLevels, (torch.randn(*shape, 256, dtype=dtype),), level),
    }


NAMES = tuple(families(()))


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_mean_and_the_variance_of_the_density(name):
    make, parameters, _ = families((6,))[name]
    family, num = make(*parameters), 20_000
    draws = family.sample((num,))
    if name == "IsotropicNormal":
        mean, variance = parameters[0], torch.full((6,), math.exp(-1.4), dtype=torch.float64)
    elif name == "LogitRelaxedBernoulli":
        mean, variance = family.mean, family.variance
    else:
        points, weights = unit_quadrature() if name == "ContinuousBernoulli" else (LEVELS, torch.ones_like(LEVELS))
        mass = family.log_prob(points[:, None]).exp() * weights[:, None]
        mean, variance = points @ mass, points.square() @ mass - (points @ mass).square()
    assert_within_standard_errors(draws.mean(0), mean, draws.std(0) / math.sqrt(num))
    squares = (draws - mean).square()
    assert_within_standard_errors(squares.mean(0), variance, squares.std(0) / math.sqrt(num))


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_broadcasts_leading_particle_dimensions_of_parameters_and_values(name):
    make, (first, *rest), _ = families((5, 2, 3))[name]
    value = families((2, 3))[name][2]
    together = make(first, *rest).to_event(1)
    assert together.batch_shape == (5, 2)
    alone = torch.stack([make(particle, *rest).to_event(1).log_prob(value) for particle in first])
    torch.testing.assert_close(together.log_prob(value), alone, rtol=1e-12, atol=1e-12)
    values = families((5, 2, 3))[name][2]
    one = make(first[0], *rest).to_event(2)
    expected = torch.stack([one.log_prob(v) for v in values])
    torch.testing.assert_close(one.log_prob(values), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_an_expanded_family_is_the_family_at_every_place(name):
    make, parameters, value = families((2, 3))[name]
    family = make(*parameters)
    for wide in (family.expand((4, 2, 3)).to_event(1), family.to_event(1).expand(torch.Size((4, 2)))):
        assert wide.batch_shape == (4, 2)
        assert wide.event_shape == (3,)
        expected = family.log_prob(value).sum(-1).expand(4, 2)
        torch.testing.assert_close(wide.log_prob(value.expand(4, 2, 3)), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(wide.mean, family.mean.expand(4, 2, 3), rtol=1e-12, atol=1e-12)
        draws = wide.sample((7,))
        assert draws.shape == (7, 4, 2, 3)
        assert (draws[:, 0] != draws[:, 1]).any()
        assert draws.dtype == torch.float64


OUTSIDE = {
    "ContinuousBernoulli": (-0.01, 1.01, math.nan),
    "DiscretizedLogistic": (-1 / 255, 256 / 255, 0.5, 0.5 / 255, math.nan),
    "CategoricalLevels": (-1 / 255, 256 / 255, 0.5, 0.5 / 255, math.nan),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OUTSIDE.items() for value in values])
def test_a_value_outside_the_support_has_no_log_prob(name, value):
    make, parameters, inside = families((3,))[name]
    family = make(*parameters)
    assert family.support.check(inside).all()
    x = inside.clone()
    x[1] = value
    assert family.support.check(x).tolist() == [True, False, True]
    for one in (family, family.to_event(1), family.expand((2, 3))):
        with pytest.raises(ValueError, match="support"):
            one.log_prob(x)


@pytest.mark.parametrize(
    "logits", [-0.1 - 1e-4, -0.1, -0.1 + 1e-4, -0.02, 0.02, 0.1 - 1e-4, 0.1, 0.1 + 1e-4, 0.0, 7.0, -60.0]
)
def test_the_gradient_of_continuous_bernoulli_is_that_of_its_log_prob_at_the_series_too(logits):
    free = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.001, 0.3, 0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda at, x: ContinuousBernoulli(at).log_prob(x), (free, x), atol=1e-5)
    near = torch.tensor([logits - 1e-12, logits + 1e-12], dtype=torch.float64)
    assert ContinuousBernoulli(near).mean.diff().abs() < 1e-9


@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
def test_the_gradient_of_discretized_logistic_is_that_of_its_log_prob_at_the_ends_too(log_scale):
    loc = torch.tensor([-0.2, 0.0, 0.3, 1.0, 1.4], dtype=torch.float64, requires_grad=True)
    free = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    x = LEVELS[[0, 1, 100, 254, 255]][:, None]
    assert torch.autograd.gradcheck(lambda loc, s: DiscretizedLogistic(loc, s).log_prob(x), (loc, free))


def test_the_gradient_of_categorical_levels_is_that_of_its_log_prob():
    logits = doubles(2, 256).requires_grad_()
    x = LEVELS[[0, 255]]
    (gradient,) = torch.autograd.grad(CategoricalLevels(logits).log_prob(x).sum(), logits)
    expected = -logits.detach().softmax(-1)
    expected[[0, 1], [0, 255]] += 1
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("log_scale", [-6.0, 0.0, 3.0])
def test_isotropic_normal_is_normal_to_rounding(log_scale, dtype, rtol):
    loc, log_scale = torch.randn(4, 3, dtype=dtype), torch.tensor(log_scale, dtype=dtype)
    ours, theirs = IsotropicNormal(loc, log_scale), dist.Normal(loc, log_scale.exp())
    x = torch.randn(5, 4, 3, dtype=dtype)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=rtol, atol=rtol)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=0)
    torch.testing.assert_close(ours.variance, theirs.variance, rtol=rtol, atol=0)


def test_the_kl_to_and_from_an_isotropic_normal_is_the_closed_form():
    loc, scale = doubles(5, 3), (0.3 * doubles(5, 3)).exp()
    mean, log_scale = doubles(3), torch.tensor(0.4, dtype=torch.float64)
    p, q = IsotropicNormal(mean, log_scale), dist.Normal(loc, scale)

    def formula(m1, s1, m2, s2):
        return torch.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5

    s = log_scale.exp()
    torch.testing.assert_close(kl_divergence(q, p), formula(loc, scale, mean, s))
    torch.testing.assert_close(kl_divergence(p, q), formula(mean, s, loc, scale))
    wide = p.expand((5, 3)).to_event(1)
    torch.testing.assert_close(kl_divergence(q.to_event(1), wide), formula(loc, scale, mean, s).sum(-1))


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
def test_the_logits_of_a_relaxed_category_are_the_gumbel_softmax_in_other_coordinates(temperature):
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
    # The largest is of each class as often as a categorical of these logits is.
    first = torch.cat((draws, draws.new_zeros(20_000, 2, 1)), -1).argmax(-1).flatten()
    shares, expected = first.bincount(minlength=4) / len(first), logits.softmax(0)
    assert_within_standard_errors(shares.double(), expected, (expected * (1 - expected) / len(first)).sqrt())
    with pytest.raises(ValueError, match="support"):
        ours.log_prob(torch.full((3,), math.nan, dtype=torch.float64))


def gaussians(*batch, dtype=torch.float64, locs=2.0, narrowest=0.01):
    """Weights of seven components and what they are of: locations far apart in their own widths."""
    weights = dist.Categorical(logits=torch.randn(*batch, 7, dtype=dtype))
    loc, scale = locs * torch.randn(*batch, 7, 5, dtype=dtype), narrowest + torch.rand(*batch, 7, 5, dtype=dtype)
    return weights, loc, scale


@pytest.mark.parametrize("locs", [0.5, 3.0, 300.0])
def test_a_mixture_of_gaussians_by_one_product_is_the_mixture_in_float32_as_precisely_as_pytorchs(locs):
    weights, loc, scale = gaussians(locs=locs, dtype=torch.float32)
    z = (loc[:, None] + scale[:, None] * torch.randn(7, 30, 5)).flatten(0, 1)
    exact = dist.MixtureSameFamily(
        dist.Categorical(logits=weights.logits.double()), dist.Normal(loc.double(), scale.double()).to_event(1)
    ).log_prob(z.double())
    components = dist.Normal(loc, scale).to_event(1)
    ours, theirs = mixture_of(weights, components), dist.MixtureSameFamily(weights, components)
    assert type(ours) is not type(theirs)
    errors = [(p.log_prob(z).double() - exact).abs().max() for p in (ours, theirs)]
    assert errors[0] < 2 * errors[1] + 1e-6
    assert ours.log_prob(z).dtype == torch.float32


def test_a_mixture_of_gaussians_has_pytorchs_gradients_shapes_and_draws():
    weights, loc, scale = gaussians(dtype=torch.float32)
    z = (loc[:6] + 0.3 * torch.randn(6, 5)).view(3, 2, 5)
    free = [weights.logits.clone(), loc, scale, z]

    def both(logits, loc, scale, z):
        parts = dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1)
        return [make(*parts).expand((4, 3, 2)).log_prob(z) for make in (mixture_of, dist.MixtureSameFamily)]

    ours, theirs = both(*(one.requires_grad_() for one in free))
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(value.square().sum(), free, retain_graph=True) for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)

    p = mixture_of(weights, dist.Normal(loc.detach(), scale.detach()).to_event(1))
    wide = p.expand((3, 1)).expand((3, 2))
    assert wide.log_prob(z[0, 0]).shape == (3, 2)  # broadcast, as any distribution's
    draws = p.sample((20_000,)).detach()
    assert_within_standard_errors(draws.mean(0), p.mean, draws.std(0) / math.sqrt(len(draws)))
    with pytest.raises(ValueError, match="support"):
        p.log_prob(z.detach() * math.nan)


def test_mixtures_of_anything_else_are_pytorchs():
    weights, loc, scale = gaussians(3, dtype=torch.float32)

    class HalfNormal(dist.Normal):  # of another density
        pass

    for components in (
        dist.Normal(loc, scale).to_event(1),  # a mixture for each of a batch
        dist.Normal(loc[0].double(), scale[0].double()).to_event(1),  # whose rounding is nothing to be saved at
        HalfNormal(loc[0], scale[0]).to_event(1),
        dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale)),
        dist.Laplace(loc, scale).to_event(1),
    ):
        of = dist.Categorical(logits=weights.logits[0]) if components.batch_shape == (7,) else weights
        assert type(mixture_of(of, components)) is dist.MixtureSameFamily


# Likelihoods --------------------------------------------------------------------------------------------------------


LIKELIHOODS = {
    "bernoulli": pv.Bernoulli,
    "bernoulli, grey": lambda: pv.Bernoulli(allow_grey=True),
    "continuous_bernoulli": pv.ContinuousBernoulli,
    "gaussian": lambda: pv.Gaussian(0.5),
    "gaussian, learned": lambda: pv.Gaussian(0.5, learn_scale=True),
    "gaussian, predicted": lambda: pv.HeteroscedasticGaussian(min_scale=0.1),
    "categorical": pv.Categorical,
    "discretized_logistic": pv.DiscretizedLogistic,
}


def test_every_likelihood_that_is_public_is_tested_here():
    public = {v for v in vars(pv).values() if isinstance(v, type) and issubclass(v, pv.Likelihood)} - {pv.Likelihood}
    assert public == {type(make()) for make in LIKELIHOODS.values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_output_bias_inverts_the_mean(name, dtype):
    likelihood = LIKELIHOODS[name]()
    mean = torch.tensor([[[0.01, 0.2, 0.4999], [0.5, 0.7, 0.99]]], dtype=dtype)
    bias = likelihood.output_bias(mean)
    assert bias.shape == likelihood.output_shape(mean.shape)
    found = likelihood(bias, event_dim=3)
    assert found.batch_shape == ()
    assert found.event_shape == mean.shape
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=3e-6 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "categorical"])
def test_the_output_bias_is_finite_for_a_pixel_that_is_always_black_or_white(name):
    likelihood = LIKELIHOODS[name]()
    bias = likelihood.output_bias(torch.tensor([0.0, 1e-6, 1.0]))
    assert bias.isfinite().all()
    torch.testing.assert_close(likelihood(bias, 1).mean, torch.tensor([0.001, 0.001, 0.999]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_a_vae_starts_from_the_data_mean_of_each_pixel(name, network):
    mean = torch.linspace(0.05, 0.95, 16).reshape(1, 4, 4)
    settings = {"latent_dim": 2, "hidden": (3,), "network": network, "likelihood": LIKELIHOODS[name]()}
    vae = pv.VAE((1, 4, 4), **settings, data_mean=mean)
    with torch.no_grad():
        for key, parameter in vae.decoder.named_parameters():
            if "output" not in key or "weight" in key:
                parameter.zero_()
    torch.testing.assert_close(vae.sample(3, mean=True), mean.expand(3, 1, 4, 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_takes_any_leading_dimensions(name):
    likelihood, event_shape = LIKELIHOODS[name](), (2, 3)
    outputs = torch.randn(4, 5, *likelihood.output_shape(event_shape))
    x = (torch.rand(5, *event_shape) > 0.5).float()
    together = likelihood(outputs, event_dim=2)
    assert together.batch_shape == (4, 5)
    assert together.sample().shape == together.mean.shape == (4, 5, *event_shape)
    for k in range(4):
        torch.testing.assert_close(together.log_prob(x)[k], likelihood(outputs[k], event_dim=2).log_prob(x))


def test_heteroscedastic_gaussian_is_the_normal_of_the_formula():
    outputs, x = 2 * doubles(5, 2, 3, 4), doubles(5, 3, 4)
    loc, scale = outputs[:, 0], 0.1 + (1 + outputs[:, 1].exp()).log()
    expected = -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    found = pv.HeteroscedasticGaussian(min_scale=0.1)(outputs, event_dim=2)
    torch.testing.assert_close(found.log_prob(x), expected.sum((1, 2)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.variance, scale**2)


def test_the_floor_of_heteroscedastic_gaussian_bounds_the_density_of_a_constant_pixel():
    likelihood, x = pv.HeteroscedasticGaussian(min_scale=0.05), torch.zeros(1)
    bound = -math.log(0.05) - 0.5 * math.log(2 * math.pi)
    for raw in (0.0, -5.0, -50.0, -1e6):
        found = likelihood(torch.tensor([[0.0], [raw]]), event_dim=1)
        assert found.stddev.item() >= 0.05
        assert found.log_prob(x).item() <= bound + 1e-6
    assert found.log_prob(x).item() == pytest.approx(bound, abs=1e-5)


@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, None, "0.1", True])
@pytest.mark.parametrize(
    ("make", "field"),
    [(pv.HeteroscedasticGaussian, "min_scale"), (pv.DiscretizedLogistic, "scale"), (pv.Gaussian, "scale")],
)
def test_a_scale_that_is_no_positive_number_is_refused(make, field, value):
    assert refusal(make, value) == f"{field} must be a finite number > 0, got {value!r}"


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("continuous_bernoulli", [0.0, 0.3, 1.0], -0.25, "x must lie in [0, 1], got -0.25 at index (1, 2)"),
        ("continuous_bernoulli", [0.0, 0.3, 1.0], 1.5, "x must lie in [0, 1], got 1.5 at index (1, 2)"),
        ("categorical", [0.0, 7 / 255, 1.0], 0.5, "x must be one of the 256 grey levels k / 255, got 0.5 at index (1"),
        ("categorical", [0.0, 7 / 255, 1.0], 256 / 255, "x must be one of the 256 grey levels k / 255, got 1.00392"),
        ("discretized_logistic", [0.0, 7 / 255, 1.0], -1 / 255, "x must be one of the 256 grey levels k / 255, got -0"),
        ("discretized_logistic", [0.0, 7 / 255, 1.0], 7.0, "x must be one of the 256 grey levels k / 255, got 7 at"),
    ],
)
def test_data_outside_the_support_are_refused_by_value_and_index(name, good, bad, message):
    likelihood = LIKELIHOODS[name]()
    x = torch.tensor([good, good])
    likelihood.check(x)
    x[1, 2] = bad
    assert refusal(likelihood.check, x).startswith(message)


def test_all_256_grey_levels_of_an_image_are_levels():
    x = torch.arange(256, dtype=torch.uint8).float() / 255
    for name in ("categorical", "discretized_logistic", "continuous_bernoulli"):
        LIKELIHOODS[name]().check(x)


def test_only_grey_pixels_under_a_bernoulli_have_no_density():
    grey = torch.tensor([0.0, 51 / 255])
    assert not pv.Bernoulli(allow_grey=True).has_density(grey)
    assert pv.Bernoulli(allow_grey=True).has_density(torch.tensor([0.0, 1.0]))
    for name in set(LIKELIHOODS) - {"bernoulli", "bernoulli, grey"}:
        assert LIKELIHOODS[name]().has_density(grey)


@pytest.mark.parametrize("name", ["discretized_logistic", "gaussian, learned"])
def test_a_learned_scale_goes_to_that_of_the_data(name):
    """Data of one known spread about a mean that stays where it is: the best scale is that spread."""
    x = (torch.full((2_000, 1), 0.5) + 0.06 * torch.randn(2_000, 1)).mul(255).round() / 255
    vae = pv.VAE((1,), latent_dim=1, hidden=(), likelihood=LIKELIHOODS[name](), data_mean=torch.tensor([0.5]))
    with torch.no_grad():
        vae.decoder.output.weight.zero_()

    def adam_of_the_scale(parameters, lr):
        return torch.optim.Adam([p for p in parameters if p is vae.likelihood.log_scale], lr)

    pv.fit(
        vae, x, epochs=30, lr=0.1, batch_size=500, schedule="cosine", seed=suite_seed(0), optimizer=adam_of_the_scale
    )
    # The standard deviation of a logistic is its scale times pi / sqrt(3); its best fit to a Gaussian is a little off.
    factor = math.pi / math.sqrt(3) if name == "discretized_logistic" else 1.0
    assert vae.likelihood.log_scale.exp().item() * factor == pytest.approx(0.06, rel=0.08)


# Worked numbers of the tutorials -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "nll"),
    [((1, -0.5, 0.7), 0.6774), ((0.8, -0.4, 0.9), 0.8574), ((0, 0, 0), 4.1574), ((2, -1, 1.4), 4.1574)],
)
def test_the_worked_gaussian_negative_log_likelihoods(mean, nll):
    x, outputs = (torch.tensor(values, dtype=torch.float64) for values in ((1.0, -0.5, 0.7), mean))
    assert -pv.Gaussian(0.5)(outputs, event_dim=1).log_prob(x).item() == pytest.approx(nll, abs=5e-5)


def test_the_worked_bernoulli_example_has_the_published_reconstruction_kl_and_total(monkeypatch):
    vae = pv.VAE((4,), latent_dim=2, hidden=(), likelihood=pv.Bernoulli()).double()
    mu, log_variance, z, b = (
        torch.tensor(values, dtype=torch.float64)
        for values in ((0.5, -0.3), (-0.2, 0.4), (-0.80355319, 0.88486174), (0.1, -0.2, 0.0, 0.3))
    )
    w = torch.tensor([[1.2, -0.7, 0.5, 1.0], [-0.4, 0.8, 1.1, -0.6]], dtype=torch.float64)
    with torch.no_grad():
        vae.encoder.output.weight.zero_()
        vae.encoder.set_output_bias(torch.stack((mu, log_variance)))
        vae.decoder.output.weight.copy_(w.T)
        vae.decoder.set_output_bias(b)
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    model = poutine.trace(poutine.condition(vae.model, {"z": z[None]})).get_trace(x)
    model.compute_log_prob()
    assert -model.nodes["x"]["log_prob"].item() == pytest.approx(4.62873, abs=5e-6)
    assert pv.diagnostics.kl_per_dimension(vae, x).sum().item() == pytest.approx(0.225278, abs=5e-7)
    noise = (z - mu) / (0.5 * log_variance).exp()
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, **_: noise.expand(shape))
    assert from_name("elbo_analytic_kl").loss(vae.model, vae.guide, x) == pytest.approx(4.854008, abs=1e-6)
