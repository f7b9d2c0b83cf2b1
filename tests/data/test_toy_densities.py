"""The toy densities against quadrature, a Fourier series and sums written by hand."""

import functools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from helpers import (
    NUM_ARMS,
    RADIAL_STD,
    RATE,
    RINGS,
    TANGENTIAL_STD,
    TOYS,
    assert_within_standard_errors,
    centres,
    mean_and_error,
    polar,
    suite_seed,
)
from torch import Tensor

import pyrovae as pv


def log_density(name: str, x: Tensor) -> Tensor:
    """Returns the log-density, computed in chunks that stay in the processor's cache."""
    density = pv.load(name, num_train=1, num_validation=0, num_test=1).log_density
    return torch.cat([density(chunk) for chunk in x.split(100 if name == "pinwheel" else 20_000)])


def gauss_legendre(low: float, high: float, num: int) -> tuple[Tensor, Tensor]:
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(num))
    return low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2


@functools.cache
def quadrature(name: str) -> tuple[Tensor, Tensor]:
    """Returns the log-densities at the nodes of a quadrature rule for the plane, and the rule's weights.

    The rings take trapezoids on a square. The pinwheel's outer arms are too thin for a square grid, so it takes
    trapezoids in the angle, over the turn after which it repeats (tested below), and Gauss-Legendre in the radius.
    """
    if name == "pinwheel":
        radius, radius_weight = gauss_legendre(0.0, 3.0, 40)
        angle = torch.arange(80, dtype=torch.float64) * (2 * math.pi / NUM_ARMS / 80)
        nodes = polar(radius[:, None], angle).flatten(0, 1)
        return log_density(name, nodes), (radius * radius_weight).repeat_interleave(80) * (2 * math.pi / 80)
    _, radius, std = RINGS[name]
    side = torch.linspace(-radius - 9 * std, radius + 9 * std, 140, dtype=torch.float64)
    weight = torch.full((140 * 140,), ((side[1] - side[0]) ** 2).item(), dtype=torch.float64)
    return log_density(name, torch.cartesian_prod(side, side)), weight


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_density_integrates_to_one(name):
    log_p, weight = quadrature(name)
    assert (weight * log_p.exp()).sum().item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", TOYS)
def test_the_mean_log_density_of_draws_is_minus_the_entropy(name):
    log_p, weight = quadrature(name)
    draws = pv.load(name, num_train=5_000, num_validation=0, seed=suite_seed(3))
    estimate, error = mean_and_error(log_density(name, draws.train_x.double()))
    assert error < 0.025
    assert_within_standard_errors(estimate, (weight * log_p.exp() * log_p).sum(), error)


@pytest.mark.parametrize("name", RINGS)
def test_a_ring_has_the_log_density_of_the_mixture_written_by_hand(name):
    num_modes, radius, std = RINGS[name]
    x = torch.randn(200, 2, dtype=torch.float64) * (2 * radius)
    for point, found in zip(x.tolist(), log_density(name, x).tolist(), strict=True):
        squares = [math.dist(point, centre) ** 2 / (2 * std**2) for centre in centres(name).tolist()]
        nearest = min(squares)
        total = sum(math.exp(nearest - square) for square in squares)
        expected = math.log(total) - nearest - math.log(num_modes) - math.log(2 * math.pi * std**2)
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def pinwheel_map(u: Tensor, arm: Tensor) -> Tensor:
    """Returns x = R(angle) u for one point, as the pinwheel is drawn."""
    angle = 2 * math.pi * arm / NUM_ARMS + RATE * u[0].exp()
    rotation = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).reshape(2, 2)
    return rotation @ u


def test_the_pinwheel_follows_the_change_of_variables_where_one_arm_dominates():
    """Autograd gives the Jacobian. Other preimages (the next has u_1 < 0, across the centre) count below 1e-7."""
    along, across = torch.linspace(0.9, 1.9, 16), torch.linspace(-0.13, 0.13, 9)
    u = torch.cartesian_prod(along, across).double()
    arm = torch.arange(len(u), dtype=torch.float64) % NUM_ARMS
    x = torch.vmap(pinwheel_map)(u, arm)
    jacobian = torch.vmap(torch.func.jacrev(pinwheel_map))(u, arm)
    log_base = (
        -0.5 * ((u[:, 0] - 1) / RADIAL_STD) ** 2
        - 0.5 * (u[:, 1] / TANGENTIAL_STD) ** 2
        - math.log(2 * math.pi * RADIAL_STD * TANGENTIAL_STD)
    )
    expected = log_base - torch.linalg.det(jacobian).abs().log() - math.log(NUM_ARMS)
    torch.testing.assert_close(log_density("pinwheel", x), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("radius", [0.02, 0.1, 0.3, 0.7, 1.0, 1.5, 2.0, 2.4])
def test_the_pinwheel_has_the_density_that_its_fourier_series_gives(radius):
    """The series has all preimages at once and needs no root: at a fixed radius, c_n = E[exp(-i n angle)] for u on that
    circle, and the arms leave only every fifth n. This also covers the centre, where all the arms overlap.
    """
    a = torch.arange(4096, dtype=torch.float64) * (2 * math.pi / 4096)
    u = polar(torch.tensor(radius, dtype=torch.float64), a)
    log_base = -0.5 * (((u[:, 0] - 1) / RADIAL_STD) ** 2 + (u[:, 1] / TANGENTIAL_STD) ** 2)
    base = log_base.exp() / (2 * math.pi * RADIAL_STD * TANGENTIAL_STD)
    n = torch.arange(0, 1_000, NUM_ARMS, dtype=torch.float64)
    c = torch.exp(-1j * n[:, None] * (a + RATE * u[:, 0].exp())) @ base.to(torch.complex128) * (2 * math.pi / 4096)
    angle = torch.linspace(-3.1, 3.1, 60, dtype=torch.float64)
    series = (torch.where(n > 0, 2.0, 1.0) * torch.exp(1j * n * angle[:, None]) @ torch.diag(c)).sum(-1).real
    found = log_density("pinwheel", polar(torch.tensor(radius, dtype=torch.float64), angle)).exp()
    torch.testing.assert_close(found, series / (2 * math.pi), rtol=0, atol=1e-9 * base.max().item())


@pytest.mark.parametrize("radius", [1.8, 2.6, 3.4, 4.5, 6.0])
def test_the_pinwheel_has_the_density_of_all_preimages_far_out(radius):
    """A point has many preimages where the arms fold over themselves, and the map turns back between them. This test
    finds them where the sine of half the mismatch changes its sign, on a grid twenty times finer.
    """
    a = np.linspace(-math.pi, math.pi, 20_481)
    angles = np.linspace(-3.0, 3.0, 8)
    expected, num_falling = [], 0
    for angle in angles:
        terms = []
        for arm in range(NUM_ARMS):

            def half(a, arm=arm, angle=angle):
                turned = a + 2 * math.pi * arm / NUM_ARMS + RATE * np.exp(radius * np.cos(a))
                return np.sin((turned - angle) / 2)

            values = half(a)
            for i in np.nonzero(np.sign(values[:-1]) != np.sign(values[1:]))[0]:
                root = scipy.optimize.brentq(half, a[i], a[i + 1], xtol=1e-15)
                along, across = radius * math.cos(root), radius * math.sin(root)
                slope = 1 - RATE * math.exp(along) * across
                num_falling += slope < 0
                base = scipy.stats.norm.logpdf([along, across], [1, 0], [RADIAL_STD, TANGENTIAL_STD]).sum()
                terms.append(base - math.log(abs(slope)) - math.log(NUM_ARMS))
        expected.append(scipy.special.logsumexp(terms))
    assert num_falling > 0
    x = polar(torch.tensor(radius, dtype=torch.float64), torch.from_numpy(angles))
    torch.testing.assert_close(log_density("pinwheel", x), torch.tensor(expected), rtol=1e-9, atol=1e-7)


def test_a_histogram_of_pinwheel_draws_fits_the_density():
    """Pearson's statistic over polar bins has its mean and standard deviation. The arms are balanced to one point, so
    the strata's four degrees of freedom are gone, too.
    """
    num_draws, num_sectors = 200_000, 8 * NUM_ARMS
    r_edges = torch.linspace(0.4, 1.8, 15, dtype=torch.float64)
    r_nodes, r_weights = gauss_legendre(0.0, 0.1, 6)
    a_nodes, a_weights = gauss_legendre(0.0, 2 * math.pi / num_sectors, 6)
    radius = (r_edges[:-1, None] + r_nodes)[:, None, :, None]
    # The density of one arm's sector is that of every arm's (tested below).
    angle = (torch.arange(8)[:, None] * (2 * math.pi / num_sectors) + a_nodes)[None, :, None, :]
    nodes = polar(radius, angle)
    p = log_density("pinwheel", nodes.reshape(-1, 2)).exp().reshape(nodes.shape[:-1])
    inside = (p * radius * r_weights[:, None] * a_weights).sum((-1, -2)).repeat(1, NUM_ARMS).flatten()
    expected = num_draws * torch.cat((inside, 1 - inside.sum(0, keepdim=True)))

    x = pv.load("pinwheel", num_train=num_draws, num_validation=0, seed=suite_seed(5)).train_x.double()
    r = torch.bucketize(x.norm(dim=-1), r_edges, right=True) - 1
    sector = torch.atan2(x[:, 1], x[:, 0]).remainder(2 * math.pi).div(2 * math.pi / num_sectors).long() % num_sectors
    outside = (r < 0) | (r >= len(r_edges) - 1)
    observed = torch.bincount(torch.where(outside, len(inside), r * num_sectors + sector), minlength=len(expected))

    # Bins where little is expected are counted together.
    few = expected < 20
    observed = torch.cat((observed[~few], observed[few].sum(0, keepdim=True))).double()
    expected = torch.cat((expected[~few], expected[few].sum(0, keepdim=True)))
    assert len(expected) > 150
    assert observed.sum() == num_draws
    freedom = len(expected) - NUM_ARMS
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert_within_standard_errors(chi_square, freedom, math.sqrt(2 * freedom))
    assert_within_standard_errors(observed, expected, expected.sqrt(), note="counts in a bin")


@pytest.mark.parametrize("arms", [1, 2, 3, 4])
def test_the_pinwheel_density_is_the_same_after_a_turn_by_whole_arms(arms):
    angle = torch.linspace(-3.0, 3.0, 101, dtype=torch.float64)
    radius = torch.linspace(0.05, 2.5, 101, dtype=torch.float64)
    turned = polar(radius, angle + 2 * math.pi * arms / NUM_ARMS)
    torch.testing.assert_close(
        log_density("pinwheel", turned), log_density("pinwheel", polar(radius, angle)), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", TOYS)
def test_a_log_density_comes_in_the_dtype_of_its_points(name):
    data = pv.load(name, num_train=50)
    single, double = data.log_density(data.train_x), data.log_density(data.train_x.double())
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(single, double.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TOYS)
def test_a_scale_moves_every_point_out_and_the_density_with_it(name):
    plain, wide = (pv.load(name, num_train=200, num_test=50, seed=suite_seed(), scale=s) for s in (None, 2.5))
    torch.testing.assert_close(wide.train_x, 2.5 * plain.train_x)
    assert torch.equal(wide.train_y, plain.train_y)
    x = plain.test_x.double()
    torch.testing.assert_close(wide.log_density(2.5 * x), plain.log_density(x) - 2 * math.log(2.5))
    side = torch.linspace(-15, 15, 601, dtype=torch.float64)
    if name != "pinwheel":  # whose arms are too thin for a grid
        mass = wide.log_density(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
        assert mass.item() == pytest.approx(1, abs=1e-6)
