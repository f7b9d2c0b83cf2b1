"""Weighted draws of one run of data after another: kept, or drawn again each time that they are asked for."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from pyrovae.common import InputError
from pyrovae.evaluation.chunks import Data
from pyrovae.evaluation.expectation import Site
from pyrovae.evaluation.importance_sampling import statistics_of
from pyrovae.evaluation.importance_weights import rounding_unit

NUMBERS_KEPT = 2**25  # of draws and log-weights: 256 MB in float64
ROUNDING = 64  # units in the last place, within which log p(x) is the same if it is computed again


class Run(NamedTuple):
    """Holds weighted draws of the latents of some data, and a seed of their own for what is drawn beside them.

    `log_w` are the raw log-weights `(draws, data)`, and `latents` has each latent by name, `(draws, data, *shape)`.
    """

    data: Data
    seed: int
    log_w: Tensor
    latents: Site


class DrawRuns:
    """Yields the runs of data of this process with their draws, the same ones each time.

    Args:
        draw: Draws them, one run after another; it is told whether it has drawn them before.
        numbers: How many numbers they are, with their weights. More than `NUMBERS_KEPT` are not kept, but drawn again
            for each pass, which takes as long as the first one; 0 keeps them.
    """

    def __init__(self, draw: Callable[[bool], Iterator[Run]], numbers: int = 0) -> None:
        self._draw = draw
        self.kept: list[Run] | None = [] if numbers <= NUMBERS_KEPT else None
        self.statistics: list[tuple[Tensor, ...]] = []
        """What `statistics_of` says of the weights of each run."""
        self._log_sums: list[Tensor] = []
        for run in draw(False):
            self.statistics.append(statistics_of(run.log_w))
            self._log_sums.append(run.log_w.logsumexp(0))
            if self.kept is not None:
                self.kept.append(run)

    def __iter__(self) -> Iterator[Run]:
        if self.kept is not None:
            yield from self.kept
            return
        for run, before in zip(self._draw(True), self._log_sums, strict=True):
            off = (run.log_w.logsumexp(0) - before).abs()
            if not bool((off <= ROUNDING * rounding_unit(run.log_w)).all()):
                raise InputError(
                    "the draws of posterior are not kept, and the pair or the data have changed since it drew them, "
                    f"by up to {off.max().item():.2g} nats: call posterior again"
                )
            yield run
