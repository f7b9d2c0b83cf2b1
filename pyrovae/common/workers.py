"""The processes that train or evaluate together, on `torch.distributed`, within `process_group`; else one alone."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from pyrovae.common.errors import require

_together = False  # a process group of the caller's own may mean anything, and each may have data of its own


class Workers:
    """This process among `size` of them, as number `rank`; alone, every method gives back what it is given."""

    def __init__(self) -> None:
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if _together else (0, 1)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch's rows; none where there are fewer rows than processes."""
        return rows[self.rank :: self.size]

    def owns(self, index: int) -> bool:
        """Whether piece number `index` of the work is this process's."""
        return index % self.size == self.rank

    def agreed(self, tensor: Tensor) -> Tensor:
        """The first process's values, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agreed_value(self, value: object) -> object:
        """The first process's value, of any kind."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def check_same(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Raises `InputError` where the processes, which share the work on these tensors, have others."""
        if self.size > 1:
            sums = [(tuple(tensor.shape), tensor.double().nan_to_num().sum().item()) for tensor in tensors]
            same = all(found == sums for found in self.gathered(sums))
            require(same, f"{name} must be the same for all {self.size} processes, which share the work on them")

    def gathered(self, value: object) -> list:
        """Every process's value, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def in_turn(self, pieces: Sequence) -> list:
        """All pieces of the work in their order, from what each process has of them (see `owns`)."""
        parts = self.gathered(list(pieces))
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]


def hides_progress(progress: bool | None) -> bool | None:
    """tqdm's `disable`: None shows a bar on a terminal; of several processes the first alone shows one."""
    if not Workers().is_first:
        return True
    return None if progress is None else not progress


def device_of_worker(device: str) -> str:
    """The GPU of this process, where several on one machine would all take the first."""
    if device == "auto" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device


@contextmanager
def process_group() -> Iterator[Workers]:
    """Within the block the processes that `torchrun` started, if it did, train and evaluate together.

    What they do must then be the same, with the same data: of `fit` each has its rows of every batch, of `evaluate` and
    the estimates of log p(x) its share of the data, and all have the results of all. gloo; NCCL on GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield Workers()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun's store outlives the processes, and those that it starts again must not find the addresses of the dead.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        with _set_together(True):
            yield Workers()
    finally:
        dist.destroy_process_group()


def alone() -> AbstractContextManager[None]:
    """Within the block this process does by itself what it does."""
    return _set_together(False)


@contextmanager
def _set_together(value: bool) -> Iterator[None]:
    global _together
    before, _together = _together, value
    try:
        yield
    finally:
        _together = before
