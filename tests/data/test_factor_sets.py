"""Images whose factors are known: each factor does to the picture what it says."""

import pytest
import torch
from helpers import load_fake, refusal, suite_seed
from torch.nn.functional import interpolate

import pyrovae as pv
from pyrovae.data.factor_sets import (
    DIGIT_ANGLES,
    DIGIT_SCALES,
    SPRITE_FACTORS,
    moved_images,
    sprite_depth,
    sprites,
    turned_and_scaled,
)


@pytest.fixture(scope="module")
def every():
    images, factors = sprites()
    return images[:, 0], factors, images[:, 0].view(*SPRITE_FACTORS.values(), 32, 32)


def test_every_combination_of_factors_is_drawn_once_and_no_two_pictures_are_alike(every):
    images, factors, _ = every
    assert len(factors.unique(dim=0)) == len(images.flatten(1).unique(dim=0)) == len(images) == 3 * 4 * 6 * 12 * 12
    assert factors.max(0).values.tolist() == [num - 1 for num in SPRITE_FACTORS.values()]
    assert images.unique().tolist() == [0, 255]


def test_a_step_of_x_is_a_pixel_to_the_right_and_of_y_a_pixel_down_with_nothing_cut_off(every):
    _, _, grid = every
    assert torch.equal(grid[:, :, :, 1:, :, :, 1:], grid[:, :, :, :-1, :, :, :-1])
    assert torch.equal(grid[:, :, :, :, 1:, 1:, :], grid[:, :, :, :, :-1, :-1, :])
    edges = grid[..., [0, -1], :].max(), grid[..., :, [0, -1]].max()
    assert edges == (0, 0)


def test_a_larger_scale_holds_the_smaller_one_and_its_area_grows_as_the_square(every):
    _, _, grid = every
    assert (grid[:2, 1:] >= grid[:2, :-1]).all()
    area = (grid / 255.0).sum((-2, -1)).mean((2, 3, 4))
    torch.testing.assert_close(area[:, 3] / area[:, 0], torch.full((3,), (8.1 / 5.1) ** 2), rtol=0.08, atol=0)


def test_orientations_turn_counter_clockwise_by_a_sixth_of_a_quarter_turn(every):
    _, _, grid = every
    ellipse = grid[1, 3, :, 6, 6].nonzero().float()
    for orientation in range(6):
        at = ellipse[ellipse[:, 0] == orientation, 1:]
        rows, columns = (at - at.mean(0)).unbind(1)
        axis = torch.linalg.eigh(torch.stack((columns, -rows)).cov()).eigenvectors[:, 1]  # x to the right, y up
        assert torch.rad2deg(torch.atan2(axis[1], axis[0])).item() % 180 == pytest.approx(15 * orientation, abs=1.5)
    square = grid[0, 3, :, 6, 6].flatten(1).bool()
    assert not torch.equal(square[1], square[5])  # all six differ within the quarter turn


def test_no_edge_is_so_close_to_a_pixels_middle_that_rounding_decides():
    assert sprite_depth().abs().min() > 1e-9


def test_sprites_are_split_without_overlap_and_the_test_set_stays_as_it_is():
    data = pv.load("sprites", binarize="static", num_train=500, seed=suite_seed())
    fewer = pv.load("sprites", binarize="static", num_train=20, num_validation=0, seed=suite_seed())
    assert (len(data.train_x), len(data.validation_x), len(data.test_x)) == (500, 1_000, 2_000)
    assert torch.equal(data.test_x, fewer.test_x)
    whole = torch.cat((data.train_x, data.validation_x, data.test_x)).flatten(1)
    assert len(whole.unique(dim=0)) == 3_500
    assert data.factors == ("shape", "scale", "orientation", "x", "y")
    assert (data.kind, data.classes, data.event_shape) == ("binary", ("square", "ellipse", "heart"), (1, 32, 32))
    at = torch.stack(data.test_y, 1)
    images, factors = sprites()
    rows = (at[:50, None] == factors).all(2).int().argmax(1)
    assert torch.equal(data.test_x[:50] * 255, images[rows])
    assert refusal(pv.load, "sprites", num_train=8_000) == (
        "num_train + num_validation must be <= 8368 and leave something to train on, got 8000 + 1000"
    )


def test_dynamic_sprites_are_what_static_ones_are_for_there_is_nothing_to_draw():
    static, dynamic = (pv.load("sprites", binarize=binarize, num_train=30) for binarize in ("static", "dynamic"))
    rows = torch.arange(30)
    assert torch.equal(dynamic.batch(rows)[0], static.train_x)


def test_a_quarter_turn_is_that_of_rot90_and_no_move_is_none():
    images = torch.randint(0, 256, (2, 1, 9, 9), dtype=torch.uint8)
    for degrees, turns in ((90.0, 1), (-90.0, 3), (0.0, 0), (180.0, 2)):
        moved = moved_images(images, torch.full((2,), degrees), torch.ones(2))
        assert torch.equal(moved, torch.rot90(images, turns, (2, 3)))


def test_half_the_scale_is_every_other_place_about_the_middle():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[..., 2:6, 0:4] = 200
    moved = moved_images(images, torch.zeros(1), torch.full((1,), 0.5))
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., 2:6, 2:6] = interpolate(images.float(), scale_factor=0.5, mode="area")
    assert torch.equal(moved.float(), expected)


def test_digits_are_moved_by_the_levels_that_their_factors_name():
    generator = torch.Generator().manual_seed(suite_seed())
    images, labels = torch.randint(0, 256, (600, 1, 7, 7), dtype=torch.uint8), torch.arange(600) % 10
    moved, factors = turned_and_scaled(images, labels, generator)
    assert torch.equal(factors[:, 0], labels)
    assert [factors[:, k].unique().numel() for k in (1, 2)] == [len(DIGIT_ANGLES), len(DIGIT_SCALES)]
    degrees, scale = torch.tensor(DIGIT_ANGLES)[factors[:, 1]], torch.tensor(DIGIT_SCALES)[factors[:, 2]]
    assert torch.equal(moved, moved_images(images, degrees, scale))
    still = (degrees == 0) & (scale == 1)
    assert torch.equal(moved[still], images[still])
    assert still.any()


def test_rotated_mnist_is_mnist_with_its_factors_and_a_run_takes_it(image_root):
    data, plain = load_fake(image_root, name="rotated_mnist", binarize="none"), load_fake(image_root, binarize="none")
    assert data.factors == ("digit", "orientation", "scale")
    assert torch.equal(data.train_y[0], plain.train_y)
    assert torch.equal(data.test_y[0], plain.test_y)
    again = load_fake(image_root, name="rotated_mnist", binarize="none", num_train=4)
    assert torch.equal(again.test_x, data.test_x)
    assert torch.equal(again.train_x, data.train_x[:4])
    vae = pv.VAE(data.event_shape, latent_dim=2, hidden=(4,), likelihood=pv.Bernoulli(True), condition=pv.OneHot(10))
    assert len(pv.fit(vae, data, epochs=1).loss) == 1


def test_names_of_factors_fit_the_parts_of_y():
    x, y = torch.zeros(3, 2), (torch.zeros(3), torch.ones(3))
    splits = {
        f"{split}_{part}": value
        for split in ("train", "validation", "test")
        for part, value in zip("xy", (x, y), strict=True)
    }
    data = pv.Dataset("a", "real", **splits, factors=("u", "v"))
    assert data.with_conditions(lambda x, y: y[0]).factors == ()
    assert data.to("cpu").factors == ("u", "v")
    said = refusal(pv.Dataset, "a", "real", **splits, factors=("u",))
    assert said == "factors must be a name for each part of y, 2, or (), got 1"
