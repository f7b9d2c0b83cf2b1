"""Repeats the random choices of a program that is run twice: dropout, subsample indices, whatever else it draws.

Path derivatives run a pair again at the latents of its first run, and chunks run it again for other latents. What a
program draws besides its latents must then be as it was, or the second run is that of another program.
"""

import ctypes
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch._guards import active_fake_mode
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.common import WeakByIdentity, generator_states, require, set_generator_states


def is_traced() -> bool:
    """Returns True while operations are recorded as a graph, where no value can be looked at."""
    return active_fake_mode() is not None


class Choices:
    """Keeps the random choices of one run of a pair, for runs that must make them again.

    `first` is the context of the first run. `again(run)` returns `run(redraw)`: with `redraw` the latents must be
    drawn, too, and the draws discarded, so that every other draw finds the generators as it did in the first run. That
    is done only for programs that draw more than latents. While a graph is recorded, generators cannot be set back, and
    the random numbers of the first run are used again instead.
    """

    def __init__(self, model: Callable, guide: Callable) -> None:
        self.programs = model, guide
        self.draws_more = _draw_more(self.programs)
        self._start: tuple = ()
        self._tape: list | None = None

    def mark_as_drawing_more(self) -> None:
        """Marks the programs as ones that draw more than their latents, from now on."""
        self.draws_more = True
        for program in self.programs:
            with suppress(TypeError):  # cannot be referred to weakly
                _programs_that_draw_more.setdefault(owner_of(program), lambda: True)

    @contextmanager
    def first(self) -> Iterator[None]:
        """Keeps what a second run needs: where the generators start, or what was drawn while a graph is recorded."""
        if not is_traced():
            self._start, before = saved_generators(), random_mark()[1:]
            yield
            # NumPy makes normal numbers in pairs, and the second leaves no mark: the first run is watched, too.
            if random_mark()[1:] != before:
                self.mark_as_drawing_more()
        elif self.draws_more:
            self._tape = []
            with _Recording(self._tape):
                yield
        else:
            yield

    def again(self, run: Callable[[bool], Any]) -> Any:
        """Returns `run(redraw)`, a second run with the random choices of the first."""
        if is_traced():
            if self._tape is None:
                return run(False)
            with Playback(self._tape):
                return run(True)
        if not self.draws_more:
            before = random_mark()
            result = run(False)
            if random_mark() == before:
                return result
            self.mark_as_drawing_more()
        restore_generators(self._start)
        return run(True)  # which leaves the generators where the first run did


class Redrawn(Messenger):
    """Lets latents be drawn, so that generators move, and then gives them the values held here."""

    def __init__(self, latents: dict[str, Tensor]) -> None:
        super().__init__()
        self.latents = latents

    def _pyro_post_sample(self, msg: dict) -> None:
        if msg["name"] in self.latents and not msg["is_observed"]:
            msg["value"] = self.latents[msg["name"]]


def common_choices(run: Callable[[int], object]) -> list[list[Tensor] | None]:
    """Returns what `run(num_particles)` draws for all particles at once, for `Playback`.

    The list has None for a draw whose shape goes with the number of particles: each particle has one of its own.
    """
    start = saved_generators()
    tapes: list[list] = []
    for num_particles in (1, 2):
        restore_generators(start)
        tapes.append([])
        with _Recording(tapes[-1]):
            run(num_particles)
    one, two = tapes
    rule = "chunk_size needs programs that draw as often for one particle as for two"
    require(len(one) == len(two), f"{rule}, got {len(one)} and {len(two)} draws")
    pairs = zip(one, two, strict=True)
    return [twice if [t.shape for t in once] == [t.shape for t in twice] else None for once, twice in pairs]


# Generators ----------------------------------------------------------------------------------------------------------


def saved_generators() -> tuple:
    """Returns the states of torch's, Python's and NumPy's generators."""
    return generator_states(), random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002


def restore_generators(saved: tuple) -> None:
    """Sets the generators back to what `saved_generators` returned."""
    set_generator_states(saved[0])
    random.setstate(saved[1])
    np.random.set_state(saved[2])  # noqa: NPY002


def random_mark() -> tuple:
    """Returns what any draw changes; it is read faster than the states of all generators."""
    torchs = [bytes(state.numpy()) for state in generator_states()]
    numpy = np.random.mtrand._rand._bit_generator.ctypes.state_address
    return torchs, random.getstate(), ctypes.string_at(numpy, 2_500)  # 624 words and a position


# Programs that draw more than latents --------------------------------------------------------------------------------

_programs_that_draw_more: WeakByIdentity[bool] = WeakByIdentity()


def owner_of(program: Callable) -> object:
    """Returns the object that a program belongs to: that of a bound method, or the function itself."""
    return getattr(program, "__self__", program)


def _draw_more(programs: tuple[Callable, Callable]) -> bool:
    return any(_programs_that_draw_more.get(owner_of(program)) is not None for program in programs)


# Graphs --------------------------------------------------------------------------------------------------------------


def _is_random(func: torch._ops.OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


class _Recording(TorchDispatchMode):
    """Keeps the results of random operations."""

    def __init__(self, tape: list) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if _is_random(func):
            # A copy: the program may write into what it was given.
            self.tape.append([r.clone() for r in (result if isinstance(result, tuple) else (result,))])
        return result


class Playback(TorchDispatchMode):
    """Repeats kept results of random operations, in their order, and draws anew where the tape has None."""

    def __init__(self, tape: list) -> None:
        super().__init__()
        self.tape = iter(tape)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not _is_random(func):
            return func(*args, **(kwargs or {}))
        results = next(self.tape)
        if results is None:
            return func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            return args[0].copy_(results[0])
        copies = [result.clone() for result in results]
        return tuple(copies) if len(func._schema.returns) > 1 else copies[0]
