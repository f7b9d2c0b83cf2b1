"""Finds what programs can see besides their arguments: parameters, attributes, closures and globals."""

import argparse
import dis
import functools
import io
import random
import sys
import sysconfig
import types
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyro
from pyro.infer.autoguide import AutoGuide
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.distributions import Transform

_LIBRARIES = ("torch", "pyro", "pyrovae", "numpy", "builtins")
_PLAIN_MODULE = frozenset(vars(nn.Module())) - {
    "training", "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks",
}  # fmt: skip
_HOLDERS = (argparse.Namespace, types.SimpleNamespace, Mapping, ParamStoreDict)  # of libraries, with what users put in
_USUAL_DICTS = (dict, OrderedDict)
_PLAIN = (int, float, str, bytes)  # which hold nothing
_MAX_LENGTH = 1_000  # a longer container is taken for data, and is not searched
MISSING = object()  # the value of an attribute or a name that does not exist


class ProgramSearch:
    """Collects everything that is reached from the things given to `visit`, and where it was found.

    The search goes through bound methods, partials, modules, plain objects and the functions of their classes, lists,
    tuples, sets and dicts, small arrays, closures, defaults and attributes of functions, the globals that code names,
    and Pyro's param store where code asks for it. From code of a library it looks only at closures, at the attributes
    of callable objects, and at what its namespaces and mappings hold.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[Mapping[Any, object], object, object]] = []
        """`(dict, key, value)` of attributes, globals and items of dicts; a class has a read-only view of its dict."""
        self.sizes: list[tuple[dict, int]] = []
        """Dicts, with their lengths."""
        self.names: list[tuple[dict, frozenset]] = []
        """Dicts, with their keys."""
        self.lists: list[tuple[list | deque | set, tuple]] = []
        """Lists, deques and sets, with their items."""
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []
        """Arrays of NumPy, of which a program may read a number, with copies of them."""
        self.attributes: list[tuple[object, str, object]] = []
        """`(owner, name, value)` of cells of closures, defaults of functions and slots of objects."""
        self.flags: list[tuple[Tensor, bool]] = []
        """Tensors, with their `requires_grad`."""
        self.buffers: list[tuple[dict, str]] = []
        """The `_buffers` of modules and the names in them that hold a tensor."""
        self.caches: list[tuple[dict, str, object]] = []
        """`(dict, name, value)` of what a library's module keeps of a run and makes anew, or checks, in the next."""
        self.modules: list[nn.Module] = []
        """Modules; as a rule the parts of a module come before it."""
        self.generators: list[random.Random | np.random.Generator | np.random.RandomState] = []
        """Generators of random numbers, beside the global ones."""
        self.iterators: list[Iterator] = []
        """Iterators of libraries."""
        self.used: set[str] = set()
        """The names of globals and attributes that the code of functions uses."""
        self.seen: dict[int, object] = {}
        """Everything that was reached, by its id, in the order in which it was."""

    def visit(self, thing: object) -> None:
        """Adds `thing` and everything that is reached from it."""
        if thing is None or id(thing) in self.seen or isinstance(thing, _PLAIN):
            return
        self.seen[id(thing)] = thing  # kept alive, so that no other object gets its id
        if type(thing) in _USUAL_DICTS:  # two thirds of what modules hold
            self._add_entries(thing, thing)  # type: ignore[arg-type]
            return
        match thing:
            case Tensor():
                self.flags.append((thing, thing.requires_grad))
            case functools.partial():
                self.visit((thing.func, thing.args, thing.keywords))
            case types.MethodType():
                self.visit((thing.__self__, thing.__func__))
            case types.FunctionType():
                self._visit_function(thing)
            case staticmethod() | classmethod():
                self.visit(thing.__func__)
            case nn.Module():
                caches = _caches_of(thing)
                self.caches += [(vars(thing), name, vars(thing)[name]) for name in caches]
                hidden = _PLAIN_MODULE.union(caches)
                own = {name: value for name, value in vars(thing).items() if name not in hidden}
                self._add_entries(vars(thing), own)
                self.modules.append(thing)
                self.buffers += [(thing._buffers, name) for name, value in thing._buffers.items() if value is not None]
                self._visit_class(type(thing))
            case dict():
                self._add_entries(thing, thing)
            case list() | deque() | set() | tuple() | frozenset():
                if len(thing) <= _MAX_LENGTH:
                    if not isinstance(thing, tuple | frozenset):
                        self.lists.append((thing, tuple(thing)))
                    for value in thing:
                        self.visit(value)
            case np.ndarray():
                if thing.size <= _MAX_LENGTH:
                    self.arrays.append((thing, thing.copy()))
            case type():
                self._visit_class(thing)
            case types.ModuleType():
                pass  # `_visit_function` looks up the names that a function uses of it
            case random.Random() | np.random.Generator() | np.random.RandomState():
                self.generators.append(thing)
            case _ if isinstance(thing, _HOLDERS) or not is_library(type(thing).__module__):
                if hasattr(thing, "__dict__"):
                    self._add_entries(vars(thing), vars(thing))
                for name in _slots(type(thing)):
                    self.attributes.append((thing, name, attribute(thing, name)))
                    self.visit(attribute(thing, name))
                self._visit_class(type(thing))
            case Iterator() if not isinstance(thing, io.IOBase):
                self.iterators.append(thing)
            case _ if callable(thing) and hasattr(thing, "__dict__"):  # a handler around a program, say
                for value in list(vars(thing).values()):
                    self.visit(value)

    def visit_argument(self, thing: object) -> None:
        """Adds what an argument of the programs has under names that their code, or its own, uses.

        It may have more, such as the number of the step, which nothing depends on.
        """
        if isinstance(thing, types.FunctionType | types.MethodType | functools.partial | nn.Module):
            self.visit(thing)
        elif hasattr(thing, "__dict__") and not is_library(type(thing).__module__):
            self._visit_class(type(thing))
            for name in self.used & vars(thing).keys():
                self.entries.append((vars(thing), name, vars(thing)[name]))
                self.visit(vars(thing)[name])

    def _add_entries(self, container: dict, entries: dict) -> None:
        if len(container) > _MAX_LENGTH:
            return
        self.sizes.append((container, len(container)))
        self.names.append((container, frozenset(container)))
        for name, value in list(entries.items()):
            self.entries.append((container, name, value))
            if not (value is None or isinstance(value, _PLAIN)):  # most are, and a call takes longer
                self.visit(value)

    def _visit_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if is_library(base.__module__) or (id(base) in self.seen and base is not cls):
                continue
            self.seen[id(base)] = base
            for name, value in vars(base).items():
                if not name.startswith("__") or isinstance(value, types.FunctionType):
                    self.entries.append((vars(base), name, value))
                    self.visit(value.fget if isinstance(value, property) else value)

    def _visit_function(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            self.attributes.append((cell, "cell_contents", attribute(cell, "cell_contents")))
            self.visit(attribute(cell, "cell_contents"))
        if is_library(function.__module__):
            return
        self.used.update(_all_names(function.__code__))
        for name in ("__defaults__", "__kwdefaults__"):
            self.attributes.append((function, name, getattr(function, name)))
            self.visit(getattr(function, name))
        if vars(function):  # most functions have no attributes, and to look at all of them takes time in every step
            self._add_entries(vars(function), vars(function))
        if "get_param_store" in _all_names(function.__code__):
            self.visit(pyro.get_param_store())
        for name in _global_names(function.__code__):
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            self.entries.append((function.__globals__, name, value))
            self._visit_used(value, function, set())
        for level, path in _imported_modules(function.__code__):
            package = function.__globals__.get("__package__") or ""
            full = f"{package.rsplit('.', level - 1)[0]}.{path}" if level else path
            self._visit_used(sys.modules.get(full.strip(".")), function, set())

    def _visit_used(self, thing: object, function: types.FunctionType, done: set[int]) -> None:
        """Visits a thing, or if it is a module of the user's, what a function uses of it and of modules within it."""
        if not isinstance(thing, types.ModuleType) or is_library(thing.__name__):
            self.visit(thing)
        elif id(thing) not in done:
            done.add(id(thing))
            for name in _all_names(function.__code__):
                if name in vars(thing):
                    self.entries.append((vars(thing), name, vars(thing)[name]))
                    self._visit_used(vars(thing)[name], function, done)


def attribute(owner: object, name: str) -> object:
    """Returns the attribute, or `MISSING`."""
    try:
        return getattr(owner, name)
    except (AttributeError, ValueError):  # an empty cell of a closure
        return MISSING


def _caches_of(module: nn.Module) -> list[str]:
    """Returns the names under which a library's module keeps what it need not keep."""
    if isinstance(module, AutoGuide):
        return ["plates"] if "plates" in vars(module) else []
    if isinstance(module, Transform):
        return [name for name in vars(module) if name.startswith("_cached")]
    return []


@functools.cache
def is_library(module: str | None) -> bool:
    """Returns whether this module is not the user's own. Installed code does not change between two steps."""
    root = (module or "").partition(".")[0]
    if root in _LIBRARIES or (root in sys.stdlib_module_names and root != "__main__"):
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return file.startswith((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))


@functools.lru_cache(maxsize=10_000)  # to take code apart takes longer than all else here
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Returns the names of the global variables that a function reads, and those that functions within it read."""
    instructions = dis.get_instructions(code)
    names = [one.argval for one in instructions if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _global_names(constant)
    return tuple(dict.fromkeys(names))


@functools.lru_cache(maxsize=10_000)
def _imported_modules(code: types.CodeType) -> tuple[tuple[int, str], ...]:
    """Returns the modules that a function, or a function within it, imports: how many dots and a path of each."""
    found, instructions = [], list(dis.get_instructions(code))
    for place, one in enumerate(instructions):
        if one.opname == "IMPORT_NAME":  # after the number of dots and the names that are imported from it
            found.append((int(instructions[place - 2].argval), one.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += _imported_modules(constant)
    return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=10_000)
def _all_names(code: types.CodeType) -> tuple[str, ...]:
    """Returns the names of globals and attributes that a function and the functions within it use."""
    within = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return tuple(dict.fromkeys((*code.co_names, *(name for part in within for name in _all_names(part)))))


def _slots(cls: type) -> Iterator[str]:
    """Yields the names of the attributes that the objects of a user's class keep in slots."""
    for base in cls.__mro__:
        if not is_library(base.__module__):
            yield from (name for name, value in vars(base).items() if isinstance(value, types.MemberDescriptorType))
