import functools
import http.client
import math
from dataclasses import fields
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
import torchvision
from helpers import (
    HEIGHT,
    IMAGE_FILES,
    INDEX_BITS,
    LABEL_FILES,
    NUM_TEST,
    NUM_TRAIN,
    WIDTH,
    assert_within_standard_errors,
    fake_images,
    load_fake,
    mean_and_error,
    refusal,
    suite_seed,
    tree,
    write_images,
)
from torch import Tensor

import pyrovae as pv
from pyrovae.data.dataset import TOY_DENSITIES, binarize_grey

# Written out here once more, so that a changed default is seen: number of modes, radius, standard deviation.
RINGS = {"ring": (8, 3.0, 0.25), "four_clusters": (4, 1.0, 0.2)}
TOYS = (*RINGS, "pinwheel")
NUM_ARMS, RADIAL_STD, TANGENTIAL_STD, RATE = 5, 0.3, 0.05, 0.25


@pytest.fixture(autouse=True)
def _one_thread():
    """On busy cores two threads wait for each other at every small step: seconds become half minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Toy densities ------------------------------------------------------------------------------------------------------


def centres(name: str) -> Tensor:
    num_modes, radius, _ = RINGS[name]
    angles = [2 * math.pi * k / num_modes for k in range(num_modes)]
    return torch.tensor([[radius * math.cos(a), radius * math.sin(a)] for a in angles], dtype=torch.float64)


def log_density(name: str, x: Tensor) -> Tensor:
    """In chunks that stay in the processor's cache."""
    density = pv.load(name, num_train=1, num_validation=0, num_test=1).log_density
    return torch.cat([density(chunk) for chunk in x.split(100 if name == "pinwheel" else 20_000)])


def polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)


def gauss_legendre(low: float, high: float, num: int) -> tuple[Tensor, Tensor]:
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(num))
    return low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2


@functools.cache
def quadrature(name: str) -> tuple[Tensor, Tensor]:
    """Log-densities at the nodes of a rule for the plane, and the rule's weights.

    Trapezoids on a square for the rings. The pinwheel's arms are thinner than a square grid can see at the outside:
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
    """x = R(angle) u, as the pinwheel is drawn; one point."""
    angle = 2 * math.pi * arm / NUM_ARMS + RATE * u[0].exp()
    rotation = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos())).reshape(2, 2)
    return rotation @ u


def test_the_pinwheel_follows_the_change_of_variables_where_one_arm_dominates():
    """By autograd's Jacobian, where the other preimages (the next is u_1 < 0, across the centre) count below 1e-7."""
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
    """All preimages at once and no root is looked for: at a fixed radius, c_n = E[exp(-i n angle)] for u on that
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
    """Where the arms fold over themselves a point has many preimages, and the map turns back between them. Here they
    are where sin of half the mismatch changes its sign, on a grid twenty times finer.
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
    """Pearson's statistic over polar bins, against its mean and standard deviation. With the arms balanced to one,
    the strata's four degrees of freedom are gone too.
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
    """u from x on a known arm. The iteration contracts where |u_2| rate exp(u_1) < 1, which is where the data are."""
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


# Batches ------------------------------------------------------------------------------------------------------------


def order_of(data: pv.Dataset, batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    """The index in `train_x` of each point of the batches, in turn."""
    index = {tuple(row): i for i, row in enumerate(data.train_x.tolist())}
    assert len(index) == len(data.train_x)
    return [index[tuple(row)] for x, _ in batches for row in x.tolist()]


def test_an_epoch_goes_through_every_datum_once_in_batches_of_the_given_size():
    data = pv.load("ring", num_train=103)
    batches = list(data.batches(16))
    assert [len(x) for x, _ in batches] == [16] * 6 + [7]
    order = order_of(data, batches)
    assert sorted(order) == list(range(103))
    assert torch.equal(torch.cat([y for _, y in batches]), data.train_y[order])


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 6), (3, [3, 3]), (6, [6]), (7, [6]), (10_000, [6])])
def test_a_batch_is_as_large_as_asked_while_the_data_last(batch_size, sizes):
    data = pv.load("ring", num_train=6)
    assert [len(x) for x, _ in data.batches(batch_size)] == sizes


def test_each_epoch_has_a_new_order_which_a_seed_fixes():
    data = pv.load("ring", num_train=50)
    torch.manual_seed(suite_seed(7))
    first, second = (order_of(data, list(data.batches(9))) for _ in range(2))
    torch.manual_seed(suite_seed(7))
    again = order_of(data, list(data.batches(9)))
    assert first == again
    assert first != second
    assert list(range(50)) not in (first, second)


def test_every_order_is_as_likely_as_every_other():
    data, num_epochs = pv.load("ring", num_train=4), 2_400
    orders = [tuple(order_of(data, list(data.batches(4)))) for _ in range(num_epochs)]
    counts = torch.tensor([orders.count(order) for order in set(orders)]).double()
    assert len(counts) == 24
    chi_square = ((counts - num_epochs / 24) ** 2 / (num_epochs / 24)).sum()
    assert_within_standard_errors(chi_square, 23, math.sqrt(2 * 23))


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, None, "4"])
def test_a_bad_batch_size_is_refused(batch_size):
    data = pv.load("ring", num_train=5)
    assert "batch_size" in refusal(lambda: list(data.batches(batch_size)))


# Images -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def image_root(tmp_path):
    write_images(tmp_path / "images")
    return tmp_path / "images"


def indices(x: Tensor) -> list[int]:
    """The index that each fake image spells, which no binarisation changes."""
    return (x.flatten(1)[:, :INDEX_BITS].long() * 2 ** torch.arange(INDEX_BITS)).sum(-1).tolist()


def grey_of(num: int, seed: int = 0) -> Tensor:
    """The grey levels in the file, `(num, 1, HEIGHT, WIDTH)`."""
    return torch.from_numpy(fake_images(num, seed)[0]).unsqueeze(1)


@pytest.mark.parametrize(
    ("counts", "train", "validation", "test"),
    [
        ({}, range(30), range(30, 40), range(12)),
        ({"num_train": 3}, range(3), range(30, 40), range(12)),
        ({"num_train": 30}, range(30), range(30, 40), range(12)),
        ({"num_validation": 0}, range(40), range(0), range(12)),
        ({"num_validation": 39}, range(1), range(1, 40), range(12)),
        ({"num_test": 5}, range(30), range(30, 40), range(5)),
        ({"num_test": 12, "num_train": 1, "num_validation": 1}, range(1), range(39, 40), range(12)),
    ],
)
@pytest.mark.parametrize("binarize", ["none", "static", "dynamic"])
def test_validation_images_are_the_last_of_the_training_file(image_root, binarize, counts, train, validation, test):
    data = load_fake(image_root, binarize=binarize, **counts)
    assert indices(data.train_x) == list(train)
    assert indices(data.validation_x) == list(validation)
    assert indices(data.test_x) == list(test)
    train_labels, test_labels = fake_images(NUM_TRAIN, 0)[1], fake_images(NUM_TEST, 1)[1]
    assert data.train_y.tolist() == train_labels[train].tolist()
    assert data.validation_y.tolist() == train_labels[validation].tolist()
    assert data.test_y.tolist() == test_labels[test].tolist()
    assert data.event_shape == (1, HEIGHT, WIDTH)
    assert data.validation_x.shape[1:] == data.test_x.shape[1:] == data.event_shape


def test_grey_images_are_their_levels_over_255_exactly(image_root):
    data = load_fake(image_root, binarize="none")
    assert (data.kind, data.train_grey, data.log_density) == ("grey", None, None)
    expected = (grey_of(NUM_TRAIN).double() / 255).float()
    assert torch.equal(data.train_x, expected[:30])
    assert torch.equal(data.validation_x, expected[30:])
    assert torch.equal(data.test_x, (grey_of(NUM_TEST, 1).double() / 255).float())


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_binarised_splits_are_draws_that_the_seed_fixes(image_root, binarize):
    first, again, other = (load_fake(image_root, binarize=binarize, seed=seed) for seed in (0, 0, 1))
    grey = {"train_x": grey_of(NUM_TRAIN)[:30], "validation_x": grey_of(NUM_TRAIN)[30:], "test_x": grey_of(NUM_TEST, 1)}
    assert first.kind == "binary"
    for field, g in grey.items():
        x, p = getattr(first, field), g.double() / 255
        assert ((x == 0) | (x == 1)).all()
        assert torch.equal(x[g % 255 == 0], p[g % 255 == 0].float())
        assert torch.equal(x, getattr(again, field))
        assert not torch.equal(x, getattr(other, field))
        assert_within_standard_errors(x.sum(), p.sum(), (p * (1 - p)).sum().sqrt())


def test_binarised_evaluation_images_do_not_depend_on_the_number_to_train_on(image_root):
    many, few = load_fake(image_root), load_fake(image_root, num_train=2)
    assert torch.equal(many.validation_x, few.validation_x)
    assert torch.equal(many.test_x, few.test_x)


@pytest.mark.parametrize("binarize", ["none", "static"])
def test_images_that_are_not_dynamic_are_the_same_at_every_epoch(image_root, binarize):
    data = load_fake(image_root, binarize=binarize)
    assert data.train_grey is None
    for _ in range(3):
        for x, y in data.batches(7):
            assert torch.equal(x, data.train_x[indices(x)])
            assert torch.equal(y, data.train_y[indices(x)])


def test_dynamic_is_the_default_for_images(image_root):
    usual, dynamic = load_fake(image_root), load_fake(image_root, binarize="dynamic")
    assert torch.equal(usual.train_grey, dynamic.train_grey)
    assert torch.equal(usual.train_grey, grey_of(NUM_TRAIN)[:30].byte())


def test_dynamic_batches_are_drawn_anew_at_each_epoch_and_average_to_the_grey_levels(image_root):
    data, num_epochs = load_fake(image_root, binarize="dynamic"), 400
    fixed = [t.clone() for t in (data.train_x, data.validation_x, data.test_x)]
    total, epochs = torch.zeros(30, 1, HEIGHT, WIDTH, dtype=torch.float64), []
    for _ in range(num_epochs):
        batches = list(data.batches(8))
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        index = indices(x)
        assert [len(b) for b, _ in batches] == [8, 8, 8, 6]
        assert sorted(index) == list(range(30))
        assert torch.equal(y, data.train_y[index])
        assert ((x == 0) | (x == 1)).all()
        total[index] += x
        epochs.append(x[torch.tensor(index).argsort()])
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], data.train_x)
    p = data.train_grey.double() / 255
    certain = (p == 0) | (p == 1)
    assert certain.any()
    assert torch.equal(total[certain] / num_epochs, p[certain])
    error = (p * (1 - p) / num_epochs).sqrt()
    assert_within_standard_errors((total / num_epochs)[~certain], p[~certain], error[~certain])
    for before, after in zip(fixed, (data.train_x, data.validation_x, data.test_x), strict=True):
        assert torch.equal(before, after)


def test_a_seed_fixes_the_draws_of_dynamic_batches(image_root):
    data = load_fake(image_root)
    epochs = []
    for seed in (3, 3, 4):
        torch.manual_seed(suite_seed(seed))
        epochs.append(torch.cat([x for x, _ in data.batches(8)]))
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])


def test_binarize_grey_gives_one_with_probability_grey_over_255():
    """At level 254 a denominator of 256 would be nine standard errors off."""
    num = 20_000
    grey = torch.arange(256, dtype=torch.uint8).expand(num, 256)
    draws = binarize_grey(grey)
    assert draws.dtype == torch.float32
    assert ((draws == 0) | (draws == 1)).all()
    share, p = draws.double().mean(0), torch.arange(256, dtype=torch.float64) / 255
    assert share[0] == 0
    assert share[255] == 1
    inner = slice(1, 255)
    assert_within_standard_errors(share[inner], p[inner], (p * (1 - p) / num).sqrt()[inner])


def test_binarize_grey_draws_pixels_independently():
    grey = torch.full((40_000, 2), 100, dtype=torch.uint8)
    noise = binarize_grey(grey).double() - 100 / 255
    estimate, error = mean_and_error(noise.prod(-1))
    assert_within_standard_errors(estimate, 0.0, error)
    estimate, error = mean_and_error((noise[1:] * noise[:-1]).flatten())
    assert_within_standard_errors(estimate, 0.0, error)


def test_binarize_grey_draws_from_the_generator_it_is_given():
    grey, before = torch.full((100,), 128, dtype=torch.uint8), torch.get_rng_state()
    first, again, other = (binarize_grey(grey, torch.Generator().manual_seed(suite_seed(seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
    assert (grey == 128).all()


@pytest.mark.parametrize("num_train", [30, 7])
def test_the_training_mean_is_that_of_what_is_trained_on(image_root, num_train):
    grey_mean = grey_of(NUM_TRAIN)[:num_train].double().mean(0) / 255
    for binarize in ("none", "dynamic"):
        data = load_fake(image_root, binarize=binarize, num_train=num_train)
        torch.testing.assert_close(data.train_mean, grey_mean.float(), rtol=1e-6, atol=1e-7)
    static = load_fake(image_root, binarize="static", num_train=num_train)
    torch.testing.assert_close(static.train_mean, static.train_x.double().mean(0).float(), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(static.train_mean, grey_mean.float(), atol=1e-3)
    toy = pv.load("ring", num_train=num_train)
    torch.testing.assert_close(toy.train_mean, toy.train_x.double().mean(0).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("binarize", [None, "none", "static", "dynamic"])
def test_to_a_device_moves_every_tensor_and_keeps_the_rest(image_root, binarize):
    data = pv.load("ring") if binarize is None else load_fake(image_root, binarize=binarize)
    moved, kept = data.to("meta"), data.to(torch.device("cpu"))
    for field in fields(data):
        value, there, here = (getattr(d, field.name) for d in (data, moved, kept))
        if isinstance(value, Tensor):
            assert there.device.type == "meta"
            assert (there.shape, there.dtype) == (value.shape, value.dtype)
            assert torch.equal(value, here)
        else:
            assert value == there == here


def test_images_come_from_the_folder_of_their_own_set(image_root):
    write_images(image_root, "FashionMNIST", seed=10)
    write_images(image_root, "KMNIST", seed=20)
    for name, seed in (("mnist", 0), ("fashion_mnist", 10), ("kmnist", 20)):
        data = pv.load(name, data_root=image_root, binarize="none", num_validation=10)
        assert data.name == name
        assert torch.equal(data.train_x, (grey_of(NUM_TRAIN, seed)[:30].double() / 255).float())


def test_the_data_root_is_the_argument_then_the_environment_then_data(tmp_path, monkeypatch):
    seeds = {"argument": 0, "environment": 10, "data": 20}
    for name, seed in seeds.items():
        write_images(tmp_path / name, seed=seed)

    def found(**kwargs) -> int:
        x = pv.load("mnist", binarize="none", num_validation=10, **kwargs).train_x
        (match,) = (s for s in seeds.values() if torch.equal(x, (grey_of(NUM_TRAIN, s)[:30].double() / 255).float()))
        return match

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROVAE_DATA", raising=False)
    assert found() == seeds["data"]
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "environment"))
    assert found() == seeds["environment"]
    assert found(data_root=str(tmp_path / "argument")) == seeds["argument"]
    assert found(data_root=tmp_path / "argument") == seeds["argument"]


def test_the_real_mnist_has_its_known_facts(mnist_root):
    data = pv.load("mnist", data_root=mnist_root, num_validation=0)
    assert (len(data.train_x), len(data.test_x), data.event_shape) == (60_000, 10_000, (1, 28, 28))
    assert data.train_y[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    counts = [5_923, 6_742, 5_958, 6_131, 5_842, 5_421, 5_918, 6_265, 5_851, 5_949]
    assert torch.bincount(data.train_y).tolist() == counts
    level = torch.arange(256, dtype=torch.float64) / 255
    share = torch.bincount(data.train_grey.flatten(), minlength=256) / data.train_grey.numel()
    mean = (share * level).sum()
    assert mean.item() == pytest.approx(0.1307, abs=5e-5)
    assert (share * (level - mean) ** 2).sum().sqrt().item() == pytest.approx(0.3081, abs=5e-5)
    assert data.train_mean.mean().item() == pytest.approx(mean.item(), abs=1e-6)
    usual = pv.load("mnist", data_root=mnist_root, binarize="none")
    assert [len(x) for x in (usual.train_x, usual.validation_x, usual.test_x)] == [55_000, 5_000, 10_000]
    assert torch.equal(usual.validation_y, data.train_y[-5_000:])
    assert torch.equal(usual.validation_x[-1], data.train_grey[-1] / 255)


# Downloads ----------------------------------------------------------------------------------------------------------


DOWNLOAD_ERRORS = {
    "no network": lambda: URLError("[Errno -2] Name or service not known"),
    "torchvision's summary": lambda: RuntimeError("Error downloading a:\nTried https://b, got:\nc\n"),
    "connection lost": lambda: ConnectionResetError(104, "Connection reset by peer"),
    "disk full": lambda: OSError(28, "No space left on device"),
    # What urllib lets through where a proxy answers with something that is not HTTP, or breaks off in a chunk.
    "not HTTP": lambda: http.client.BadStatusLine("garbage"),
    "broken off": lambda: http.client.IncompleteRead(b"half"),
}


@pytest.mark.parametrize("error", DOWNLOAD_ERRORS)
@pytest.mark.parametrize("present", ["nothing", "an empty folder", "all but one file"])
def test_a_failed_download_names_the_missing_files_and_leaves_the_folder_as_it_was(
    tmp_path, monkeypatch, error, present
):
    def download(self):
        raw = Path(self.raw_folder)
        raw.mkdir(parents=True)
        (raw / IMAGE_FILES[0]).write_bytes(b"half of a file")
        raise DOWNLOAD_ERRORS[error]()

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    root = tmp_path / "data"
    missing = {*IMAGE_FILES, *LABEL_FILES}
    if present == "an empty folder":
        root.mkdir()
    elif present == "all but one file":
        (write_images(root) / LABEL_FILES[1]).unlink()
        missing = {LABEL_FILES[1]}
    before = tree(tmp_path)
    message = refusal(load_fake, root)
    assert tree(tmp_path) == before
    assert str(root / "MNIST" / "raw") in message
    assert {file for file in (*IMAGE_FILES, *LABEL_FILES) if file in message} == missing
    assert "PYROVAE_DATA" in message


def test_missing_images_are_downloaded_once_without_the_archives(tmp_path, monkeypatch):
    calls = []

    def download(self):
        calls.append(self.raw_folder)
        raw = write_images(Path(self.root))
        (raw / f"{IMAGE_FILES[0]}.gz").write_bytes(b"archive")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    for _ in range(2):
        data = load_fake(tmp_path / "new" / "data", binarize="none")
        assert torch.equal(data.train_x, (grey_of(NUM_TRAIN)[:30].double() / 255).float())
    assert len(calls) == 1
    found = sorted(path.name for path in (tmp_path / "new" / "data" / "MNIST" / "raw").iterdir())
    assert found == sorted((*IMAGE_FILES, *LABEL_FILES))
