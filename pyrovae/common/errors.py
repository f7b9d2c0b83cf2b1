"""Refuses bad input in one line that names the field, the rule and the value found, and reads the errors of others."""

import re
import reprlib
import sys
import traceback
import warnings
from pathlib import Path
from types import FrameType, FunctionType, MethodType

import numpy as np
import pyro.distributions
import torch

_DISTRIBUTIONS = tuple(str(Path(package.__path__[0])) for package in (torch.distributions, pyro.distributions))
# Beyond about a hundred the usual initial weights overflow, and data that are scaled well do not reach fifty.
MAX_SCALED_VALUE = 50.0
MOST_OF_A_LINE = 500  # characters of an error
MOST_OF_A_VALUE = 200
_WHOLE = (torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64)
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = {torch.bool, *_WHOLE, *_REAL, torch.complex64, torch.complex128}  # those that torch computes with


class _Short(reprlib.Repr):
    """Puts values into a few words without a `__repr__` of the user's: that of a `PyroModule` draws numbers.

    Nor does it call one that takes long, because many messages are put together whether or not they are needed.
    """

    def repr_instance(self, x: object, level: int) -> str:
        kind = type(x)
        if isinstance(x, torch.Tensor | np.ndarray) and x.ndim > 0:
            return f"a {kind.__name__} of shape {tuple(x.shape)} and {x.dtype}"
        if isinstance(x, FunctionType):
            return f"the function {x.__qualname__}"
        known = kind.__module__.split(".")[0] in _KNOWN and not isinstance(x, torch.nn.Module | MethodType)
        return super().repr_instance(x, level) if known or isinstance(x, type) else f"a {kind.__name__}"


_KNOWN = {"builtins", "pathlib", "numpy", "torch", "pyrovae", "datetime", "decimal", "fractions"}
_SHORT = _Short()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxarray = _SHORT.maxdeque = 30
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlong = 4, 15, 50
_SHORT.maxstring = _SHORT.maxother = MOST_OF_A_VALUE
# What torch and NumPy say when a tensor cannot be had, because there is no memory or no number that counts its bytes.
_TOO_LARGE = re.compile(
    r"allocate memory|calculation overflowed|integer multiplication overflow|invalid memory size|array is too big"
)


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


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether there was no memory for a tensor, or can be none: on the CPU torch raises a RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _TOO_LARGE.search(str(error)) is not None


def is_validation_error(error: BaseException) -> bool:
    """Returns whether the error began with a distribution that refused the values of a parameter or of a draw.

    This is how a diverged training shows itself. Any other error of a program, such as a wrong shape that it gave to a
    distribution, is the program's own.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    within = bool(frames) and frames[-1].f_code.co_filename.startswith(_DISTRIBUTIONS)
    return within and isinstance(error, ValueError) and "invalid values" in str(error)


def scale_hint(*args: object) -> str:
    """Returns a hint to standardise data so large that networks overflow, for the start of an error; else no text."""
    for name, value in zip(("x", *"y" * len(args)), args, strict=False):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0:
            largest = value.detach().abs().max().item()
            if largest > MAX_SCALED_VALUE:
                return f"{name} reaches {largest:.3g}: standardise it; "
    return ""


def warn(message: str) -> None:
    """Gives a UserWarning that points at the line of the user's own code that led here."""
    packages, level = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)), 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith((*packages, "<")):
        frame, level = frame.f_back, level + 1
    warnings.warn(one_line(message), stacklevel=level)


def require(condition: bool, message: str) -> None:
    """Raises `InputError` unless the condition holds."""
    if not condition:
        raise InputError(message)


def require_batch(x: object, event_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises `InputError` unless `x` is a tensor `(batch, *event_shape)` of the parameters' dtype, and not empty."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point() and not x.is_nested and not x.is_meta):
        raise InputError(f"x must be a floating-point tensor, got {_kind_of(x)}")
    require(x.dtype == dtype, f"x must be of {dtype}, as the parameters are, got {x.dtype}")
    expected = ", ".join(map(str, ("batch", *event_shape)))
    fits = x.dim() == len(event_shape) + 1 and x.shape[1:] == event_shape
    require(fits, f"x must have shape ({expected}), got {tuple(x.shape)}")
    require(len(x) > 0, "x must hold at least one datum, got 0")
    require(x.layout == torch.strided, f"x must be a dense tensor of numbers, got {x.layout}")


def _kind_of(x: object) -> str:
    """Returns what `x` is: of a tensor its dtype, and of an array that it is one."""
    if isinstance(x, torch.Tensor):
        return str(x.dtype)
    return f"an array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__


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


def require_plain(name: str, value: object) -> None:
    """Raises `InputError` unless `value` is a tensor that has a number at each of its places, which torch can read."""
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name} must be a tensor, got {shown(value)}")
    if value.layout != torch.strided:
        found: str | None = str(value.layout)
    elif value.is_nested or value.is_meta or value.is_quantized:
        found = "a nested one" if value.is_nested else "a meta tensor" if value.is_meta else "a quantised one"
    elif type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:  # masked, or without values
        found = f"a {type(value).__name__}"
    else:
        found = str(value.dtype) if value.dtype not in _DTYPES else None
    require(found is None, f"{name} must be a dense tensor of numbers, got {found}")


def require_finite(name: str, value: torch.Tensor) -> None:
    """Raises `InputError` unless every element of the tensor `value` is finite, and names the first that is not."""
    require_plain(name, value)
    finite = torch.isfinite(value)
    if not finite.all():
        index = tuple((~finite).nonzero()[0].tolist())
        raise InputError(f"{name} must be finite, got {value[index].item()} at index {index}")


def require_finite_data(x: torch.Tensor, program: object) -> None:
    """Raises `InputError` unless the data are finite; NaN is a missing cell to a program that `takes_missing`."""
    require_plain("x", x)
    if takes_missing(program):
        x = torch.where(x.isnan(), 0.0, x)
    elif bool(x.isnan().any()):
        index = tuple(x.isnan().nonzero()[0].tolist())
        hint = 'if it is a missing cell, take VAE(missing="mask")'
        raise InputError(f"x must be finite, got nan at index {index}; {hint}")
    require_finite("x", x)


def takes_missing(program: object) -> bool:
    """Returns True if a pair or one of its programs, or the object that it is a method of, says `missing = "mask"`."""
    owners = program, getattr(program, "__self__", None), getattr(program, "model", None)
    return any(getattr(owner, "missing", None) == "mask" for owner in owners)
