"""Where batches come from: a data set, a tensor or an iterable of the caller's, checked and on the device."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pyrovae.common import InputError, Workers, fixed_generators, require, require_finite, scale_hint
from pyrovae.data.dataset import Dataset

VALIDATION_CHUNK = 1_024
FIRST_SEED = 0

Batch = tuple[Tensor, ...]  # x, and what a conditional VAE is conditioned on


def generators_of(source: object) -> list[torch.Generator]:
    """Those of its own from which a DataLoader, or its sampler, draws."""
    sampler, batch_sampler = getattr(source, "sampler", None), getattr(source, "batch_sampler", None)
    owners = (source, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def scale_hint_of(source: object, batch: Batch) -> str:
    """Returns what to say first when a run on `source` fails: that its data, or those of the batch, are too large."""
    whole = source.arguments("train") if isinstance(source, Dataset) else (source,)
    return scale_hint(*whole) or scale_hint(*batch)


class Epoch:
    """One epoch's batches; where it is known, how many there are, and the fewest data that this process has of one."""

    def __init__(self, batches: Iterator[Batch], num_batches: int | None, smallest: int | None = None) -> None:
        self.batches, self.num_batches, self.smallest = batches, num_batches, smallest

    def __iter__(self) -> Iterator[Batch]:
        return self.batches


Batches = Callable[[], Epoch]


def first_batch(batches: Batches, generators: Sequence[torch.Generator]) -> tuple[Epoch, Batch]:
    """Returns an epoch and its first batch, the same at every call unless the data draw from elsewhere."""
    with fixed_generators(FIRST_SEED, generators):
        epoch = batches()
        return epoch, next(iter(epoch))


def batches_of(vae, data, validation, batch_size: int, device: torch.device) -> tuple[Batches, Batches | None]:
    """What yields the batches of an epoch, on the device and checked: for training, and for validation or None."""
    num_args = 1 + getattr(vae, "num_conditions", 0)
    if isinstance(data, Dataset):
        for split in ("train", "validation"):
            if len(data.arguments(split)[0]):
                _check_data(vae, data.arguments(split)[:num_args])
        if validation is None and len(data.validation_x):
            validation = [data.arguments("validation")]
        Workers().check_same("data", data.arguments("train"))
        on_device = data.to(device)
        train = _shuffled(lambda rows: on_device.batch(rows)[:num_args], len(data.train_x), batch_size)
    else:
        train = _batches(vae, "data", data, num_args, batch_size, device, shuffle=True)
    if validation is None:
        return train, None
    return train, _batches(vae, "validation", validation, num_args, VALIDATION_CHUNK, device, shuffle=False)


def _batches(
    vae, name: str, source: Tensor | Iterable, num_args: int, batch_size: int, device, shuffle: bool
) -> Batches:
    if isinstance(source, Tensor):
        _check_data(vae, (source,))
        Workers().check_same(name, [source])
        source = source.to(device)
        if shuffle:
            return _shuffled(lambda rows: (source[rows.to(device)],), len(source), batch_size)
        return lambda: Epoch(((part,) for part in source.split(batch_size)), -(-len(source) // batch_size))
    require(
        isinstance(source, Iterable),
        f"{name} must be a Dataset, a tensor or an iterable of batches, got {type(source).__name__}",
    )
    require(
        not shuffle or Workers().size == 1,
        f"{name} must be a Dataset or a tensor where several processes train, got {type(source).__name__}",
    )
    require(iter(source) is not source, f"{name} must be iterable again at every epoch, got a one-time iterator")

    def checked() -> Iterator[Batch]:
        batch = None
        for batch in source:
            args = (tuple(batch) if isinstance(batch, tuple | list) else (batch,))[:num_args]
            _check_data(vae, args)
            yield tuple(part.to(device) for part in args)
        require(batch is not None, f"{name} must yield at least one batch, got none")

    try:
        num_batches = len(source)
    except TypeError:  # also of a DataLoader, if its data have no length
        num_batches = None
    return lambda: Epoch(checked(), num_batches)


def _shuffled(take: Callable[[Tensor], Batch], num_data: int, batch_size: int) -> Batches:
    """`take(rows)` of this process's rows of every batch, in an order that all processes share."""
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
    x = args[0]
    if not (isinstance(x, Tensor) and x.dim() > 0 and len(x) > 0):
        raise InputError(f"x must be a tensor of at least one datum, got {x!r}"[:200])
    getattr(vae, "check_data", lambda x, *_: require_finite("x", x))(*args)
