"""Texts that say which data a training is of, so that it is not taken for one of other data."""

import hashlib
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyrovae.common import as_tensor, has_numbers
from pyrovae.data import SPLITS, Batch, Dataset, Rows, mapped

TRAINING = "training data"
_NAMES = dict(zip(SPLITS, (TRAINING, "validation data", "test data"), strict=True))
COMPUTED, OLD = "computed", "old"
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def digest(values: Iterable[object]) -> str:
    """Returns a hash of tensors' shapes and values, of plain values, and of the types of anything else, in order."""
    found = hashlib.sha256()

    def add(value: object) -> None:
        if has_numbers(value):
            value = as_tensor("x", value)
        if isinstance(value, Tensor):
            found.update(str(tuple(value.shape)).encode())
            value = value.resolve_conj().resolve_neg()  # which may be lazy, as those of a view
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, PackedSequence):
            for part in value:
                add(part)
        else:
            found.update(repr(value).encode() if isinstance(value, _PLAIN) else type(value).__name__.encode())

    for value in values:
        mapped(add, value)
    return found.hexdigest()


def told_of_dataset(data: Dataset) -> dict[str, str]:
    """Returns a text for the training data, the validation data and the test data, which `same_data` compares."""
    return {name: told_of_split(data, split) for split, name in _NAMES.items()}


def told_of_split(data: Dataset, split: str) -> str:
    """Returns a hash of the shapes and values of x and y, and of the grey levels that training pixels are drawn from.

    Values that were computed, by a toy density or to standardise a column, may differ in their last bits on another
    processor. For these the text also has a hash of all other values, a random sum of these, and how far two such sums
    of the same data may be apart.
    """
    x, *y = data.arguments(split)
    grey = [data.train_grey] if split == "train" and data.train_grey is not None else []
    whole = digest((x, *y, *grey))
    computed = [column.sd is not None for column in data.columns]
    if data.log_density is None and not any(computed):
        return whole
    if not data.columns:
        computed, x = [True], x.reshape(len(x), 1, math.prod(data.event_shape))
    rest = digest((x.isnan(), x[:, [not one for one in computed]], *y, *grey))
    values = x[:, computed].double().cpu().nan_to_num()
    # Each value times a random number of its own that never changes, so that the sum tells their order, too.
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    largest = values.abs().max().item() if values.numel() else 0.0
    rounding = 1e-5 * max(1.0, largest) * values.numel() ** 0.5
    return f"{COMPUTED} {whole} {rest} {(values * weights).sum().item()!r} {rounding!r}"


def same_data(was: str | None, now: str | None) -> bool:
    """Returns whether two of these texts are of the same data, as far as can be told; None is not known."""
    if None in (was, now) or was == now:
        return True
    then, present = str(was).split(), str(now).split()
    if then[:1] == [OLD]:  # a hash of all values, which does not say whether they were computed
        return present[0] == COMPUTED or then[1:] == present
    if (*then[:1], *present[:1], len(then), len(present)) != (COMPUTED, COMPUTED, 5, 5):
        return False
    close = abs(float(then[3]) - float(present[3])) <= float(present[4])
    return then[1] == present[1] or (then[2] == present[2] and close)


def as_old(told: dict[str, str | None]) -> dict[str, str | None]:
    """Returns the texts in a checkpoint of format 1 with a mark that they are."""
    names = _NAMES.values()
    return {name: f"{OLD} {text}" if name in names and isinstance(text, str) else text for name, text in told.items()}


def told_of(data: object, validation: object, first: Batch, again: Callable[[], Batch]) -> dict[str, str | None]:
    """Returns texts for the training data and the validation data of `fit`; None where they are not known.

    All of a data set or of data as a whole is hashed, but only the `first` batch of an iterable. `again()` draws that
    batch once more: if it comes out different, the data are not known.
    """
    training: str | None
    validated = None
    if isinstance(data, Dataset):
        training = told_of_split(data, "train")
        if validation is None and len(data.validation_x):
            validated = told_of_split(data, "validation")
    elif isinstance(data, Rows):
        training = digest(data.parts)
    else:
        training = digest(first)
        training = training if training == digest(again()) else None
    held_out = validation.parts if isinstance(validation, Rows) else validation
    if isinstance(held_out, tuple) and all(isinstance(part, Tensor) for part in held_out):
        validated = digest(held_out)
    return {TRAINING: training, "validation data": validated}
