"""Counts the data that a step's loss is of, and scales the loss to all data where a pair has global sites.

The loss of a batch of B data with a global theta is, as the objectives give it,

    -(log p(theta) - log q(theta) + sum_n L_n),    n over the B data of the batch

In an epoch of N data, that counts theta N / B times. With L_n scaled by N / B it is an unbiased estimate of the loss of
all data instead, and its gradient, divided by N, is per datum as that of other pairs.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample

from pyrovae.common import require
from pyrovae.data import Batch
from pyrovae.programs import size_at


class Counted(Protocol):
    """Tells, after a run of the pair, the number of data in its data plates, and the number that its loss is of."""

    @property
    def size(self) -> int: ...

    @property
    def whole(self) -> int: ...


@dataclass(frozen=True)
class Rows:
    """Says that size and whole are one number, known without a run."""

    size: int

    @property
    def whole(self) -> int:
        return self.size


@dataclass(frozen=True)
class DataCount:
    """Says how the data of a run are counted.

    Args:
        plates: the names of the data plates; without any a run is of one datum.
        has_globals: whether sites may lie outside of them.
        num_data: N, to which the data of each run are scaled; None leaves them as they are.
        by_rows: says that there are as many data as the first argument has rows.
    """

    plates: tuple[str, ...]
    has_globals: bool = False
    num_data: int | None = None
    by_rows: bool = False

    def of_run(self, batch: Batch) -> AbstractContextManager[Counted]:
        """Returns a block for a run of the pair on the batch, which counts its data."""
        if self.by_rows:
            return nullcontext(Rows(len(batch[0])))
        return _Counting(self) if self.plates else nullcontext(Rows(1))


class _Counting(Messenger):
    """Counts the data at the sites that pass, and scales the sites in the data plate."""

    def __init__(self, count: DataCount) -> None:
        super().__init__()
        self.count = count
        self.sizes: dict[str, tuple[int, int]] = {}

    @property
    def size(self) -> int:
        return sum(size for size, _ in self._found())

    @property
    def whole(self) -> int:
        return self.count.num_data or sum(whole for _, whole in self._found())

    def _found(self) -> list[tuple[int, int]]:
        plates = " or ".join(f'"{name}"' for name in self.count.plates)
        require(len(self.sizes) > 0, f"every batch must have a site in the data plate {plates}, as the first one has")
        return list(self.sizes.values())

    # Before a trace within the block takes its copy of the message, which is when a plate without a size has one.
    def _pyro_post_sample(self, msg: Message) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.count.plates:
                size = frame.size
                if size == -1:
                    size = max(size_at(cast(dict, msg), cast(int, frame.dim)), self.sizes.get(frame.name, (1, 1))[0])
                whole = size if frame.full_size in (None, -1) else frame.full_size
                self.sizes[frame.name] = size, whole
                if self.count.num_data is not None:
                    msg["scale"] = msg["scale"] * (self.count.num_data / whole)
                return
        known = self.count.has_globals or site_is_subsample(msg) or (msg["infer"] or {}).get("_deterministic")
        require(bool(known), f'site "{msg["name"]}" must be there at the first batch, as a site outside the data plate')
