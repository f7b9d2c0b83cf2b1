"""Keeps the repeats of a comparison while they are taken, so that an interrupted comparison goes on."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyrovae.common import OtherSettings, Parts
from pyrovae.lab.repeats import Repeats
from pyrovae.training import Interrupts

SECONDS_BETWEEN = 30.0
PART = "repeats"
TOLERANCE = 1e-4  # of a bound in nats per datum: other processors round in other ways


class KeptRepeats:
    """Goes on from the repeats that an earlier call took, and keeps those of this one.

    They are kept every 30 seconds, at Ctrl-C or SIGTERM, and at the end. A signal waits until a gradient is complete.

    Args:
        parts: Where they are kept; one without a folder keeps nothing.
        estimators: Those whose repeats are taken, the references among them.
        tensors: The tensors that a run of the programs may move, which the next repeats may depend on.
    """

    def __init__(self, parts: Parts, estimators: Sequence[Repeats], tensors: Sequence[Tensor]) -> None:
        self.parts, self.estimators, self.tensors = parts, estimators, tensors
        self._keeps, self._written, self._interrupts = parts.folder is not None, time.monotonic(), Interrupts()
        self._before = [tensor.detach().clone() for tensor in tensors] if self._keeps else []

    @contextmanager
    def session(self, model: Callable, guide: Callable, args: tuple, seed: int) -> Iterator[None]:
        """Takes over the repeats that were kept; within the block signals wait for `keep_if_due`.

        `seed` is that of the first repeat of the first estimator.

        Raises:
            OtherSettings: The programs give another bound with the same draws and parameters.
        """
        if not self._keeps:
            yield
            return
        kept = self.parts.kept(PART)
        if kept is not None:
            first, was = self.estimators[0], kept["estimators"][0]["bounds"][0]
            now, _ = first.bound_of(model, guide, args, seed)
            same = math.isclose(was, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (was != was and now != now)
            rule = f"{self.parts.folder} is of other programs: their first bound was {was:.6g}, and it is now {now:.6g}"
            if not same:
                raise OtherSettings(f"{rule}: remove it, or take another folder")
            for one, state in zip(self.estimators, kept["estimators"], strict=True):
                one.restore(state)
            self._move(dict(enumerate(self._before)))  # which the first bound may have moved
            self._move(kept["moved"])
        with self._interrupts:
            yield
            self.keep()
        if self._interrupts.caught:  # while the last was kept
            raise KeyboardInterrupt(self._interrupts.caught)

    def keep_if_due(self) -> None:
        """Keeps the repeats if it is time; raises `KeyboardInterrupt` once they are kept, if a signal asked to stop."""
        caught = self._interrupts.caught
        if self._keeps and (caught or time.monotonic() - self._written >= SECONDS_BETWEEN):
            self.keep()
        if caught:
            raise KeyboardInterrupt(caught)

    def keep(self) -> None:
        """Keeps the repeats that have been taken."""
        moved = {
            index: tensor.detach().clone()
            for index, (tensor, before) in enumerate(zip(self.tensors, self._before, strict=True))
            if not torch.equal(tensor, before)
        }
        self.parts.keep(PART, {"estimators": [one.to_dict() for one in self.estimators], "moved": moved})
        self._written = time.monotonic()

    @torch.no_grad()
    def _move(self, moved: Mapping[int, Tensor]) -> None:
        for index, value in moved.items():
            self.tensors[index].copy_(value)
