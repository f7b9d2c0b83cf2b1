"""Draws of the toy sets have the sizes, moments, labels and streams that they should."""

import math

import pytest
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
from pyrovae.data.toy import TOY_DENSITIES


@pytest.mark.parametrize(("name", "num_train"), [("ring", 2_000), ("four_clusters", 800), ("pinwheel", 4_000)])
def test_toy_sets_have_the_tutorials_sizes_and_are_points(name, num_train):
    data = pv.load(name)
    assert [len(x) for x in (data.train_x, data.validation_x, data.test_x)] == [num_train, 1_000, 2_000]
    assert [len(y) for y in (data.train_y, data.validation_y, data.test_y)] == [num_train, 1_000, 2_000]
    assert (data.name, data.kind, data.event_shape, data.train_grey) == (name, "real", (2,), None)
    assert data.train_x.dtype == torch.float32
    assert data.train_y.dtype == torch.int64


@pytest.mark.parametrize("name", TOYS)
def test_toy_sets_have_the_sizes_that_are_asked_for(name):
    data = pv.load(name, num_train=7, num_validation=0, num_test=3)
    assert [len(x) for x in (data.train_x, data.validation_x, data.test_x)] == [7, 0, 3]
    assert [len(y) for y in (data.train_y, data.validation_y, data.test_y)] == [7, 0, 3]


@pytest.mark.parametrize("name", RINGS)
def test_ring_draws_have_the_modes_frequencies_radius_and_spread(name):
    num_modes, radius, std = RINGS[name]
    num = 50_000
    data = pv.load(name, num_train=num, seed=suite_seed(1))
    x = data.train_x.double()
    share = torch.bincount(data.train_y, minlength=num_modes).double() / num
    assert len(share) == num_modes
    assert_within_standard_errors(share, 1 / num_modes, math.sqrt((1 - 1 / num_modes) / num_modes / num))
    noise = x - centres(name)[data.train_y]
    assert_within_standard_errors(noise.mean(0), 0.0, std / math.sqrt(num))
    assert_within_standard_errors(noise.square().mean(0), std**2, std**2 * math.sqrt(2 / num))
    assert_within_standard_errors(noise.prod(-1).mean(), 0.0, std**2 / math.sqrt(num))
    # E|x|^2 = radius^2 + 2 std^2, whatever the labels say.
    estimate, error = mean_and_error(x.square().sum(-1))
    assert_within_standard_errors(estimate, radius**2 + 2 * std**2, error)


def unbend(x: Tensor, arm: Tensor) -> Tensor:
    """Returns u for x on a known arm. The iteration contracts if |u_2| rate exp(u_1) < 1, which holds for the data."""
    radius, angle = x.norm(dim=-1), torch.atan2(x[:, 1], x[:, 0]) - 2 * math.pi * arm / NUM_ARMS
    along = radius
    for _ in range(60):
        along = radius * (angle - RATE * along.exp()).cos()
    return polar(radius, angle - RATE * along.exp())


def test_pinwheel_draws_are_gaussian_once_unbent_with_balanced_arms():
    num = 50_003
    data = pv.load("pinwheel", num_train=num, seed=suite_seed(1))
    counts = torch.bincount(data.train_y, minlength=NUM_ARMS)
    assert sorted(counts.tolist()) == [10_000, 10_000, 10_001, 10_001, 10_001]
    u = unbend(data.train_x.double(), data.train_y)
    std = torch.tensor([RADIAL_STD, TANGENTIAL_STD])
    noise = (u - torch.tensor([1.0, 0.0])) / std
    assert_within_standard_errors(noise.mean(0), 0.0, 1 / math.sqrt(num))
    assert_within_standard_errors(noise.square().mean(0), 1.0, math.sqrt(2 / num))
    assert_within_standard_errors(noise.prod(-1).mean(), 0.0, 1 / math.sqrt(num))


def test_the_arms_of_the_pinwheel_are_not_in_order():
    y = pv.load("pinwheel").train_y
    _, error = mean_and_error((y[1:] == y[:-1]).double())
    assert_within_standard_errors((y[1:] == y[:-1]).double().mean(), 1 / NUM_ARMS, error)


def test_labels_of_the_ring_are_those_of_the_nearest_centre():
    data = pv.load("ring")
    assert torch.equal(torch.cdist(data.train_x.double(), centres("ring")).argmin(-1), data.train_y)
    assert torch.equal(torch.cdist(data.test_x.double(), centres("ring")).argmin(-1), data.test_y)


def test_labels_of_four_clusters_leave_the_nearest_centre_as_rarely_as_they_must():
    """The regions of the four centres are quadrants, with edges sqrt(1/2) from the centre."""
    num = 200_000
    data = pv.load("four_clusters", num_train=num)
    stray = (torch.cdist(data.train_x.double(), centres("four_clusters")).argmin(-1) != data.train_y).double().mean()
    truth = 1 - (0.5 * (1 + math.erf(math.sqrt(0.5) / 0.2 / math.sqrt(2)))) ** 2
    assert_within_standard_errors(stray, truth, math.sqrt(truth / num))


def test_labels_of_the_pinwheel_are_those_of_the_nearest_arm():
    data = pv.load("pinwheel", num_train=20_000)
    x = data.train_x.double()
    radius = x.norm(dim=-1)
    turn = 2 * math.pi * torch.arange(NUM_ARMS) / NUM_ARMS + RATE * radius.exp()[:, None]
    off = (torch.atan2(x[:, 1], x[:, 0])[:, None] - turn + math.pi).remainder(2 * math.pi) - math.pi
    apart = radius > 0.45  # nearer to the centre the arms run into each other
    assert apart.double().mean() > 0.95
    assert torch.equal(off.abs().argmin(-1)[apart], data.train_y[apart])


@pytest.mark.parametrize("name", TOYS)
def test_a_seed_fixes_the_points_and_another_gives_others(name):
    first, again, other = (pv.load(name, seed=seed) for seed in (4, 4, 5))
    for field in ("train_x", "train_y", "validation_x", "validation_y", "test_x", "test_y"):
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert not torch.equal(getattr(first, field), getattr(other, field))


@pytest.mark.parametrize("name", TOYS)
def test_no_split_depends_on_the_size_of_another(name):
    usual, changed = pv.load(name), pv.load(name, num_train=31, num_test=500)
    assert torch.equal(usual.validation_x, changed.validation_x)
    assert torch.equal(usual.validation_y, changed.validation_y)
    changed = pv.load(name, num_train=31, num_validation=0)
    assert torch.equal(usual.test_x, changed.test_x)
    assert torch.equal(usual.test_y, changed.test_y)


@pytest.mark.parametrize("name", TOYS)
def test_no_split_of_any_seed_shares_a_point_with_another(name):
    sets = [pv.load(name, num_train=100, num_validation=100, num_test=100, seed=seed) for seed in range(4)]
    rows = torch.cat([x for data in sets for x in (data.train_x, data.validation_x, data.test_x)])
    assert len(torch.unique(rows, dim=0)) == 1_200


@pytest.mark.parametrize("name", TOYS)
def test_the_points_are_not_drawn_from_the_stream_that_the_same_seed_gives_to_training(name):
    density, _ = TOY_DENSITIES[name]
    for seed in range(3):
        x, _ = density.sample(50, torch.Generator().manual_seed(suite_seed(seed)))
        data = pv.load(name, num_train=50, num_validation=50, num_test=50, seed=seed)
        for split in (data.train_x, data.validation_x, data.test_x):
            assert not (split == x).any()


@pytest.mark.parametrize("name", TOYS)
def test_loading_neither_reads_nor_moves_torchs_generator(name):
    torch.manual_seed(suite_seed(11))
    before = torch.get_rng_state()
    first = pv.load(name)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(suite_seed(12))
    assert torch.equal(first.train_x, pv.load(name).train_x)
