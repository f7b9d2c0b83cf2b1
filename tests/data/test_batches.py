"""Batches of any kind: their arguments, checks, devices, and how many arguments a pair is given."""

from collections import OrderedDict, namedtuple
from functools import partial

import pytest
import torch
from helpers import Pair, refusal, ring, small_vae
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.data import batches_of, leaves_of, mapped
from pyrovae.data.arguments import moved, positions

CPU, META = torch.device("cpu"), torch.device("meta")
Sequences = namedtuple("Sequences", "values lengths")


def packed() -> PackedSequence:
    return pack_sequence([torch.ones(3), torch.zeros(2)])


def first_of(pair, data, batch_size=4):
    train, _ = batches_of(pair, data, None, batch_size, CPU)
    return next(iter(train()))


def any_number(*args):
    """A program of any arguments."""


ANY = Pair(any_number, any_number)


# Arguments ------------------------------------------------------------------------------------------------------------


def test_what_lists_tuples_and_dicts_hold_is_changed_and_they_keep_their_kind():
    value = ([1, (2, 3)], {"a": 4, "b": [5]}, OrderedDict(c=6), Sequences(7, 8))
    assert mapped(lambda leaf: 10 * leaf, value) == (
        [10, (20, 30)],
        {"a": 40, "b": [50]},
        OrderedDict(c=60),
        Sequences(70, 80),
    )
    assert leaves_of(value) == list(range(1, 9))
    assert isinstance(mapped(str, value)[3], Sequences)
    assert value[1] == {"a": 4, "b": [5]}


def test_a_packed_sequence_is_one_thing():
    assert leaves_of([packed(), 1])[1:] == [1]
    assert isinstance(leaves_of(packed())[0], PackedSequence)


def test_everything_with_values_goes_to_the_device():
    found = moved((torch.ones(2), [{"x": torch.zeros(3), "n": 3}], packed(), "text", None), META)
    assert [found[0].device, found[1][0]["x"].device, found[2].data.device] == [META] * 3
    assert found[1][0]["n"] == 3
    assert found[3:] == ("text", None)


class Network(nn.Module):
    def forward(self, x, y, scale=1.0):
        return x


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        ((lambda x, y=None: x, lambda x: x), (1, 1)),
        ((lambda x, y=None: x, lambda x, y: x), (2, 2)),
        ((lambda *args: args, lambda x, *, key=1: x), (1, 1)),
        ((Network(), lambda *args, **kwargs: args), (2, 3)),
        ((partial(Network(), scale=2.0),), (0, float("inf"))),  # partial does not see a module's forward
        ((lambda: None,), (0, 0)),
        ((dict,), (0, float("inf"))),
    ],
)
def test_programs_tell_how_many_arguments_they_need_and_take(programs, expected):
    assert positions(*programs) == expected


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch",
    [{"x": torch.ones(2), "mask": None}, packed(), torch.ones(3), torch.tensor(1.0), 7, "text", None],
    ids=lambda batch: type(batch).__name__,
)
def test_a_batch_that_is_no_list_and_no_tuple_is_one_argument(batch):
    (found,) = first_of(ANY, [batch])
    assert type(found) is type(batch)


def test_the_items_of_a_list_or_a_tuple_are_arguments():
    x = torch.ones(2, 3)
    for batch in ((x, 2, [x]), [x, 2, [x]], Sequences(x, 2), ()):
        found = first_of(ANY, [batch])
        assert isinstance(found, tuple)
        assert len(found) == len(batch)


def test_a_pair_is_given_no_more_arguments_of_a_batch_than_it_takes():
    loader = DataLoader(TensorDataset(torch.ones(4, 3), torch.zeros(4), torch.zeros(4)), batch_size=2)
    assert len(first_of(Pair(lambda x: x, any_number), loader)) == 1
    assert len(first_of(Pair(lambda x, y, scale=1.0: x, lambda x, y=None: x), loader)) == 2
    assert len(first_of(ANY, loader)) == 3
    assert len(first_of(small_vae((3,)), loader)) == 1


def test_a_pair_is_given_as_many_labels_of_a_data_set_as_it_needs():
    assert len(first_of(Pair(lambda x, y=None: x, lambda x, y=None: x), ring())) == 1
    assert len(first_of(Pair(lambda x, y: x, lambda x, y=None: x), ring())) == 2
    assert len(first_of(small_vae(), ring())) == 1


def test_without_data_an_epoch_has_one_batch_without_arguments():
    epoch = batches_of(ANY, None, None, 4, CPU)[0]()
    assert (list(epoch), epoch.num_batches) == ([()], 1)


def test_validation_batches_come_whole_and_in_order():
    x = torch.arange(3_000.0)
    _, held_out = batches_of(ANY, None, x, 4, CPU)
    assert [batch[0].tolist() for batch in held_out()] == [x.tolist()]
    _, held_out = batches_of(ANY, None, [x[:5], {"x": x}], 4, CPU)
    assert len(list(held_out())) == 2


@pytest.mark.parametrize("data", [{"x": torch.ones(2)}, packed(), "text", 7], ids=lambda data: type(data).__name__)
def test_one_batch_in_place_of_many_is_refused(data):
    kind = type(data).__name__
    message = f"must be a Dataset, a tensor or an iterable of batches, got {kind}"
    assert refusal(batches_of, ANY, data, None, 4, CPU) == f"data {message}"
    assert refusal(batches_of, ANY, None, data, 4, CPU) == f"validation {message}"


@pytest.mark.parametrize("data", [torch.ones(()), torch.ones(0, 2)])
def test_a_tensor_without_rows_is_refused(data):
    assert "x must be a tensor of at least one datum" in refusal(batches_of, ANY, data, None, 4, CPU)


@pytest.mark.parametrize("make", [lambda x: x, lambda x: (x, 1), lambda x: pack_sequence([x])])
def test_first_arguments_that_are_not_finite_are_refused(make):
    x = torch.tensor([1.0, torch.nan])
    assert "x must be finite, got nan at index (1,)" in refusal(first_of, ANY, [make(x)])
