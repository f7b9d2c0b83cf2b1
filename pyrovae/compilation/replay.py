"""Replays a program that was traced once, after a check that the graph does what the program does."""

import math
import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyrovae.common import CapturedState, first_line, generator_states, set_generator_states
from pyrovae.compilation.graph import Graph
from pyrovae.compilation.tracing import CannotTrace

Outcome = tuple[Tensor | None, ...]
OTHER_DRAWS = "it draws other random numbers when it is replayed"
RECHECK_FROM = 16  # the first use of a graph at which it is compared with the program again

# The relative difference that is allowed between a replay and the program, since machine code rounds differently.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
# By this many times as much they may differ where as small a change of the parameters moves the program as far.
MOST_TOLERANCES = 10
MOST_COPIED = 2**24  # numbers of an argument: 64 MB
NUM_ROUNDED_RUNS = 8  # an activation's kink may be crossed in some of them


class Replay:
    """Holds a program of tensors as a graph that has been compared with the eager program.

    The graph runs on the same random numbers and from the same buffers as the eager run, and must give the same to
    rounding: the leading tensors in norm, all others (gradients, many of which may be 0 but for rounding) in norm
    together, and every buffer. If it does not, or if the program cannot be traced, `graph` is None and `why` says why.

    A program may set itself up in its first run (an autoguide draws where to start), which does more than the next.
    If `may_set_up` and the eager run has replaced something that the program holds, or has drawn other numbers than its
    replay (where a parameter starts), there is no graph yet and no `why`.

    `outcome` is the result of the graph. It therefore does not matter to the bit at which steps the two are compared (a
    resumed run compares them at other steps). Without a graph, `outcome` is the result of the eager run.

    Args:
        function: The program: takes tensors and returns a tuple of tensors and None.
        args: The tensors to trace it with, and to compare the two runs on.
        eager: Runs the program eagerly on the same `args`.
        programs: What the program is made from (a model, a guide). The buffers of their modules are inputs of the
            graph, so that a replay moves the real buffers.
        names: Returns the names in Pyro's param store that the program uses, and is called after the eager run.
        inductor: Whether the graph is compiled to machine code.
        num_values: The number of leading tensors that are compared in norm each by itself; all others are so together.
        may_set_up: Whether the eager run may be the program's first.
        others: What the program is given besides tensors.
    """

    def __init__(
        self,
        function: Callable[..., Outcome],
        args: Sequence[Tensor],
        eager: Callable[[], Outcome],
        programs: Sequence[object],
        names: Callable[[], Sequence[str]] = tuple,
        inductor: bool = True,
        num_values: int = 1,
        may_set_up: bool = False,
        others: Sequence[object] = (),
    ) -> None:
        self.graph: Graph | None = None
        self._accepted: Graph  # the same, for those who have looked whether there is one
        self.why: str | None = None
        self._uses, self._num_values = 0, num_values
        found = CapturedState(programs, args=others)
        before, start = _values(_moved_by(found, args)), generator_states()
        held = found.sources()
        self.outcome = eager()
        self.why = found.moved_source(held)
        if may_set_up and (found.change() is not None or self.why is not None):
            self.why = None
            return
        if self.why is not None:
            return
        self._state = CapturedState(programs, names(), others)
        self._buffers = self._state.buffers
        end, after = generator_states(), _values(_moved_by(self._state, args))
        try:
            graph = self._trace(function, args, before, inductor)
            after += _values([t for t in graph.outside if not (t.requires_grad or any(t is a for a, _ in after))])
            _write(before)
            set_generator_states(start)
            try:
                replayed = graph(*args, *self._current_buffers())
            except Exception as error:  # the program itself has just run
                raise CannotTrace(f"its graph fails: {first_line(error)}") from error
            self.why = self._difference(replayed, end, after, partial(_rounded, eager, graph, before, start))
            if self.why is None:
                self.graph = self._accepted = graph
                self.outcome = replayed
            elif may_set_up and self.why is OTHER_DRAWS:
                self.why = None
        except CannotTrace as error:
            self.why = str(error)
        finally:
            if self.graph is None:
                _write(after)
                set_generator_states(end)

    def __call__(self, *args: Tensor) -> Outcome:
        self._uses += 1
        return self._accepted(*args, *self._current_buffers())

    @property
    def is_machine_code(self) -> bool:
        """True if the graph was compiled, and False if PyTorch runs its operations one by one."""
        return self._accepted.inductor

    def change(self) -> str | None:
        """Returns the name of a part of the program that has been replaced since the trace, or None."""
        change = self._state.change()
        if change is None and not self._accepted.fits(self._current_buffers()):
            return "the memory layout of a parameter or a buffer"
        return change

    @property
    def is_due(self) -> bool:
        """True if the next use must compare graph and program again, which uses 16, 32, 64 and so on must."""
        return self._uses + 1 >= RECHECK_FROM and (self._uses + 1) & self._uses == 0

    def compare(self, eager: Callable[[], Outcome], args: Sequence[Tensor]) -> tuple[Outcome, str | None]:
        """Returns the outcome on `args`, and why the graph is no longer the same program as `eager()`, or None."""
        self._uses += 1
        tensors, held = _moved_by(self._state, args), self._state.sources()
        before, start = _values(tensors), generator_states()
        self.outcome = eager()
        end, after = generator_states(), _values(tensors)
        why = self._state.moved_source(held)
        if why is not None:
            return self.outcome, why
        why = "it was interrupted"
        try:
            _write(before)
            set_generator_states(start)
            replayed = self._accepted(*args, *self._current_buffers())
            rounded = partial(_rounded, eager, self._accepted, before, start)
            why = self._difference(replayed, end, after, rounded)
        except Exception as error:  # the program itself has just run
            why = f"its graph fails: {first_line(error)}"
        finally:
            if why is not None:
                _write(after)
                set_generator_states(end)
        return (replayed if why is None else self.outcome), why

    def _current_buffers(self) -> list[Tensor]:
        return [container[name] for container, name in self._buffers]

    def _trace(self, function: Callable, args: Sequence[Tensor], before: list, inductor: bool) -> Graph:
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        refused: CannotTrace | None = None

        def with_buffers(*values: Tensor) -> Outcome:
            with _buffers_replaced(self._buffers, values[len(args) :]):
                return function(*values[: len(args)])

        try:
            _write(before)
            graph = Graph(with_buffers, [*args, *self._current_buffers()], inductor, len(self._buffers))
        except CannotTrace as error:
            refused = error
        finally:
            self._state.restore_caches()
            change = self._state.change()
            if change is not None:
                self._state.restore()
            drew = random.getstate() != python or str(np.random.get_state()) != str(numpy)  # noqa: NPY002
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
        if change is not None:
            raise CannotTrace(f"it changes {change} as it runs")
        if refused is not None:
            raise refused
        if drew:
            raise CannotTrace("it draws from Python's or NumPy's random numbers, which a replay would not")
        return graph

    def _difference(
        self,
        replayed: Outcome,
        end: list[Tensor],
        after: list[tuple[Tensor, Tensor]],
        rounded: Callable[[], list[Outcome]],
    ) -> str | None:
        """Returns what differs beyond rounding, in words, or None; `rounded` is `_rounded` of this run."""
        expected = self.outcome
        if not all(torch.equal(a, b) for a, b in zip(generator_states(), end, strict=True)):
            return OTHER_DRAWS
        if [a is None for a in expected] != [b is None for b in replayed]:
            return "it gives gradients to other parameters when it is replayed"
        first = expected[0]
        assert first is not None  # a loss
        tolerance = max(_TOLERANCES.get(part.dtype, 0.1) for part in (*expected, *replayed) if part is not None)
        size, _ = _norms(expected[:1], replayed[:1])
        if not math.isfinite(size):
            return None  # the eager run itself failed, which the caller reports
        others: list[Outcome] | None = None
        values = [(slice(place, place + 1), 1.0, "value") for place in range(self._num_values)]
        for part, floor, what in [*values, (slice(self._num_values, None), 1e-3 * size, "gradient")]:
            norm, off = _norms(expected[part], replayed[part])
            allowed = tolerance * (norm + floor)
            if not math.isfinite(norm) or off <= allowed:
                continue
            if off <= MOST_TOLERANCES * allowed:
                others = rounded() if others is None else others
                if off <= 2 * max(_norms(expected[part], other[part])[1] for other in others):
                    continue
            return f"its {what} is off by {off:.3g} of {norm:.3g} when it is replayed"
        for moved, value in after:
            if not _are_same(moved, value) and not torch.allclose(
                moved.double(), value.double(), rtol=tolerance, atol=tolerance, equal_nan=True
            ):
                return "it moves a buffer or another tensor differently when it is replayed"
        return None


def _rounded(
    eager: Callable[[], Outcome], graph: Graph, before: list[tuple[Tensor, Tensor]], start: list[Tensor]
) -> list[Outcome]:
    """Returns what a program gives eagerly from where it was, with parameters that differ by a few roundings.

    Where a sum cancels, or an activation has a kink, the gradient may move by much more than they do.
    """
    parameters = _values(
        [t for t in graph.outside if t.requires_grad and t.is_floating_point() and 0 not in t.stride()]
    )
    now, end = _values([tensor for tensor, _ in before]), generator_states()
    generator, outcomes = torch.Generator().manual_seed(0), []
    try:
        for _ in range(NUM_ROUNDED_RUNS):
            _write(before)
            set_generator_states(start)
            with torch.no_grad():
                for parameter, value in parameters:
                    moved = torch.randn(value.shape, generator=generator).to(value)
                    parameter.copy_(value * (1 + 4 * torch.finfo(value.dtype).eps * moved))
            outcomes.append(eager())
    finally:
        _write([*now, *parameters])
        set_generator_states(end)
    return outcomes


def _moved_by(state: CapturedState, args: Sequence[Tensor]) -> list[Tensor]:
    """Returns the tensors that a run may move in place: the state's, Pyro's parameters, and arguments but huge ones."""
    small = [arg for arg in args if arg.numel() <= MOST_COPIED and not arg.is_inference()]
    held = [*state.tensors(), *state.parameters(), *pyro.get_param_store()._params.values(), *small]
    usual = [t for t in held if t.layout == torch.strided and not t.is_nested and type(t) in (Tensor, nn.Parameter)]
    return list({id(tensor): tensor for tensor in usual}.values())


def _norms(expected: Outcome, replayed: Outcome) -> tuple[float, float]:
    """Returns the norm of all expected tensors together, and that of their difference from the replayed ones."""
    both = ((a, b) for a, b in zip(expected, replayed, strict=True) if a is not None and b is not None)
    pairs = [(a.double(), b.double()) for a, b in both]
    norm = math.sqrt(sum(a.square().sum().item() for a, _ in pairs))
    return norm, math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))


@torch.no_grad()
def _values(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Returns each tensor with a copy of it."""
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


@torch.no_grad()
def _write(values: list[tuple[Tensor, Tensor]]) -> None:
    """Gives each tensor the value that `_values` kept of it."""
    for tensor, value in values:
        if not _are_same(tensor, value):  # what never moves (an expanded tensor, a file's) must not be written to
            tensor.copy_(value)


def _are_same(tensor: Tensor, value: Tensor) -> bool:
    return torch.equal(tensor, value) or bool(((tensor == value) | ((tensor != tensor) & (value != value))).all())


@contextmanager
def _buffers_replaced(places: list[tuple[dict, str]], values: Sequence[Tensor]):
    """Within the block `values` replace module buffers.

    Raises `CannotTrace` if the program puts a new tensor in the place of a buffer.
    """
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
