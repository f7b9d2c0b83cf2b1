"""The state that a traced program depends on: what it is, whether it has changed, and how to put it back."""

import itertools
import random
import sys
import types
from collections.abc import Iterable, Iterator, Sequence, Sized
from operator import is_, itemgetter
from typing import Any

import numpy as np
import pyro
from torch import Tensor, nn
from torch._C._dynamo.guards import dict_version

from pyrovae.common.program_search import MISSING, ProgramSearch, attribute


def modules_within(programs: Iterable[object]) -> list[nn.Module]:
    """Returns every module that programs are made from; as a rule the parts of a module come before it."""
    search = ProgramSearch()
    for program in programs:
        search.visit(program)
    return search.modules


class CapturedState:
    """Tracks the parameters, attributes, closures and globals that programs depend on, each by its identity.

    `ProgramSearch` says where it looks for them. It cannot see everything (a file, the inside of a library's objects),
    so a replay is also compared with the eager program from time to time.

    Args:
        programs: The programs: functions, methods, modules or other callables.
        parameters: Names in Pyro's param store that the programs use.
        args: What the programs are given. Of an object, those attributes are watched whose names their code uses.
    """

    def __init__(self, programs: Iterable[object], parameters: Iterable[str] = (), args: Iterable[object] = ()) -> None:
        search = ProgramSearch()
        store = pyro.get_param_store()
        search.entries.append((vars(store), "_params", store._params))
        for parameter in filter(store._params.__contains__, parameters):  # some may be kept by their modules instead
            search.entries.append((store._params, parameter, store._params[parameter]))
            search.visit(store._params[parameter])
        for program in programs:
            search.visit(program)
        for arg in args:
            search.visit_argument(arg)
        self._search = search
        grouped: dict[int, tuple] = {}
        for container, name, value in search.entries:
            _, names, values = grouped.setdefault(id(container), (container, [], []))
            names.append(name)
            values.append(value)
        groups, sizes = list(grouped.values()), search.sizes
        parts = groups, sizes
        self._in_dicts = _Contents(*([part for part in some if _has_version(part[0])] for some in parts))
        self._elsewhere = _Contents(*([part for part in some if not _has_version(part[0])] for some in parts))
        self._dicts = list({id(c): c for c, *_ in (*groups, *sizes) if _has_version(c)}.values())
        self._versions: list[int] = []
        """Python's numbers of the dicts' contents when these were last found to be the same."""
        self._tensors, self._trained = [t for t, _ in search.flags], [flag for _, flag in search.flags]

    @property
    def buffers(self) -> list[tuple[dict, str]]:
        """The places where modules hold tensors that are not parameters."""
        return self._search.buffers

    @property
    def modules(self) -> list[nn.Module]:
        """Every module that was found; as a rule the parts of a module come before it."""
        return self._search.modules

    @property
    def objects(self) -> list[object]:
        """Everything that was found, in the order in which the search came to it."""
        return list(self._search.seen.values())

    def sources(self) -> list[object]:
        """Returns how far the random generators and iterators that were found are; the global ones are not among them.

        Of an iterator that does not show it, such as a `zip`, that is None.
        """
        search = self._search
        return [*map(_state_of, search.generators), *map(_place_of, search.iterators)]

    def moved_source(self, before: list[object]) -> str | None:
        """Returns what a program has taken numbers from, in words, since `sources` gave `before`, or None.

        Whether it has taken one from an `itertools.cycle` nobody can see: that is always said.
        """
        search = self._search
        moved = [now != was for now, was in zip(self.sources(), before, strict=True)]
        if any(moved[: len(search.generators)]):
            return "it draws from a random generator of its own, which a replay would not"
        for iterator, has_moved in zip(search.iterators, moved[len(search.generators) :], strict=True):
            if has_moved or isinstance(iterator, itertools.cycle):
                return f"it takes numbers from an iterator ({type(iterator).__name__}), which a replay would not"
        return None

    def change(self) -> str | None:
        """Returns the name of something that has been replaced, or None if everything is still the same."""
        # This runs at every step, so its loops run in C, and go only into those dicts to which Python has given a new
        # version. Which thing has changed is looked up only if one has.
        search, versions = self._search, list(map(dict_version, self._dicts))
        same = (
            (versions == self._versions or self._in_dicts.are_same())
            and self._elsewhere.are_same()
            and [tensor.requires_grad for tensor in self._tensors] == self._trained
            and all(_are_the_same(items, values) for items, values in search.lists)
            and all(_are_equal(array, values) for array, values in search.arrays)
            and all(attribute(owner, name) is value for owner, name, value in search.attributes)
        )
        if not same:
            return self._name_of_change()
        self._versions = versions
        return None

    def _name_of_change(self) -> str | None:
        search = self._search
        for container, name, value in search.entries:
            if container.get(name, MISSING) is not value:
                return str(name)
        for sized, size in search.sizes:
            if len(sized) != size:
                return f"the length of a {type(sized).__name__}"
        for items, values in search.lists:
            if not _are_the_same(items, values):
                return f"a {type(items).__name__}"
        for array, numbers in search.arrays:
            if not _are_equal(array, numbers):
                return "an array"
        for owner, name, value in search.attributes:
            if attribute(owner, name) is not value:
                return "a variable of a closure" if isinstance(owner, types.CellType) else name
        for tensor, requires_grad in search.flags:
            if tensor.requires_grad is not requires_grad:
                return "requires_grad of a parameter"
        return None

    def restore_caches(self) -> None:
        """Puts back what modules of a library keep of a run, which they need not keep."""
        for container, name, value in self._search.caches:
            container[name] = value

    def restore(self) -> None:
        """Puts back everything that has been replaced, as far as Python allows."""
        search = self._search
        for names, known in search.names:
            for name in [name for name in names if name not in known]:
                del names[name]
        for container, name, value in search.entries:
            if isinstance(container, dict) and container.get(name, MISSING) is not value:
                container[name] = value
        for items, values in search.lists:
            if not _are_the_same(items, values):
                items.clear()
                (items.update if isinstance(items, set) else items.extend)(values)
        for array, numbers in search.arrays:
            if not _are_equal(array, numbers):
                array[...] = numbers
        for owner, name, value in search.attributes:
            if attribute(owner, name) is not value and value is not MISSING:
                setattr(owner, name, value)
        for tensor, requires_grad in search.flags:
            if tensor.requires_grad is not requires_grad:
                tensor.requires_grad_(requires_grad)

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that are not trained, which a run may move."""
        return [tensor for tensor, requires_grad in self._search.flags if not requires_grad]

    def parameters(self) -> list[Tensor]:
        """Returns the parameters of modules, frozen or not, and the other leaves that take a gradient."""
        flags = self._search.flags
        return [t for t, requires_grad in flags if isinstance(t, nn.Parameter) or (requires_grad and t.is_leaf)]


def _state_of(generator: random.Random | np.random.Generator | np.random.RandomState) -> object:
    match generator:
        case random.SystemRandom():
            return None  # it has none
        case random.Random():
            return generator.getstate()
        case np.random.Generator():
            return str(generator.bit_generator.state)
    return str(generator.get_state())


def _place_of(iterator: Iterator) -> object:
    """Returns something that changes as an iterator goes on, or None."""
    match iterator:
        case types.GeneratorType():
            frame = iterator.gi_frame
            return None if frame is None else (frame.f_lasti, *map(id, frame.f_locals.values()))
        case itertools.count():
            return repr(iterator)
    hint = getattr(iterator, "__length_hint__", None)
    return getattr(iterator, "_num_yielded", None) if hint is None else hint()  # the former of a `DataLoader`


def _are_the_same(items: Iterable, values: tuple) -> bool:
    return tuple(map(id, items)) == tuple(map(id, values))


def _are_equal(array: np.ndarray, values: np.ndarray) -> bool:
    return array.shape == values.shape and array.tobytes() == values.tobytes()


def _has_version(container: Sized) -> bool:
    """Returns whether each change of the container gives it a new `dict_version`.

    From Python 3.12 on, torch counts what a watcher of dicts is told. It does not count that an empty dict was filled
    from another, by `update` or `|=`, and 3.13.0 tells of no attribute that is set (python/cpython#125608).
    """
    return type(container) is dict and len(container) > 0 and sys.version_info[:3] != (3, 13, 0)


class _Contents:
    """Remembers what containers hold under some names, by identity, and how long they and others are.

    Args:
        groups: Each container with names and the values that it holds under them.
        sizes: Containers with their lengths.
    """

    def __init__(self, groups: Sequence[tuple[Any, list, list]], sizes: Sequence[tuple[Sized, int]]) -> None:
        # Each name twice where it is the only one: `itemgetter` returns a tuple of two or more.
        both = [(c, n, v) if len(n) > 1 else (c, 2 * n, 2 * v) for c, n, v in groups]
        self._lookups = [(itemgetter(*names), container) for container, names, _ in both]
        self._values = [value for _, _, values in both for value in values]
        self._sized, self._lengths = [c for c, _ in sizes], [size for _, size in sizes]

    def are_same(self) -> bool:
        try:
            now = [value for lookup, container in self._lookups for value in lookup(container)]
        except KeyError:
            return False
        return list(map(len, self._sized)) == self._lengths and all(map(is_, now, self._values))
