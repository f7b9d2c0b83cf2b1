"""Worker processes that train or evaluate together, through `torch.distributed`."""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pyrovae.common.errors import InputError, require

Value = TypeVar("Value")

# Whether the processes share their work. A process group that the caller made does not say so: its processes may have
# different data.
_together = False
_job: str | None = None
_num_blocks = 0  # of `process_group` that this process has begun, the same number in all processes


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

    def by_first(self, compute: Callable[[], Value]) -> Value:
        """Returns what `compute()` returns in the first process. If it is refused there, all processes raise the error.

        Else the others would wait for a process that has ended, and say so in a traceback.
        """
        if self.size == 1:
            return compute()
        found: tuple[Value | None, Exception | None] = None, None
        if self.is_first:
            try:
                found = compute(), None
            except (InputError, OSError) as error:
                found = None, error
        value, refusal = self.agreed_value(found)
        if refusal is not None:
            raise refusal
        return cast(Value, value)

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

    If the block raises `InputError` and torchrun restarts the processes, they raise the same error where that block
    would begin; not if the script went on to another block after it.

    Yields:
        This process's `Workers`, with its `rank` and the number of processes, `size`.

    Example:
        >>> with pv.workers.process_group() as workers:
        ...     print(workers.rank, workers.size)
        0 1
    """
    global _num_blocks
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield Workers()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun's store outlives the processes, so what is in it tells its call from others, whatever their --rdzv-id.
    ours, attempt = dist.PrefixStore("pyrovae", store), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    _num_blocks += 1
    refusal, earlier = f"refusal {_num_blocks}", f"refusal {_num_blocks - 1}"
    if attempt > 0 and ours.check([refusal]):
        raise InputError(ours.get(refusal).decode())
    job = ours.compare_set("job", "", uuid.uuid4().hex).decode()
    # A process must not find the addresses of dead ones, nor those of an earlier block, whose connections are closed.
    addresses = dist.PrefixStore(f"attempt {attempt} block {_num_blocks}", store)
    dist.init_process_group(backend, store=addresses, rank=rank, world_size=size)
    ours.delete_key(earlier)  # the script has gone on, and all processes are past that block
    try:
        with _set(together=True, job=job):
            yield Workers()
    except InputError as error:
        with suppress(RuntimeError):  # torchrun has ended before its processes
            ours.set(refusal, str(error))
        raise
    finally:
        dist.destroy_process_group()


def current_job() -> str | None:
    """Returns the id of the call of torchrun that started this process, or started it again; None if none did."""
    return _job


def alone() -> AbstractContextManager[None]:
    """Within the block this process works alone, also if it is one of several."""
    return _set(together=False, job=_job)


@contextmanager
def _set(together: bool, job: str | None) -> Iterator[None]:
    global _together, _job
    before = _together, _job
    _together, _job = together, job
    try:
        yield
    finally:
        _together, _job = before
