"""Records what a module was made with, as plain values that can be written to a file, and makes it again from them."""

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from pyrovae.common import plain_number, require, rules, shown

PACKAGE = __name__.partition(".")[0]
_PAIRS = rules.each(rules.items(rules.anything, rules.anything))


@dataclass(frozen=True)
class Unknown:
    """Stands for an argument that a file cannot hold: a network of the user's own, or a function."""

    name: str


@dataclass(frozen=True)
class Recipe:
    """Holds the arguments that a module was made with, by name: plain values, tensors, and recipes of modules.

    A dataclass and not a dict, because a compiled step watches the dicts of a module for changes.
    """

    kind: type
    arguments: Mapping[str, Any]

    @property
    def unknown(self) -> dict[str, str]:
        """The arguments that a file cannot hold, and what they were."""
        found = {name: next(_unknown_in(value), None) for name, value in self.arguments.items()}
        return {name: what for name, what in found.items() if what is not None}


def recipe_of(kind: type, args: tuple, kwargs: dict) -> Recipe | None:
    """Returns the recipe for `kind(*args, **kwargs)`, or None if `kind` cannot be called with these arguments."""
    try:
        bound = inspect.signature(kind).bind(*args, **kwargs)
    except TypeError:  # of which `__init__` complains itself; or a copy is being made, without arguments
        return None
    return Recipe(kind, {name: _recorded(value) for name, value in bound.arguments.items()})


def is_ours(kind: type) -> bool:
    """Returns whether a class is one of this package, whose code need not be in a file."""
    return kind.__module__.partition(".")[0] == PACKAGE


def kind_name(kind: type) -> str:
    """Returns the name of a class in a file: with its folder or file in `pyrovae.models` if it is one of ours."""
    return f"{kind.__module__.split('.')[2]}.{kind.__name__}" if is_ours(kind) else kind.__name__


def encoded(value: Any) -> Any:
    """Returns a recorded value as tuples, dicts, tensors and plain values; a dict always says what it stands for."""
    if isinstance(value, Recipe):
        return {"kind": kind_name(value.kind), "arguments": encoded(value.arguments)}
    if isinstance(value, Mapping):
        return {"items": [(key, encoded(item)) for key, item in value.items()]}
    return tuple(map(encoded, value)) if isinstance(value, tuple) else value


def decoded(value: Any, kinds: Mapping[str, type]) -> Any:
    """Returns what `encoded` was given, with modules made again, of the classes in `kinds` alone."""
    if isinstance(value, dict) and "kind" in value:
        name = value["kind"]
        rules.fields({"kind": rules.text, "arguments": rules.fields({"items": _PAIRS})})("a module in arguments", value)
        require(name in kinds, f"a module must be one of pyrovae's, got {shown(name)}")
        return made(kinds[name], decoded(value["arguments"], kinds))
    if isinstance(value, dict):
        rules.fields({"items": _PAIRS})("a dict in arguments", value)
        return {key: decoded(item, kinds) for key, item in value["items"]}
    return tuple(decoded(item, kinds) for item in value) if isinstance(value, tuple) else value


def made(kind: type, arguments: Mapping[str, Any]) -> Any:
    """Returns an instance of `kind`, made with arguments by name."""
    signature = inspect.signature(kind)
    unknown = arguments.keys() - signature.parameters.keys()
    require(not unknown, f"{kind.__name__} takes no {', '.join(map(str, unknown))}"[:200])
    bound = inspect.BoundArguments(signature, OrderedDict(arguments))
    return kind(*bound.args, **bound.kwargs)


def known_kinds(base: type) -> dict[str, type]:
    """Returns the classes of this package that derive from `base`, by their names in a file."""
    found: dict[str, type] = {}
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        found |= known_kinds(kind)
        if is_ours(kind):
            found[kind_name(kind)] = kind
    return found


def is_plain(value: object) -> bool:
    """Returns whether a file can hold the value as it is: None, a truth value, a number, a text, or tuples of them."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _recorded(value: Any) -> Any:
    recipe = getattr(value, "made_with", None)
    if isinstance(recipe, Recipe) and is_ours(recipe.kind):
        return recipe
    value = plain_number(value)
    for plain in cast(tuple[type, ...], (bool, int, float, str)):
        if isinstance(value, plain):
            return plain(value)
    match value:
        case None:
            return None
        case Tensor():
            return value.detach().clone()  # a view would keep, and write, all of its data
        case Mapping():
            return {key if is_plain(key) else Unknown(repr(key)): _recorded(item) for key, item in value.items()}
        case Sequence() if not isinstance(value, bytes | memoryview):
            return tuple(map(_recorded, value))
    return Unknown(getattr(value, "__name__", type(value).__name__))


def _unknown_in(value: Any) -> Iterator[str]:
    match value:
        case Unknown():
            yield value.name
        case Recipe():
            yield from value.unknown.values()
        case Mapping():
            for key, item in value.items():
                yield from _unknown_in(key)
                yield from _unknown_in(item)
        case tuple():
            for item in value:
                yield from _unknown_in(item)
