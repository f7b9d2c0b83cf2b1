"""Says what a file of tensors and plain values must hold, and refuses another content in one short line.

A rule is a function of a name and a value. It raises `InputError` with that name unless the value is as it must be. It
looks no deeper than it says, so that no content can make it long.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import torch
from torch import Tensor

from pyrovae.common.errors import InputError, shown

Rule = Callable[[str, Any], None]


def refuse(name: str, rule: str, value: object) -> NoReturn:
    """Raises `InputError` with the name, what the value must be, and in a few words what it is."""
    raise InputError(f"{name} must be {rule}, got {described(value)}")


# Plain values ---------------------------------------------------------------------------------------------------------


def text(name: str, value: object) -> None:
    """The value is a text."""
    if not isinstance(value, str):
        refuse(name, "a text", value)


def flag(name: str, value: object) -> None:
    """The value is True or False."""
    if not isinstance(value, bool):
        refuse(name, "True or False", value)


def plain(name: str, value: object) -> None:
    """The value is None, a truth value, a number or a text."""
    if not (value is None or isinstance(value, bool | int | float | str)):
        refuse(name, "a plain value", value)


def whole(minimum: int = 0, maximum: int = 2**63 - 1) -> Rule:
    """Returns the rule of whole numbers of a range."""
    upper = f" and <= {maximum}" if maximum < 2**63 - 1 else ""

    def rule(name: str, value: object) -> None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not (is_whole and minimum <= value <= maximum):  # type: ignore[operator]
            refuse(name, f"a whole number >= {minimum}{upper}", value)

    return rule


def number(minimum: float = -math.inf) -> Rule:
    """Returns the rule of finite numbers of at least `minimum`."""

    def rule(name: str, value: Any) -> None:
        is_finite = False
        with suppress(OverflowError):  # a whole number too large for a float
            is_finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (is_finite and value >= minimum):
            refuse(name, "a finite number" + (f" >= {minimum:g}" if minimum > -math.inf else ""), value)

    return rule


def real(name: str, value: object) -> None:
    """The value is a floating-point number, which may be infinite or no number."""
    if not isinstance(value, float):
        refuse(name, "a floating-point number", value)


def exactly(expected: object) -> Rule:
    """Returns the rule of one plain value, or of a list of them."""

    def rule(name: str, value: object) -> None:
        if type(value) is not type(expected) or value != expected:
            refuse(name, shown(expected), value)

    return rule


# Tensors --------------------------------------------------------------------------------------------------------------


def dense(name: str, value: object) -> None:
    """The value is a plain tensor on the CPU, which is not part of a graph."""
    if not isinstance(value, Tensor) or _oddity(value) is not None:
        refuse(name, "a plain tensor", value)


def like(expected: Tensor) -> Rule:
    """Returns the rule of plain tensors with the shape and the dtype of `expected`."""

    def rule(name: str, value: Any) -> None:
        dense(name, value)
        if value.shape != expected.shape or value.dtype != expected.dtype:
            refuse(name, described(expected), value)

    return rule


# What holds others ----------------------------------------------------------------------------------------------------


def anything(name: str, value: object) -> None:
    """The value is not looked at."""


def all_of(*rules: Rule) -> Rule:
    """Returns the rule of values that keep all of `rules`."""

    def rule(name: str, value: Any) -> None:
        for one in rules:
            one(name, value)

    return rule


def nothing_or(rule: Rule) -> Rule:
    """Returns the rule of values that are None or keep `rule`."""
    return lambda name, value: None if value is None else rule(name, value)


def each(rule: Rule, at_least: int = 0) -> Rule:
    """Returns the rule of lists and tuples whose items keep `rule`."""

    def of_items(name: str, value: Any) -> None:
        if not isinstance(value, list | tuple) or len(value) < at_least:
            refuse(name, f"a list of {at_least} or more" if at_least else "a list", value)
        for index, item in enumerate(value):
            rule(f"{name}[{index}]", item)

    return of_items


def items(*rules: Rule) -> Rule:
    """Returns the rule of lists and tuples with one item for each of `rules`."""

    def of_items(name: str, value: Any) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(rules):
            refuse(name, f"a list of {len(rules)}", value)
        for index, (rule, item) in enumerate(zip(rules, value, strict=True)):
            rule(f"{name}[{index}]", item)

    return of_items


def table(rule: Rule, keys: type = str) -> Rule:
    """Returns the rule of dicts with keys of one type, whose values keep `rule`."""

    def of_items(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            refuse(name, "a dict", value)
        for key, item in value.items():
            if type(key) is not keys:
                refuse(f"a key of {name}", f"of type {keys.__name__}", key)
            rule(inner(name, key), item)

    return of_items


def fields(required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """Returns the rule of dicts with these keys, whose values keep the rules; other keys may be there, too."""

    def of_items(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            refuse(name or "it", "a dict", value)
        for key, rule in required.items():
            if key not in value:
                raise InputError(f"{name or 'it'} must have {key}, and has none")
            rule(inner(name, key), value[key])
        for key, rule in (optional or {}).items():
            if key in value:
                rule(inner(name, key), value[key])

    return of_items


def inner(name: str, key: object) -> str:
    """Returns the name of what a dict called `name` has under `key`."""
    short = key[:60] if isinstance(key, str) else shown(key)[:60]
    return f"{name}.{short}" if name else short


# Words ----------------------------------------------------------------------------------------------------------------


def _oddity(tensor: Tensor) -> str | None:
    """Returns what keeps a tensor from being a plain one: the dense values of a model on the CPU."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.device.type != "cpu":
        return tensor.device.type
    return "differentiated" if tensor.requires_grad else None


def described(value: object) -> str:
    """Returns in a few words what a value is, however large it is."""
    if isinstance(value, Tensor):
        kind = _oddity(value)
        shape = "" if value.is_nested else f" of shape {tuple(value.shape)}"
        return f"a {f'{kind} ' if kind else ''}tensor{shape[:80]} and {value.dtype}"
    if isinstance(value, str | bytes):
        return shown(value[:60])
    if value is None or isinstance(value, bool | int | float):
        return shown(value)[:60]
    if isinstance(value, list | tuple) and len(value) <= 5 and all(map(_is_short, value)):
        return shown(value)[:60]
    size = f" of {len(value)}" if isinstance(value, Sequence | Mapping) else ""
    return f"a {type(value).__name__}{size}"


def _is_short(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) < 20)
