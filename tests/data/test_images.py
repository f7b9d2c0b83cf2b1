"""Image sets: which images are in which split, and what becomes of their grey levels."""

import pytest
import torch
from helpers import (
    HEIGHT,
    NUM_TEST,
    NUM_TRAIN,
    WIDTH,
    assert_within_standard_errors,
    fake_images,
    grey_of,
    indices,
    load_fake,
    suite_seed,
)


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
