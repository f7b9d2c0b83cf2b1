"""Refuses bad input in one line that names the field, the rule and the value found. Does not import torch."""

import contextlib
import os
import re
import reprlib
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np

MOST_OF_A_LINE = 500  # characters of an error
MOST_OF_A_VALUE = 200


def _folder(package: str) -> tuple[str, ...]:
    """Returns the folder of a package, which is not imported; nothing if it is not installed."""
    spec = find_spec(package)
    places = () if spec is None else spec.submodule_search_locations or ()
    return tuple(f"{place}{os.sep}" for place in places)


# The files that lie between a user's line and a warning of ours: a step of SVI is Pyro's, a loop is tqdm's.
_BETWEEN = (f"{Path(__file__).parents[1]}{os.sep}", *_folder("torch"), *_folder("pyro"), *_folder("tqdm"))
_BETWEEN += (contextlib.__file__, "<")


class _Short(reprlib.Repr):
    """Puts values into a few words without a `__repr__` of the user's: that of a `PyroModule` draws numbers.

    Nor does it call one that takes long, because many messages are put together whether or not they are needed.
    """

    def repr_instance(self, x: Any, level: int) -> str:
        kind = type(x)
        if (isinstance(x, np.ndarray) or _is_of_torch("Tensor", x)) and x.ndim > 0:
            return f"a {kind.__name__} of shape {tuple(x.shape)} and {x.dtype}"
        if isinstance(x, FunctionType):
            return f"the function {x.__qualname__}"
        no_module = not (isinstance(x, MethodType) or _is_of_torch("nn.Module", x))
        known = kind.__module__.split(".")[0] in _KNOWN and no_module
        return super().repr_instance(x, level) if known or isinstance(x, type) else f"a {kind.__name__}"


def _is_of_torch(name: str, value: object) -> bool:
    """Returns whether a value is of this class of torch; where torch has not been imported, nothing is."""
    found = sys.modules.get("torch")
    for part in name.split("."):
        found = getattr(found, part, None)
    return isinstance(found, type) and isinstance(value, found)


_KNOWN = {"builtins", "pathlib", "numpy", "torch", "pyrovae", "datetime", "decimal", "fractions"}
_SHORT = _Short()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxarray = _SHORT.maxdeque = 30
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlong = 4, 15, 50
_SHORT.maxstring = _SHORT.maxother = MOST_OF_A_VALUE


class InputError(ValueError):
    """Says in one line why what the caller gave cannot be used. Scripts print the line and exit with 2.

    Args:
        message: The field, the rule and the value found. Line breaks become spaces, and of a long text the middle is
            left out.

    Example:
        >>> try:
        ...     pv.load("spiral")
        ... except pv.InputError as error:
        ...     print(error)
        dataset must be one of ring, ...; got 'spiral'
    """

    def __init__(self, message: str) -> None:
        # Pyro appends the shapes of a trace to any error raised inside a program, and a value may hold line breaks.
        super().__init__(one_line(re.split(r"\s*\n\s*Trace Shapes:", message, maxsplit=1)[0]))


def first_line(error: Exception) -> str:
    """Returns the error's message in one line. Two lines are joined if the first ends in a colon, as Pyro's do."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    text = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return shortened(re.sub(r", but found invalid values:.*$", "", text.rstrip()), 300)


def warn(message: str) -> None:
    """Gives a UserWarning that points at the line of the user's own code that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame, level = frame.f_back, level + 1
    warnings.warn(one_line(message), stacklevel=level)


def require(condition: bool, message: str) -> None:
    """Raises `InputError` unless the condition holds."""
    if not condition:
        raise InputError(message)


def shown(value: object) -> str:
    """Returns the value as an error shows it, in one short line."""
    try:
        text = _SHORT.repr(value)
    except Exception as error:  # a whole number with more digits than Python prints; a `__repr__` that fails
        text = f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
    return shortened(text, MOST_OF_A_VALUE)


def one_line(message: str) -> str:
    """Returns an error or a warning in one line that a terminal can show, whatever names and values it has in it."""
    return shortened(message, MOST_OF_A_LINE)


def shortened(text: str, most: int) -> str:
    """Returns the text in one line: its beginning and its end if it has more than `most` characters."""
    if len(text) > 4 * most:  # before it is split, which takes long for a text of many megabytes
        text = f"{text[: 2 * most]} ... {text[-2 * most :]}"
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most * 2 // 3]} ... {line[-(most // 3 - 5) :]}"
