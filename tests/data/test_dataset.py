"""A `Dataset`: its batches, its mean, and its move to another device."""

import math
from dataclasses import fields

import pytest
import torch
from helpers import NUM_TRAIN, assert_within_standard_errors, grey_of, load_fake, refusal, suite_seed
from torch import Tensor

import pyrovae as pv


def order_of(data: pv.Dataset, batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    """Returns the index in `train_x` of each point of the batches, in turn."""
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
    with pytest.MonkeyPatch.context() as patch:  # the one other device that every machine has holds no numbers
        patch.setattr("pyrovae.data.dataset.require_plain", lambda name, value: None)
        moved, kept = data.to(torch.device("meta")), data.to(torch.device("cpu"))
    for field in fields(data):
        value, there, here = (getattr(d, field.name) for d in (data, moved, kept))
        if isinstance(value, Tensor):
            assert there.device.type == "meta"
            assert (there.shape, there.dtype) == (value.shape, value.dtype)
            assert torch.equal(value, here)
        else:
            assert value == there == here


def test_a_data_set_is_two_lines():
    data = pv.load("ring", num_train=1_200, num_validation=30, num_test=4)
    expected = "data set ring: real, event shape (2,)\n1,200 train, 30 validation, 4 test data"
    assert repr(data) == expected
