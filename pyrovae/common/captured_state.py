"""What a program can see besides its arguments, and whether some of it has been replaced since."""

import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from operator import is_

import pyro
from torch import Tensor, nn

_LIBRARIES = ("torch", "pyro", "pyrovae", "numpy", "builtins")
_PLAIN_MODULE = frozenset(vars(nn.Module())) - {
    "training", "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks",
}  # fmt: skip
_LONG = 1_000  # a container of more is data


class Watch:
    """The parameters, attributes, closures and globals that programs are made from, each by identity.

    From the programs it goes through bound methods, partials, modules, plain objects and their classes' functions,
    lists, tuples, sets and dicts, closures, defaults, and the globals that the code names. It cannot see everything (a
    file, the inside of a library's objects), which is why a replay is also compared with the eager program at times.
    """

    def __init__(self, programs: Iterable[object], parameters: Iterable[str] = ()) -> None:
        self._entries: list[tuple[dict, object, object]] = []
        self._sizes: list[tuple[dict | set, int]] = []
        self._names: list[tuple[dict, frozenset]] = []
        self._lists: list[tuple[list, tuple]] = []
        self._attributes: list[tuple[object, str, object]] = []
        self._flags: list[tuple[Tensor, bool]] = []
        self._seen: dict[int, object] = {}
        self.buffers: list[tuple[dict, str]] = []
        """Where modules hold tensors that are not parameters."""
        self.modules: list[nn.Module] = []
        """Every module in sight, as a rule before its parts."""
        store = pyro.get_param_store()
        self._entries.append((vars(store), "_params", store._params))
        for name in parameters:
            self._entries.append((store._params, name, store._params.get(name)))
            self._visit(store._params.get(name))
        for program in programs:
            self._visit(program)
        grouped: dict[int, tuple] = {}
        for container, name, value in self._entries:
            _, names, values = grouped.setdefault(id(container), (container.get, [], []))
            names.append(name)
            values.append(value)
        self._grouped = list(grouped.values())
        self._sized, self._lengths = [c for c, _ in self._sizes], [size for _, size in self._sizes]
        self._tensors, self._trained = [t for t, _ in self._flags], [flag for _, flag in self._flags]

    def change(self) -> str | None:
        """The name of something that is another than it was, or None."""
        # Asked at every step, and so in loops that run in C; which one it was is found at leisure.
        same = (
            list(map(len, self._sized)) == self._lengths
            and [tensor.requires_grad for tensor in self._tensors] == self._trained
            and all(all(map(is_, map(get, names), values)) for get, names, values in self._grouped)
            and all(tuple(map(id, container)) == tuple(map(id, values)) for container, values in self._lists)
            and all(_attribute(owner, name) is value for owner, name, value in self._attributes)
        )
        return None if same else self._name_of_change()

    def _name_of_change(self) -> str | None:
        for container, name, value in self._entries:
            if container.get(name, _MISSING) is not value:
                return str(name)
        for container, size in self._sizes:
            if len(container) != size:
                return f"the length of a {type(container).__name__}"
        for container, values in self._lists:
            if len(container) != len(values) or any(a is not b for a, b in zip(container, values, strict=True)):
                return "a list"
        for owner, name, value in self._attributes:
            if _attribute(owner, name) is not value:
                return "a variable of a closure" if isinstance(owner, types.CellType) else name
        for tensor, requires_grad in self._flags:
            if tensor.requires_grad is not requires_grad:
                return "requires_grad of a parameter"
        return None

    def restore(self) -> None:
        """Puts back what is another than it was, as far as Python lets it."""
        for container, known in self._names:
            for name in [name for name in container if name not in known]:
                del container[name]
        for container, name, value in self._entries:
            if isinstance(container, dict) and container.get(name, _MISSING) is not value:
                container[name] = value
        for container, values in self._lists:
            container[:] = values
        for owner, name, value in self._attributes:
            if _attribute(owner, name) is not value and value is not _MISSING:
                setattr(owner, name, value)
        for tensor, requires_grad in self._flags:
            if tensor.requires_grad is not requires_grad:
                tensor.requires_grad_(requires_grad)

    def tensors(self) -> list[Tensor]:
        """Those in sight that are not trained: what a run may move."""
        return [tensor for tensor, requires_grad in self._flags if not requires_grad]

    def parameters(self) -> list[Tensor]:
        """Those in sight that are a module's parameters, frozen or not, or another leaf that takes a gradient."""
        return [t for t, requires_grad in self._flags if isinstance(t, nn.Parameter) or (requires_grad and t.is_leaf)]

    # What is in sight -------------------------------------------------------------------------------------------------

    def _visit(self, thing: object) -> None:
        if thing is None or isinstance(thing, int | float | str | bytes) or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing  # held, so that its id is not another's
        match thing:
            case Tensor():
                self._flags.append((thing, thing.requires_grad))
            case functools.partial():
                self._visit((thing.func, thing.args, thing.keywords))
            case types.MethodType():
                self._visit((thing.__self__, thing.__func__))
            case types.FunctionType():
                self._visit_function(thing)
            case nn.Module():
                own = {name: value for name, value in vars(thing).items() if name not in _PLAIN_MODULE}
                self._add_entries(vars(thing), own)
                self.modules.append(thing)
                self.buffers += [(thing._buffers, name) for name, value in thing._buffers.items() if value is not None]
                self._visit_class(type(thing))
            case dict():
                self._add_entries(thing, thing)
            case list():
                if len(thing) <= _LONG:
                    self._lists.append((thing, tuple(thing)))
                    for value in thing:
                        self._visit(value)
            case tuple() | set() | frozenset():
                if isinstance(thing, set):
                    self._sizes.append((thing, len(thing)))
                if len(thing) <= _LONG:
                    for value in thing:
                        self._visit(value)
            case type():
                self._visit_class(thing)
            case types.ModuleType():
                pass  # the names that a function uses of it are its own affair
            case _ if not _is_library(type(thing).__module__):
                if hasattr(thing, "__dict__"):
                    self._add_entries(vars(thing), vars(thing))
                self._visit_class(type(thing))
            case _ if callable(thing) and hasattr(thing, "__dict__"):  # a handler around a program, say
                for value in list(vars(thing).values()):
                    self._visit(value)

    def _add_entries(self, container: dict, entries: dict) -> None:
        if len(container) > _LONG:
            return
        self._sizes.append((container, len(container)))
        self._names.append((container, frozenset(container)))
        for name, value in list(entries.items()):
            self._entries.append((container, name, value))
            self._visit(value)

    def _visit_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if _is_library(base.__module__) or (id(base) in self._seen and base is not cls):
                continue
            self._seen[id(base)] = base
            for name, value in vars(base).items():
                if not name.startswith("__") or isinstance(value, types.FunctionType):
                    self._entries.append((vars(base), name, value))
                    self._visit(value.fget if isinstance(value, property) else value)

    def _visit_function(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            self._attributes.append((cell, "cell_contents", _attribute(cell, "cell_contents")))
            self._visit(_attribute(cell, "cell_contents"))
        if _is_library(function.__module__):
            return
        for name in ("__defaults__", "__kwdefaults__"):
            self._attributes.append((function, name, getattr(function, name)))
            self._visit(getattr(function, name))
        for name in _global_names(function.__code__):
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            self._entries.append((function.__globals__, name, value))
            if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
                used = {own: vars(value)[own] for own in _all_names(function.__code__) if own in vars(value)}
                for own, part in used.items():
                    self._entries.append((vars(value), own, part))
                    self._visit(part)
            else:
                self._visit(value)


_MISSING = object()


def _attribute(owner: object, name: str) -> object:
    try:
        return getattr(owner, name)
    except (AttributeError, ValueError):  # an empty cell of a closure
        return _MISSING


@functools.cache
def _is_library(module: str | None) -> bool:
    """Whether code of this module is not the user's: what is installed does not change between two steps."""
    root = (module or "").partition(".")[0]
    if root in _LIBRARIES or (root in sys.stdlib_module_names and root != "__main__"):
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return file.startswith((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))


def _global_names(code: types.CodeType) -> Iterator[str]:
    """The global variables that a function reads, and the functions within it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _all_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_names(constant)
