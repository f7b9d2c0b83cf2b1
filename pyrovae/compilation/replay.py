"""A program traced once and replayed, after it has been seen to do the same."""

import math
import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pyrovae.common import CapturedState, generator_states, set_generator_states
from pyrovae.compilation.graph import CannotTrace, Graph

Outcome = tuple[Tensor | None, ...]
RECHECK_FROM = 16

# How far a replay may be off, relatively: machine code rounds otherwise.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}


class Replay:
    """`function(*args)`, a program of tensors, as a graph that has been compared with it.

    `eager()` runs the program on the very `args`; `programs` are what it is made from (a model, a guide), of which
    module buffers are the graph's inputs, so that what moves them moves the real ones. The graph, run on the same
    random numbers and from the same buffers, must give the same as the eager run to rounding: the first tensor in norm,
    all others (gradients, of which many may be 0 but for rounding) in norm together, and every buffer. Else, and where
    the program cannot be traced, `why` says so and `graph` is None.

    `outcome` is what the graph gave, so that it does not matter to the bit at which steps it is compared (a run that
    is resumed is compared at others); where there is no graph, it is what the eager run gave.
    """

    def __init__(
        self,
        function: Callable[..., Outcome],
        args: Sequence[Tensor],
        eager: Callable[[], Outcome],
        programs: Sequence[object],
        names: Callable[[], Sequence[str]] = tuple,
        inductor: bool = True,
    ) -> None:
        self.graph: Graph | None = None
        self.why: str | None = None
        self._uses = 0
        before, start = _values(CapturedState(programs).tensors()), generator_states()
        self.outcome = eager()
        self.watch = CapturedState(programs, names())
        self._buffers = self.watch.buffers
        end, after = generator_states(), _values(self.watch.tensors())
        try:
            graph = self._trace(function, args, before, inductor)
            after += _values([t for t in graph.outside if not (t.requires_grad or any(t is a for a, _ in after))])
            _put(before)
            set_generator_states(start)
            replayed = graph(*args, *self._current_buffers())
            self.why = self._difference(replayed, end, after)
            if self.why is None:
                self.graph, self.outcome = graph, replayed
        except CannotTrace as error:
            self.why = str(error)
        finally:
            if self.graph is None:
                _put(after)
                set_generator_states(end)

    def __call__(self, *args: Tensor) -> Outcome:
        self._uses += 1
        return self.graph(*args, *self._current_buffers())

    def change(self) -> str | None:
        """What of the program has been replaced since the trace, or None."""
        return self.watch.change() or (None if self.graph.fits() else "the memory layout of a parameter")

    @property
    def is_due(self) -> bool:
        """Whether another look at the eager program is due: at every power of two of uses, from 16 on."""
        return self._uses + 1 >= RECHECK_FROM and (self._uses + 1) & self._uses == 0

    def compare(self, eager: Callable[[], Outcome], args: Sequence[Tensor]) -> tuple[Outcome, str | None]:
        """The outcome on `args`, and why the graph is no longer the same program as `eager()`, or None."""
        self._uses += 1
        tensors = self.watch.tensors()
        before, start = _values(tensors), generator_states()
        self.outcome = eager()
        end, after = generator_states(), _values(tensors)
        why = "its graph failed"
        try:
            _put(before)
            set_generator_states(start)
            replayed = self.graph(*args, *self._current_buffers())
            why = self._difference(replayed, end, after)
        finally:
            if why is not None:
                _put(after)
                set_generator_states(end)
        return (replayed if why is None else self.outcome), why

    def _current_buffers(self) -> list[Tensor]:
        return [container[name] for container, name in self._buffers]

    def _trace(self, function: Callable, args: Sequence[Tensor], before: list, inductor: bool) -> Graph:
        if not args:
            raise CannotTrace("it is given no tensor")
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002

        def with_buffers(*values: Tensor) -> Outcome:
            with _swapped(self._buffers, values[len(args) :]):
                return function(*values[: len(args)])

        try:
            _put(before)
            graph = Graph(with_buffers, [*args, *self._current_buffers()], inductor, len(self._buffers))
        finally:
            change = self.watch.change()
            if change is not None:
                self.watch.restore()
            drew = random.getstate() != python or str(np.random.get_state()) != str(numpy)  # noqa: NPY002
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
        if change is not None:
            raise CannotTrace(f"it changes {change} as it runs")
        if drew:
            raise CannotTrace("it draws from Python's or NumPy's random numbers, which a replay would not")
        return graph

    def _difference(self, replayed: Outcome, end: list[Tensor], after: list[tuple[Tensor, Tensor]]) -> str | None:
        """What differs beyond rounding, in words."""
        expected = self.outcome
        if not all(torch.equal(a, b) for a, b in zip(generator_states(), end, strict=True)):
            return "it draws other random numbers when it is replayed"
        if [a is None for a in expected] != [b is None for b in replayed]:
            return "it gives gradients to other parameters when it is replayed"
        tolerance = _TOLERANCES.get(expected[0].dtype, 0.1)
        size, off = _norms(expected[:1], replayed[:1])
        if not math.isfinite(size):
            return None  # the eager run itself went wrong, and the caller will say so
        if not off <= tolerance * (1 + size):
            return f"its value is off by {off:.3g} of {size:.3g} when it is replayed"
        norm, off = _norms(expected[1:], replayed[1:])
        if math.isfinite(norm) and not off <= tolerance * (norm + 1e-3 * size):
            return f"its gradient is off by {off:.3g} of {norm:.3g} when it is replayed"
        for moved, value in after:
            if not torch.allclose(moved.double(), value.double(), rtol=tolerance, atol=tolerance, equal_nan=True):
                return "it moves a buffer or another tensor otherwise when it is replayed"
        return None


def _norms(expected: Outcome, replayed: Outcome) -> tuple[float, float]:
    """The norm of all that was expected, and of its distance to what came."""
    pairs = [(a.double(), b.double()) for a, b in zip(expected, replayed, strict=True) if a is not None]
    norm = math.sqrt(sum(a.square().sum().item() for a, _ in pairs))
    return norm, math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))


@torch.no_grad()
def _values(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


@torch.no_grad()
def _put(values: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in values:
        if not torch.equal(tensor, value):  # what never moves (an expanded tensor, say) is not written
            tensor.copy_(value)


@contextmanager
def _swapped(places: list[tuple[dict, str]], values: Sequence[Tensor]):
    """Module buffers replaced by `values`. A program that puts a new tensor in a buffer's place is refused."""
    kept = [container[name] for container, name in places]
    for (container, name), value in zip(places, values, strict=True):
        container[name] = value
    try:
        yield
        for (container, name), value in zip(places, values, strict=True):
            if container[name] is not value:
                raise CannotTrace(f"it puts a new tensor in the place of the buffer {name}, and not new values into it")
    finally:
        for (container, name), value in zip(places, kept, strict=True):
            container[name] = value
