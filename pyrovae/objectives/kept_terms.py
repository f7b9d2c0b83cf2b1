"""Keeps what the loss of a step is made of, reconstruction and KL, for whoever asks; costs nothing if nobody does."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class KeptTerms:
    """Collects the terms of one loss, which may come from several chunks of particles."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, int]] = []

    def add(self, reconstruction: Tensor, kl: Tensor, num_draws: int) -> None:
        """Adds sums over `num_draws` draws and all data, 0-dim and without gradients."""
        self._parts.append((reconstruction, kl, num_draws))

    def total(self) -> Tensor | None:
        """Returns reconstruction and KL, means over draws and sums over data, `(2,)`; None if none were told."""
        if not self._parts:
            return None
        first, *rest = (torch.stack(terms) for *terms, _ in self._parts)
        num_draws = sum(num for *_, num in self._parts)
        return first if num_draws == 1 else sum(rest, first) / num_draws


_PRESENT: ContextVar[KeptTerms | None] = ContextVar("kept terms", default=None)


@contextmanager
def keeping_terms() -> Iterator[KeptTerms]:
    """Gives the terms of the loss that is computed in the block, if it is one of our objectives."""
    kept = KeptTerms()
    token = _PRESENT.set(kept)
    try:
        yield kept
    finally:
        _PRESENT.reset(token)


def kept_terms() -> KeptTerms | None:
    """Returns what collects terms at present, or None."""
    return _PRESENT.get()
