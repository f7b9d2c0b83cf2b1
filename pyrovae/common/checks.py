"""Checks settings of every kind, each refused in one line that names the setting, the rule and the value found."""

import math
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import numpy as np

from pyrovae.common.errors import InputError, require, shown

LARGE = 1e6
MOST_OF_A_NAME = 100  # characters that are compared with the known names
_NO_NUMBERS = (bool, np.complexfloating, np.timedelta64)  # by their types they are numbers
MOST_THINGS = 2**40  # of a size: as numbers they are 4 terabytes, and as steps a day at ten million a second


def plain_number(value: Any) -> Any:
    """Returns a number or a flag of NumPy's as one of Python's, which files can hold, and anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def require_count(name: str, value: object, minimum: int = 1) -> None:
    """Raises `InputError` unless `value` is a whole number of at least `minimum`, and below 2^63.

    Of NumPy's it may be one of 64 bits: products of shorter ones, such as draws times data, would overflow.
    """
    if not (isinstance(value, int | np.int64 | np.uint64) and not isinstance(value, _NO_NUMBERS) and value >= minimum):
        raise InputError(f"{name} must be a whole number >= {minimum}, got {shown(value)}")
    if value >= 2**63:  # torch takes no larger number
        raise InputError(f"{name} must be < 2^63, got {shown(value)}")


def require_size(name: str, value: object, minimum: int = 1) -> None:
    """Raises `InputError` unless there can be `value` things: units, draws, particles, of which each takes memory.

    A limit that may be larger than what it limits, such as the size of a batch, is a count.
    """
    require_count(name, value, minimum)
    _must(value < MOST_THINGS, name, "< 2^40", value)  # type: ignore[operator]


def require_sizes(name: str, value: object, minimum: int = 1) -> None:
    """Raises `InputError` unless `value` is a list or a tuple of sizes, each of at least `minimum`."""
    require_sequence(name, value, f"whole numbers >= {minimum}")
    for size in value:  # type: ignore[attr-defined]
        require_size(name, size, minimum)


def require_shape(name: str, value: object, minimum: int = 1) -> None:
    """Raises `InputError` unless `value` is the shape of a tensor, as a list or a tuple of sizes."""
    require_sizes(name, value, minimum)
    size = math.prod(value)  # type: ignore[call-overload]
    _must(size < MOST_THINGS, name, "of fewer than 2^40 numbers", value)


def require_sequence(name: str, value: object, of: str) -> None:
    """Raises `InputError` unless `value` is a list, a tuple or another sequence, and neither text nor bytes."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)
    _must(is_list, name, f"a list or a tuple of {of}", value)


def require_seed(seed: object) -> None:
    """Raises `InputError` unless torch's generators take `seed`."""
    require_count("seed", seed, 0)


def require_seeds(seeds: Sequence[object]) -> None:
    """Raises `InputError` unless `seeds` holds one seed or more, all different."""
    require_sequence("seeds", seeds, "whole numbers >= 0")
    require(len(seeds) > 0, "seeds must hold at least one, got none")
    for seed in seeds:
        require_seed(seed)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds must differ, got {shown(tuple(seeds))}: their error would be too small")


def require_number(name: str, value: object, above: float = -math.inf, below: float = math.inf) -> None:
    """Raises `InputError` unless `value` is a finite number strictly between `above` and `below`."""
    number = math.nan  # which lies between no two numbers
    with suppress(OverflowError):  # a whole number too large for a float
        if isinstance(value, int | float | np.number) and not isinstance(value, _NO_NUMBERS):
            number = float(value)
    if above < number < below:
        return
    limits = [f"> {above:g}"] if above > -math.inf else []
    if below < math.inf and (number >= below or abs(below) < LARGE):  # a limit far away is named only if it was broken
        limits.append(f"< {below:g}")
    _must(False, name, f"a finite number {' and '.join(limits)}".rstrip(), value)


def require_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raises `InputError` unless `value` is one of `choices`."""
    if not (isinstance(value, str) and value in choices):
        one_of = "one of " if len(choices) > 1 else ""
        raise InputError(
            f"{name} must be {one_of}{', '.join(choices)}; got {shown(value)}{did_you_mean(value, choices)}"
        )


def did_you_mean(value: object, choices: Collection[str]) -> str:
    """Returns the end of an error about a name that is not among the known ones: the one it is close to, if any is."""
    if not isinstance(value, str):
        return ""
    by_lower = {choice.lower(): choice for choice in reversed(tuple(choices))}
    close = get_close_matches(value[:MOST_OF_A_NAME].lower(), by_lower, 1)
    return "".join(f": did you mean {shown(by_lower[one])[1:-1]}?" for one in close)


def require_flag(name: str, value: object, other: str | None = "") -> None:
    """Raises `InputError` unless `value` is True or False, or the `other` value, which is None or a word."""
    is_other = value is None if other is None else isinstance(value, str) and value == other != ""
    allowed = f"true, false or {other}" if other else "true or false"
    _must(isinstance(value, bool | np.bool_) or is_other, name, allowed, value)


def require_compile(compile: object) -> None:
    """Raises `InputError` unless `compile` is True, False or "auto"."""
    require_flag("compile", compile, "auto")


def require_missing(missing: object) -> None:
    """Raises `InputError` unless `missing` says that cells may be missing, or None."""
    known = missing is None or (isinstance(missing, str) and missing == "mask")
    _must(known, "missing", 'None or "mask"', missing)


def require_text(name: str, value: object, of: str = "a text") -> None:
    """Raises `InputError` unless `value` is a text; `of` says which."""
    _must(isinstance(value, str), name, of, value)


def require_path(name: str, value: object) -> None:
    """Raises `InputError` unless `value` names a file or a folder."""
    _must(isinstance(value, str | os.PathLike), name, "a path", value)


def require_callable(name: str, value: object, of: str = "a function") -> None:
    """Raises `InputError` unless `value` can be called; `of` says what it must be."""
    _must(callable(value), name, of, value)


def if_given(check: Callable[..., None], name: str, value: object, *rule: object) -> None:
    """Checks a setting that may be left out, for which it is None."""
    if value is not None:
        check(name, value, *rule)


def _must(holds: bool, name: str, rule: str, value: object) -> None:
    """Raises `InputError` unless the rule holds. The message is built only then, as some checks run at every step."""
    if not holds:
        raise InputError(f"{name} must be {rule}{'' if rule.endswith(';') else ','} got {shown(value)}")
