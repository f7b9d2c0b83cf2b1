"""Finds how the batches of a training make up its whole data, and refuses those that cannot be put together.

Global sites count once for all N data, so that N must be known where an epoch has several batches.
"""

from collections.abc import Iterable, Sequence

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from pyrovae.common import InputError, Workers, fixed_generators, require
from pyrovae.data import Batch, Batches, Dataset, Rows, main_tensor, num_rows
from pyrovae.programs import Pair, ProgramPair, Reading, run_pair
from pyrovae.training.data_count import DataCount
from pyrovae.training.pair_modules import in_mode, modules_of

COUNT_SEED = 0


class WholeData:
    """Tells how the data of a batch are counted, from a run of the pair on the first batch.

    Args:
        vae: the pair.
        source: the data set, the tensor or the iterable of batches that is trained on.
        batches: starts an epoch of its batches.
        num_batches: the number of batches of an epoch; None where it is not known.
        first: the first batch.
        generators: the generators that the data draw from.
    """

    def __init__(
        self,
        vae: ProgramPair,
        source: Dataset | Rows | Iterable | None,
        batches: Batches,
        num_batches: int | None,
        first: Batch,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.vae, self.source, self.batches, self.generators = vae, source, batches, generators
        self.num_batches, self.is_cut = num_batches, isinstance(source, Dataset | Rows)
        self.is_one_batch = num_batches == 1 and Workers().size == 1
        x = main_tensor(first[0]) if first else None
        self.rows = len(x) if isinstance(x, Tensor) and x.dim() > 0 else None

    def count(self, pair: Pair, reading: Reading) -> DataCount:
        """Returns how data are counted, given the run of the pair on the first batch as an objective reads it.

        Raises `InputError` if several batches do not make up a whole, or if N is needed and not known.
        """
        layout = pair.layout
        if not self.is_one_batch:
            self._check_several(pair, reading)
        if layout.has_globals:
            num_data = None if self.is_one_batch or self._is_declared(pair) else self._num_data(pair, reading)
            return DataCount(layout.plates, has_globals=True, num_data=num_data)
        by_rows = self.is_cut and self.has_rows(pair) and _whole(pair) == pair.batch
        return DataCount(layout.plates, by_rows=by_rows)

    def has_rows(self, pair: Pair) -> bool:
        """Returns True if the first batch has a row for each datum, in one data plate."""
        return len(pair.plates) == 1 and self.rows == pair.batch

    def _is_declared(self, pair: Pair) -> bool:
        """Returns True if the program says itself how many data there are besides those of the batch."""
        return _whole(pair) not in (pair.batch, self.rows)

    def _check_several(self, pair: Pair, reading: Reading) -> None:
        found, layout = self.num_batches or "several", pair.layout
        rule = f"must be in one batch, got {found} batches"
        require(not reading.joint, f"joint=True puts all data under one bound: they {rule}")
        at_once = not layout.plates and layout.draws_globally
        require(not at_once, f"this guide draws the latents of all data at once: they {rule}")
        local = layout.plates and any(map(pair.is_local, pair.latent.values()))
        require(
            not (local and isinstance(self.vae.guide, AutoGuide) and _whole(pair) == pair.batch),
            f"{type(self.vae.guide).__name__} has parameters for each datum: all data {rule}, or the data plate must "
            "declare their number and subsample them",
        )
        if self.is_cut:
            require(
                self.rows in (pair.batch, _whole(pair)),
                f"a tensor is cut into batches along its first dimension, which must be that of the data plate, got "
                f"{self.rows} rows and {pair.batch} data: give an iterable of batches",
            )

    def _num_data(self, pair: Pair, reading: Reading) -> int:
        """Returns the number of data of an epoch."""
        rule = "the number of data must be known for a pair with sites outside the data plate"
        declare = 'let the program declare it, pyro.plate("data", N, subsample_size=len(x))'
        if len(pair.plates) > 1:
            names = " and ".join(f'"{plate.name}"' for plate in pair.plates)
            raise InputError(f"{rule}, and is not for each of the plates {names}: {declare}")
        num_data = num_rows(self.source)
        if num_data is not None:
            return num_data
        sampled = self._num_sampled(pair)
        if sampled is not None:
            return sampled
        require(self.num_batches is not None, f"{rule}: give a tensor or an iterable with a length, or {declare}")
        with fixed_generators(COUNT_SEED, self.generators), in_mode(False, modules_of(self.vae)), torch.no_grad():
            runs = (run_pair(self.vae.model, self.vae.guide, *batch, reading=reading) for batch in self.batches())
            return sum(map(_whole, runs))

    def _num_sampled(self, pair: Pair) -> int | None:
        """Returns how many data a DataLoader that makes batches of single data draws in an epoch, or None."""
        sampler = self.source.batch_sampler if isinstance(self.source, DataLoader) else None
        if type(sampler) is not BatchSampler:
            return None
        try:
            num_data = len(sampler.sampler)  # type: ignore[arg-type]
        except TypeError:
            return None
        return num_data if _whole(pair) == min(sampler.batch_size, num_data) else None


def _whole(pair: Pair) -> int:
    """Returns the number of data that a loss of this run is of."""
    return sum(plate.full_size for plate in pair.plates) if pair.plates else 1
