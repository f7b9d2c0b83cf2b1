"""Worker processes that train or evaluate together, through `torch.distributed`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyrovae.common.errors import require

Value = TypeVar("Value")

# Whether the processes share their work. A process group that the caller made does not say so: its processes may have
# different data.
_together = False


class Workers:
    """This process, number `rank` of the `size` processes that work together.

    Outside `process_group` it works alone, as number 0 of 1, and every method returns what it is given.
    """

    def __init__(self) -> None:
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if _together else (0, 1)

    @property
    def is_first(self) -> bool:
        """True for the one process that writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Returns this process's part of a batch's rows, which may be empty if there are fewer rows than processes."""
        return rows[self.rank :: self.size]

    def owns(self, index: int) -> bool:
        """Returns whether piece number `index` of the work is for this process."""
        return index % self.size == self.rank

    def agreed(self, tensor: Tensor) -> Tensor:
        """Gives `tensor` the first process's values, in place, and returns it."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """Sums `tensor` over all processes, in place, and returns it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agreed_value(self, value: Value) -> Value:
        """Returns the first process's value, which may be of any type."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def check_same(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Raises `InputError` if these tensors differ between the processes, which share the work on them."""
        if self.size > 1:
            sums = [(tuple(tensor.shape), tensor.double().nan_to_num().sum().item()) for tensor in tensors]
            same = all(found == sums for found in self.gathered(sums))
            require(same, f"{name} must be the same for all {self.size} processes, which share the work on them")

    def gathered(self, value: object) -> list:
        """Returns every process's value, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def in_turn(self, pieces: Sequence) -> list:
        """Returns all pieces of the work in order, from the pieces that each process has (see `owns`)."""
        parts = self.gathered(list(pieces))
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]


@contextmanager
def process_group() -> Iterator[Workers]:
    """Within the block the processes that torchrun started train and evaluate together.

    All of them must make the same calls with the same data. `fit` gives each process its rows of every batch;
    `evaluate` and the estimates of log p(x) give each its share of the data. All processes get the whole result. They
    communicate through gloo, and on GPUs through NCCL. Without torchrun, this process works alone.

    Yields:
        This process's `Workers`, with its `rank` and the number of processes, `size`.

    Example:
        >>> with pv.workers.process_group() as workers:
        ...     print(workers.rank, workers.size)
        0 1
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield Workers()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun's store outlives the processes. A process that it restarts must not find the addresses of dead ones.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        with _set_together(True):
            yield Workers()
    finally:
        dist.destroy_process_group()


def alone() -> AbstractContextManager[None]:
    """Within the block this process works alone, also if it is one of several."""
    return _set_together(False)


@contextmanager
def _set_together(value: bool) -> Iterator[None]:
    global _together
    before, _together = _together, value
    try:
        yield
    finally:
        _together = before
