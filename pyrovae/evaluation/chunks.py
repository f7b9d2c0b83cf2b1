"""Data cut into chunks that fit into memory: what the chunks are, their sizes, and checks of the pair on them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyrovae.common import (
    InputError,
    Workers,
    device_of,
    first_line,
    is_out_of_memory,
    kept_generators,
    local_seed,
    remedy_for,
    require,
    require_count,
)
from pyrovae.data import moved
from pyrovae.evaluation.arguments import check_args, common_length, tensors_in, with_tensors
from pyrovae.programs import AS_IT_COMES, Pair, Reading, gate

DATA_PER_CHUNK = 128
PAIRS_PER_CHUNK = 8_192  # pairs of a particle and a datum
OUTPUTS_PER_CHUNK = PAIRS_PER_CHUNK * 784  # numbers that a decoder returns: 26 MB
COMPILE_PAIRS = 5_000_000  # pairs, from which on a compiled graph pays for its compilation


@dataclass(frozen=True)
class Data:
    """Holds the arguments of a pair, and which of their data are meant: `stop - start` of `num`, or all of them.

    Rows are taken of the tensors whose first dimension is `num`, also within lists, tuples and dicts. With `is_whole`
    they may not be: a chunk then has all data.
    """

    whole: tuple
    num: int
    start: int
    stop: int
    device: torch.device
    is_whole: bool = False

    @property
    def size(self) -> int:
        """The number of data."""
        return self.stop - self.start

    @cached_property
    def args(self) -> tuple:
        """The arguments with these data, on the device of the model."""
        return moved(self.whole if self.size == self.num else self._rows(), self.device)

    def _rows(self) -> tuple:
        return with_tensors(self.whole, lambda t: t[self.start : self.stop] if self.is_data(t) else t)

    def is_same(self, other: "Data") -> bool:
        """Returns True if others are these data of the same arguments."""

        def rows(data: Data) -> tuple[int, int] | None:
            return None if data.size == data.num else (data.start, data.stop)

        return self.whole is other.whole and self.device == other.device and rows(self) == rows(other)

    def is_data(self, tensor: Tensor) -> bool:
        """Returns True if a tensor has all data as its first dimension."""
        return tensor.dim() > 0 and len(tensor) == self.num

    def rows(self, start: int, stop: int) -> "Data":
        """Returns some of these data."""
        return replace(self, start=self.start + start, stop=min(self.start + stop, self.stop))

    def at(self, index: Tensor) -> tuple:
        """Returns the arguments with the data of these indices among all, in their order and as often."""
        return with_tensors(self.whole, lambda t: t[index] if self.is_data(t) else t)

    def in_chunks(self, size: int) -> Iterator["Data"]:
        """Yields chunks of `size` data, of which the last may be smaller, or all data if they cannot be cut."""
        for first in range(0, self.size, self.size if self.is_whole else size):
            yield self if self.is_whole else self.rows(first, first + size)


class Opened(NamedTuple):
    """Holds the data of a pair, a run of it on some or all of them, and how many pairs fit into memory.

    - `pair`: two particles; it tells the layout.
    - `pairs_at_a_time`: the number of pairs of a particle and a datum that are decoded at a time, as the caller wants.
    - `reading`: how the pair is read.
    - `pairs_in_memory`: the number of pairs that memory allows.
    - `checked`: the model, the guide and the data that `pair` is a checked run of, if they are known.
    """

    data: Data
    pair: Pair
    pairs_at_a_time: int
    reading: Reading
    pairs_in_memory: int
    checked: tuple[Callable, Callable, Data] | None = None

    def is_run_of(self, model: Callable, guide: Callable, data: Data) -> bool:
        """Returns True if `pair` is a checked run of these programs on these data."""
        return self.checked is not None and self.checked[:2] == (model, guide) and self.checked[2].is_same(data)

    def require_one_plate(self, name: str) -> None:
        """Raises `InputError`, which names the caller, if data with latents of their own lie in plates side by side."""
        plates = sorted({plate.name for plate in self.pair.plates})
        wanted = f"{name} needs data in one plate, or latents that all share"
        require(self.pair.layout.has_globals or len(plates) < 2, f"{wanted}, got the plates {', '.join(plates)}")

    @property
    def as_one(self) -> Data:
        """All data as one datum, for a joint reading."""
        return Data(self.data.whole, 1, 0, 1, self.data.device, is_whole=True)


def opened(
    model: Callable, guide: Callable, args: tuple, chunk_size: int | None = None, reading: Reading = AS_IT_COMES
) -> Opened:
    """Counts the data, runs the pair on them, and finds out how many pairs fit into memory.

    Tensors of one length are data: the first of them are run. Of arguments of any other kind, only a run of all tells
    how many data there are. `chunk_size` is the number of pairs at a time; None takes as many as a decoder's memory
    allows. Raises `InputError` if the arguments have values that are not finite, or if the pair is refused.
    """
    check_args(model, args)
    tensors = tensors_in(args)
    Workers().check_same("data", tensors)
    if chunk_size is not None:
        require_count("chunk_size", chunk_size)
    length, device = common_length(args), device_of(model, tensors)
    needs = gate.Weights(densities=False, everywhere=False, alone=False, reading=reading)
    data, pair = None, None
    _set_up(guide, moved(args, device))
    if length is not None:
        data = Data(args, length, 0, length, device)
        ran = data.rows(0, DATA_PER_CHUNK)
        pair = _pair_of_rows(model, guide, ran, needs)
    if data is None or pair is None:
        found: list[Pair] = []
        ran = Data(args, 1, 0, 1, device, is_whole=True)
        check_in_parts(model, guide, ran, needs, found.append)
        pair = found[0]
        data = Data(args, pair.batch, 0, pair.batch, device)
    most = pairs_in_memory(pair)
    checked = (model, guide, ran) if ran.is_whole or pair.batch == ran.size else None  # else of a part of the rows
    return Opened(data, pair, most if chunk_size is None else chunk_size, reading, most, checked)


def pairs_in_memory(pair: Pair) -> int:
    """Returns how many pairs of a particle and a datum a decoder's memory allows at a time."""
    return max(1, min(PAIRS_PER_CHUNK, OUTPUTS_PER_CHUNK // pair.outputs))


@torch.no_grad()
def _set_up(guide: Callable, args: tuple) -> None:
    """Lets one of Pyro's autoguides, if it has not run yet, make its parameters for all data."""
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        with kept_generators():
            guide(*args)


def _pair_of_rows(model: Callable, guide: Callable, few: Data, needs: gate.Needs) -> Pair | None:
    """Returns a run of the pair on some rows, or None if all data have to be run to tell.

    That is so if it fails, which may be due to the cut; if it has not as many data as there are rows; if they are a
    subsample of data that share a latent only because they are cut; or if it made parameters with a row for each of
    them, which are then forgotten.
    """
    found: list[Pair] = []
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        check_in_parts(model, guide, few, needs, found.append)
    except Exception as error:
        if few.size == few.num or is_out_of_memory(error):
            raise
        return None
    finally:
        new = [name for name in store.keys() if name not in before and few.size in store[name].shape]  # noqa: SIM118
        if few.size < few.num and new:
            found.clear()
            for name in new:
                del store[name]
    plates = {plate.name for pair in found for plate in pair.plates}
    if few.size < few.num and any(_is_made_a_subsample(pair, few.num) for pair in found):
        return None
    return found[0] if len(plates) == 1 and sum(pair.batch for pair in found) == few.size else None


def _is_made_a_subsample(pair: Pair, num: int) -> bool:
    """Returns True if a plate of data that share a latent is of all `num` data, of which a run has fewer."""
    return pair.layout.has_globals and any(plate.size < plate.full_size == num for plate in pair.plates)


def check_in_parts(
    model: Callable,
    guide: Callable,
    data: Data,
    needs: gate.Needs | None,
    inspect: Callable[[Pair], object] = lambda pair: None,
) -> None:
    """Checks that the pair gives what `needs` asks for on these data, and passes the pair that was run to `inspect`.

    The data are halved, again and again, if memory does not suffice for all of them at once.
    """
    try:
        with local_seed(0):
            inspect(gate.check(model, guide, needs, *data.args))
        return
    except (TypeError, AttributeError) as error:  # the first thing that a program does with a strange argument
        remedy = next(filter(None, map(remedy_for, data.args)), "")
        why = f"{first_line(error)}{remedy and '; '}{remedy}"
        raise InputError(f"the pair does not run with these arguments: {why}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or data.size == 1 or data.is_whole:
            raise
    half = data.size // 2
    check_in_parts(model, guide, data.rows(0, half), needs, inspect)
    check_in_parts(model, guide, data.rows(half, data.size), needs, inspect)


def check_chunk(
    model: Callable,
    guide: Callable,
    found: Opened,
    data: Data,
    needs: gate.Weights,
    inspect: Callable[[Pair], object] = lambda pair: None,
) -> None:
    """Does what `check_in_parts` does, without another run of the data that `found.pair` is a run of."""
    needs = replace(needs, reading=found.reading)
    if found.is_run_of(model, guide, data):
        inspect(gate.check_again(found.pair, model, guide, needs, *data.args))
    else:
        check_in_parts(model, guide, data, needs, inspect)
