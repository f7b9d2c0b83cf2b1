"""Makes the batches of an epoch from a data set, a tensor or an iterable: checked, and on the device."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import TensorDataset

from pyrovae.common import (
    InputError,
    Workers,
    as_arguments,
    as_data,
    fixed_generators,
    is_array,
    require,
    require_finite_data,
    require_plain,
    scale_hint,
    shown,
    warn,
)
from pyrovae.data.arguments import Batch, is_spread, main_tensor, mapped, moved, positions
from pyrovae.data.dataset import SPLITS, Dataset

FIRST_BATCH_SEED = 0
CHECKED_AT_ONCE = 2**28  # numbers
NO_BATCHES = dict | str | bytes | bytearray | memoryview | PackedSequence  # though they can be gone through


@dataclass(frozen=True, eq=False)
class Rows:
    """Holds data that are cut into batches along their first dimension: x, and whatever belongs to each datum."""

    parts: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """The number of data."""
        return len(self.parts[0])


def whole_data(vae: object, name: str, source: Any) -> Any:
    """Returns data that come as a whole as `Rows`, in the dtypes of a VAE, and any other source as it is.

    Args:
        vae: The pair.
        name: The name of the argument, for errors.
        source: A tensor, an array, a frame, a `TensorDataset` or a tuple of them is a whole, also a dict of them for a
            VAE. A `Dataset`, None and an iterable of batches are not.

    Raises:
        InputError: If the parts of a tuple are not of one length, or a part cannot be converted.
    """
    is_vae, is_tuple = hasattr(vae, "convert_data"), isinstance(source, tuple) and is_spread(source)
    several = is_tuple or isinstance(source, TensorDataset) or (is_vae and isinstance(source, dict))
    if not (several or is_array(source) or isinstance(source, Tensor)):
        return source
    if isinstance(source, TensorDataset):
        source = source.tensors
    parts = as_arguments(vae, tuple(source) if isinstance(source, tuple) and not is_vae else (source,))
    for part in parts:
        if isinstance(part, Tensor):
            require_plain("x" if part is parts[0] else "y", part)
    parts = mapped(as_data, parts)
    sizes = {len(part) if isinstance(part, Tensor) and part.dim() > 0 else None for part in parts}
    given = tuple(source) if isinstance(source, tuple) else parts
    # What a VAE has no use for must have as many rows, too: it may be the x of another set.
    of_given = {len(part) for part in given if not isinstance(part, type) and len(getattr(part, "shape", ())) > 0}
    is_whole = not several or (len(sizes) == 1 and None not in sizes and of_given <= sizes)
    rule = f"{name} must be a tuple of arrays with a row for each datum, (x, y), or else a list of batches"
    require(is_whole, f"{rule}; got {', '.join(_described(part) for part in given) or 'an empty tuple'}"[:300])
    _require_rows(parts[0])
    return Rows(parts)


def num_rows(source: object) -> int | None:
    """Returns the number of data of a `Dataset` or of data that come as a whole, and None of an iterable of batches."""
    if isinstance(source, Dataset | Rows):
        return len(source.train_x) if isinstance(source, Dataset) else source.size
    if isinstance(source, dict):
        source = source.get("x")
    elif isinstance(source, tuple) and is_spread(source) and source:
        source = source[0]
    is_whole = isinstance(source, Tensor | TensorDataset) or is_array(source)
    return len(cast(Sized, source)) if is_whole else None


def generators_of(source: object) -> list[torch.Generator]:
    """Returns the generators that a DataLoader or its samplers own and draw from."""
    sampler, batch_sampler = getattr(source, "sampler", None), getattr(source, "batch_sampler", None)
    owners = (source, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def scale_hint_of(vae: object, source: object, batch: Batch, error: BaseException | None = None) -> str:
    """Returns the `scale_hint` of the data that a run on `source` failed on, or that of the batch."""
    whole = source.arguments("train") if isinstance(source, Dataset) else getattr(source, "parts", ())
    return scale_hint(vae, error, *whole) or scale_hint(vae, error, *map(main_tensor, batch))


class Epoch:
    """Yields the batches of one epoch.

    Args:
        batches: The batches.
        num_batches: The number of batches, or None if it is unknown.
        smallest_share: The smallest number of data that this process has of a batch, or None if it is unknown.
    """

    def __init__(self, batches: Iterator[Batch], num_batches: int | None, smallest_share: int | None = None) -> None:
        self.batches, self.num_batches, self.smallest_share = batches, num_batches, smallest_share

    def __iter__(self) -> Iterator[Batch]:
        return self.batches


Batches = Callable[[], Epoch]  # starts a new epoch


def first_batch(batches: Batches, generators: Sequence[torch.Generator]) -> tuple[Epoch, Batch]:
    """Returns an epoch and its first batch, the same at every call unless the data draw from other generators."""
    with fixed_generators(FIRST_BATCH_SEED, generators):
        epoch = batches()
        return epoch, next(iter(epoch))


def batches_of(vae, data, validation, batch_size: int, device: torch.device) -> tuple[Batches, Batches | None]:
    """Returns the batches for training and those for validation, or None, checked and on the device.

    Args:
        vae: The pair. If it has a `num_conditions`, that says how many conditions a batch has, and otherwise what its
            programs take does. Its `check_data` checks a batch.
        data: A `Dataset`, data that come as a whole (see `whole_data`) or an iterable of batches; None is one batch
            without arguments.
        validation: Data that come as a whole, or an iterable of batches; None stands for the validation data of a
            `Dataset`.
        batch_size: The number of data in a training batch, which an iterable of batches decides itself.
        device: The device that batches are moved to.

    Raises:
        InputError: If data cannot be used. Batches of an iterable are checked when they come.
    """
    data, validation = whole_data(vae, "data", data), whole_data(vae, "validation", validation)
    if isinstance(data, Dataset):
        data = _converted(vae, data)
        _check_columns(vae, data)
        num_args = _num_args(vae, all_taken=False)
        for split in ("train", "validation"):
            if len(data.arguments(split)[0]):
                _check_rows(vae, data.arguments(split)[:num_args])
        Workers().check_same("data", data.arguments("train"))
        on_device = data.to(device)
        train = _shuffled(lambda rows: on_device.batch(rows)[:num_args], len(data.train_x), batch_size)
        if validation is None and len(data.validation_x):
            return train, _each(vae, "validation", [data.arguments("validation")[:num_args]], device)
    elif isinstance(data, Rows):
        parts = _whole_on(vae, "data", data, device)

        def take(rows: Tensor) -> Batch:
            return tuple(part.index_select(0, rows.to(device)) for part in parts)

        train = _shuffled(take, data.size, batch_size)
    else:
        train = _each(vae, "data", [()] if data is None else data, device)
        require(
            Workers().size == 1,
            f"data must be a Dataset or a tensor where several processes train, got {type(data).__name__}",
        )
    if isinstance(validation, Rows):
        validation = [_whole_on(vae, "validation", validation, device)]
    return train, None if validation is None else _each(vae, "validation", validation, device)


def _converted(vae, data: Dataset) -> Dataset:
    """Returns the data set in the dtypes of a VAE."""
    if not hasattr(vae, "convert_data"):
        return data
    changed: dict[str, Any] = {}
    for split in SPLITS:
        x, *y = as_arguments(vae, data.arguments(split))
        changed |= {f"{split}_x": x, f"{split}_y": tuple(y) if isinstance(data.train_y, tuple) else y[0]}
    return replace(data, **changed)


def _whole_on(vae, name: str, data: Rows, device: torch.device) -> Batch:
    """Returns the arguments of all data, as many as the pair takes, checked and on the device."""
    parts = data.parts[: _num_args(vae, all_taken=True)]
    _check_rows(vae, parts)
    Workers().check_same(name, parts)
    return moved(parts, device)


def _check_columns(vae, data: Dataset) -> None:
    """Raises `InputError` if the families of a VAE's columns are those of the data set's in another order.

    Warns if columns of several kinds have one family of ours: the codes of a category are no numbers. One of the user's
    own may know its columns.
    """
    likelihood = getattr(vae, "likelihood", None)
    families = getattr(likelihood, "names", ())
    if data.kind == "mixed" and not families and type(likelihood).__module__.startswith("pyrovae."):
        rule = "likelihood must be Columns for mixed data, to have a family for each kind of column"
        warn(f"{rule}, got {type(likelihood).__name__} for all")
    columns = tuple(column.name for column in data.columns)
    rule = f"the likelihood must have its columns in the order of the data, {', '.join(columns)}"
    is_turned = families != columns and sorted(families) == sorted(columns)
    require(not is_turned, f"{rule}; got {', '.join(families)}"[:300])


def _num_args(vae, all_taken: bool) -> int | None:
    """Returns how many arguments of a batch the pair is given, of an iterable all that its programs take."""
    if hasattr(vae, "num_conditions"):
        return 1 + vae.num_conditions
    needed, taken = positions(vae.model, vae.guide)
    if not all_taken:
        return max(1, needed)
    return None if taken == math.inf else int(taken)


def _each(vae, name: str, source: Iterable, device: torch.device) -> Batches:
    """Returns the batches of an iterable; `name` is that of the argument, for errors."""
    hint = "; a DataLoader makes batches of it" if isinstance(source, torch.utils.data.Dataset) else ""
    require(
        isinstance(source, Iterable) and not isinstance(source, NO_BATCHES),
        f"{name} must be a Dataset, a tensor or an iterable of batches, got {type(source).__name__}{hint}",
    )
    require(iter(source) is not source, f"{name} must be iterable again at every epoch, got a one-time iterator")
    num_args = _num_args(vae, all_taken=True)

    def checked() -> Iterator[Batch]:
        batch = None
        for batch in source:
            args = as_arguments(vae, (tuple(batch) if is_spread(batch) else (batch,))[:num_args])
            _check_data(vae, args)
            yield mapped(as_data, moved(args, device))
        require(batch is not None, f"{name} must yield at least one batch, got none")

    num_batches: int | None
    try:
        num_batches = len(cast(Sized, source))
    except TypeError:  # a DataLoader has a `__len__`, and raises this if its data have no length
        num_batches = None
    return lambda: Epoch(checked(), num_batches)


def _shuffled(take: Callable[[Tensor], Batch], num_data: int, batch_size: int) -> Batches:
    """Returns batches in a random order that all processes share; `take` gets this process's rows of each batch."""
    workers = Workers()
    smallest = min(batch_size, num_data)
    require(
        smallest >= workers.size,
        f"batch_size must be at least the number of processes, {workers.size}; the first batch has {smallest} data",
    )

    def batches() -> Iterator[Batch]:
        order = workers.agreed(torch.randperm(num_data))
        return (take(workers.share(rows)) for rows in order.split(batch_size))

    sizes = (smallest, num_data % batch_size or smallest)
    shares = [len(range(workers.rank, size, workers.size)) for size in sizes]
    return lambda: Epoch(batches(), -(-num_data // batch_size), min(filter(None, shares), default=None))


def _check_rows(vae, args: Batch) -> None:
    """Checks all data as `_check_data` does, a part at a time: of data on a disk the memory may not hold a copy."""
    per_row = max(1, sum(part[:1].numel() for part in args))
    size = max(1, CHECKED_AT_ONCE // per_row)
    for start in range(0, len(args[0]), size):
        try:
            _check_data(vae, tuple(part[start : start + size] for part in args))
        except InputError as error:
            if start == 0:
                raise
            raise InputError(f"{error}, counted from datum {start}") from error


def _check_data(vae, args: Batch) -> None:
    """Raises `InputError` if a batch cannot be used; of a pair without a `check_data` only the first argument tells."""
    x = main_tensor(args[0]) if args else None
    check_data = getattr(vae, "check_data", None)
    if check_data is None and not (isinstance(x, Tensor) and x.dim() > 0):
        return
    _require_rows(x)
    if check_data is None:
        require_finite_data(cast(Tensor, x), vae)
    else:
        check_data(*args)


def _require_rows(x: object) -> None:
    if isinstance(x, Tensor):
        require_plain("x", x)
    if not (isinstance(x, Tensor) and x.dim() > 0 and len(x) > 0):
        is_number = isinstance(x, int | float)
        hint = "; a list is read as batches; make a tensor of a list of numbers" if is_number else ""
        found = f"the {type(x).__name__} {shown(x)}" if is_number else shown(x)
        raise InputError(f"x must be a tensor of at least one datum, got {found}{hint}")


def _described(part: object) -> str:
    return f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
