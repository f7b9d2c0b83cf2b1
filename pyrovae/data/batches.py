"""Makes the batches of an epoch from a data set, a tensor or an iterable: checked, and on the device."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyrovae.common import InputError, Workers, fixed_generators, require, require_finite, scale_hint
from pyrovae.data.arguments import Batch, is_spread, main_tensor, moved, positions
from pyrovae.data.dataset import Dataset

FIRST_BATCH_SEED = 0


def generators_of(source: object) -> list[torch.Generator]:
    """Returns the generators that a DataLoader or its samplers own and draw from."""
    sampler, batch_sampler = getattr(source, "sampler", None), getattr(source, "batch_sampler", None)
    owners = (source, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def scale_hint_of(source: object, batch: Batch) -> str:
    """Returns the `scale_hint` of the data that a run on `source` failed on, or that of the batch."""
    whole = source.arguments("train") if isinstance(source, Dataset) else (source,)
    return scale_hint(*whole) or scale_hint(*map(main_tensor, batch))


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
        data: A `Dataset`, a tensor or an iterable of batches; None is one batch without arguments.
        validation: A tensor or an iterable of batches; None stands for the validation data of a `Dataset`.
        batch_size: The number of data in a training batch, which an iterable of batches decides itself.
        device: The device that batches are moved to.

    Raises:
        InputError: If data cannot be used. Batches of an iterable are checked when they come.
    """
    if isinstance(data, Dataset):
        num_args = _num_args(vae, all_taken=False)
        for split in ("train", "validation"):
            if len(data.arguments(split)[0]):
                _check_data(vae, data.arguments(split)[:num_args])
        Workers().check_same("data", data.arguments("train"))
        on_device = data.to(device)
        train = _shuffled(lambda rows: on_device.batch(rows)[:num_args], len(data.train_x), batch_size)
        if validation is None and len(data.validation_x):
            return train, _each(vae, "validation", [data.arguments("validation")[:num_args]], device)
    elif isinstance(data, Tensor):
        _require_rows(data)
        _check_data(vae, (data,))
        Workers().check_same("data", [data])
        moved_data = data.to(device)
        train = _shuffled(lambda rows: (moved_data.index_select(0, rows.to(device)),), len(data), batch_size)
    else:
        train = _each(vae, "data", [()] if data is None else data, device)
        require(
            Workers().size == 1,
            f"data must be a Dataset or a tensor where several processes train, got {type(data).__name__}",
        )
    if isinstance(validation, Tensor):
        _check_data(vae, (validation,))
        Workers().check_same("validation", [validation])
        validation = [validation.to(device)]
    return train, None if validation is None else _each(vae, "validation", validation, device)


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
    require(
        isinstance(source, Iterable) and not isinstance(source, dict | str | PackedSequence),
        f"{name} must be a Dataset, a tensor or an iterable of batches, got {type(source).__name__}",
    )
    require(iter(source) is not source, f"{name} must be iterable again at every epoch, got a one-time iterator")
    num_args = _num_args(vae, all_taken=True)

    def checked() -> Iterator[Batch]:
        batch = None
        for batch in source:
            args = (tuple(batch) if is_spread(batch) else (batch,))[:num_args]
            _check_data(vae, args)
            yield moved(args, device)
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


def _check_data(vae, args: Batch) -> None:
    """Raises `InputError` if a batch cannot be used; of a pair without a `check_data` only the first argument tells."""
    x = main_tensor(args[0]) if args else None
    check_data = getattr(vae, "check_data", None)
    if check_data is None and not (isinstance(x, Tensor) and x.dim() > 0):
        return
    _require_rows(x)
    if check_data is None:
        require_finite("x", cast(Tensor, x))
    else:
        check_data(*args)


def _require_rows(x: object) -> None:
    if not (isinstance(x, Tensor) and x.dim() > 0 and len(x) > 0):
        raise InputError(f"x must be a tensor of at least one datum, got {x!r}"[:200])
