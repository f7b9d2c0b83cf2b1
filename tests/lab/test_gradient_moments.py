"""Signal, noise and their floors agree with stored gradients and with theory, also if there is nothing to measure."""

import math

import pytest
import scipy.stats
import torch

from pyrovae.lab.gradient_moments import Moments, mean_absolute_t


def moments_of(vectors, planned=None):
    found = Moments(planned or len(vectors))
    for vector in vectors:
        found.add(vector)
    return found.gradient(None)


def test_pure_noise_lies_at_the_floors_and_a_signal_at_its_own_ratio():
    generator = torch.Generator().manual_seed(0)
    noise, signal = Moments(200), Moments(200)
    direction = torch.zeros(400)
    direction[:100] = 0.5
    for _ in range(200):
        draw_ = torch.randn(400, generator=generator)
        noise.add(draw_)
        signal.add(draw_ + direction)
    alone, seen = noise.gradient(None), signal.gradient(noise)
    assert alone.snr == pytest.approx(alone.snr_floor, rel=0.15)
    assert alone.dsnr == pytest.approx(alone.dsnr_floor, rel=0.5)
    assert alone.dsnr_floor == pytest.approx(math.sqrt(2 / (math.pi * 400)), rel=0.3)
    assert seen.snr == pytest.approx(0.25 * 0.5 + 0.75 * alone.snr_floor, rel=0.1)
    assert seen.dsnr == pytest.approx(5 / 20, rel=0.15)  # |m| over the noise in 400 dimensions
    assert seen.dsnr > 4 * seen.dsnr_floor
    assert seen.dsnr_floor == pytest.approx(alone.dsnr_floor)  # whatever the signal
    assert seen.bias == pytest.approx(5, rel=0.1)
    assert alone.bias is None


@pytest.mark.parametrize("repeats", [4, 5, 8, 40])
def test_the_floor_of_few_repeats_is_the_ratio_of_noise(repeats):
    """The floor of many repeats is sqrt(2 / (pi R)). With four that would be 0.40, where noise has 0.55."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(repeats, 20_000, generator=generator, dtype=torch.float64)
    found = moments_of(noise)
    assert found.snr == pytest.approx(found.snr_floor, rel=0.02)
    assert mean_absolute_t(repeats - 1) == pytest.approx(scipy.stats.t(repeats - 1).expect(abs), rel=1e-6)
    assert mean_absolute_t(10**6) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-5)


def ratios_of_stored(vectors, half):
    """Returns the two ratios of stored vectors, the first `half` of which give the direction."""
    first, rest = vectors[:half].double(), vectors[half:].double()
    quarter = half // 2
    mean, difference = first.mean(0), first[:quarter].mean(0) - first[quarter:].mean(0)
    ratios = []
    for values, direction in ((rest, mean), (rest - mean, difference)):
        along = values @ direction / direction.norm()
        across = (values - along[:, None] * direction / direction.norm()).norm(dim=1)
        ratios.append((along.abs() / across).mean().item())
    return ratios


@pytest.mark.parametrize("repeats", [*range(4, 20), 33, 50, 101])
def test_half_of_the_repeats_give_the_direction_even_if_they_are_few_or_odd(repeats):
    vectors = 1 + torch.randn(repeats, 30, generator=torch.Generator().manual_seed(repeats))
    found = moments_of(vectors)
    assert [found.dsnr, found.dsnr_floor] == pytest.approx(ratios_of_stored(vectors, repeats // 2))


@pytest.mark.parametrize("end", [4, 5, 6, 7, 8, 11, 12, 23, 24, 63, 74, 75, 99])
def test_at_least_a_third_gave_the_direction_and_a_third_were_measured_if_the_repeats_end_early(end):
    """Halves of the planned number once left nothing to measure, and an empty cell, after a thousand repeats."""
    vectors = 1 + torch.randn(end, 30, generator=torch.Generator().manual_seed(end))
    splits = [half for half in (2, 4, 8, 16, 32, 50) if 3 * half >= end and 3 * (end - half) >= end]
    found = moments_of(vectors, planned=100)
    assert min(abs(found.dsnr - ratios_of_stored(vectors, half)[0]) for half in splits) < 1e-9
    assert min(abs(found.dsnr_floor - ratios_of_stored(vectors, half)[1]) for half in splits) < 1e-9


def test_the_memory_of_the_moments_does_not_grow():
    found = Moments(1000)
    for vector in torch.randn(1000, 3):
        found.add(vector)
        assert len(found._sums) <= 2
        assert len(found._splits) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_the_same_each_time_up_to_rounding_has_no_noise(dtype):
    exact = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=dtype)
    rounded = exact * (1 + 4 * torch.finfo(dtype).eps * torch.randn(10, 50, dtype=dtype))
    for vectors in (exact.expand(10, 50), rounded):
        found = moments_of(vectors)
        assert found.snr == found.dsnr == math.inf
        assert math.isnan(found.dsnr_floor)
        assert found.norm == pytest.approx(exact.double().norm().item())
    noisy = exact + 1e-2 * torch.randn(10, 50, dtype=dtype)
    assert 10 < moments_of(noisy).snr < 1e4


def test_a_gradient_that_is_zero_or_not_finite_has_no_ratio():
    """The ratio is 0 / 0 and not infinite."""
    for vectors in (torch.zeros(8, 5), torch.full((8, 5), math.nan), torch.full((8, 5), math.inf)):
        found = moments_of(vectors)
        assert all(math.isnan(value) for value in (found.snr, found.dsnr, found.dsnr_floor))
    one_of_them = torch.randn(8, 5)
    one_of_them[3, 2] = math.nan
    assert math.isnan(moments_of(one_of_them).snr)


def test_coordinates_that_never_vary_do_not_change_the_ratio_of_the_others():
    noise = torch.randn(20, 6, dtype=torch.float64)
    alone = moments_of(noise)
    beside = moments_of(torch.cat([noise, torch.zeros(20, 3), torch.ones(20, 2)], 1))
    assert beside.snr == pytest.approx(alone.snr)
    assert beside.snr_floor == alone.snr_floor


@pytest.mark.parametrize("size", [1, 4])
def test_nothing_lies_across_the_direction_if_only_one_coordinate_moves(size):
    vectors = torch.zeros(12, size)
    vectors[:, 0] = 1 + torch.randn(12)
    found = moments_of(vectors)
    assert math.isnan(found.dsnr)
    assert math.isnan(found.dsnr_floor)
    assert found.snr == pytest.approx((vectors[:, 0].mean().abs() / vectors[:, 0].std()).item(), rel=1e-5)
