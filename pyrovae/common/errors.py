"""Refuses bad input in one line that names the field, the rule and the value found, and reads the errors of others."""

import math
import re
import sys
import traceback
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pyro.distributions
import torch

_DISTRIBUTIONS = tuple(str(Path(package.__path__[0])) for package in (torch.distributions, pyro.distributions))
# Beyond about a hundred the usual initial weights overflow, and data that are scaled well do not reach fifty.
MAX_SCALED_VALUE = 50.0


class InputError(ValueError):
    """Says in one line why what the caller gave cannot be used. Scripts print the line and exit with 2.

    Args:
        message: The field, the rule and the value found. Line breaks become spaces.

    Example:
        >>> try:
        ...     pv.load("spiral")
        ... except pv.InputError as error:
        ...     print(error)
        dataset must be one of ring, ...; got 'spiral'
    """

    def __init__(self, message: str) -> None:
        # Pyro appends the shapes of a trace to any error raised inside a program, and a value may hold line breaks.
        super().__init__(" ".join(re.split(r"\s*\n\s*Trace Shapes:", message)[0].splitlines()))


def first_line(error: Exception) -> str:
    """Returns the error's message in one line. Two lines are joined if the first ends in a colon, as Pyro's do."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    text = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return re.sub(r", but found invalid values:.*$", "", text.rstrip())[:300]


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether there was no memory for a tensor, on a GPU or on the CPU, where torch raises a RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


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
    warnings.warn(message, stacklevel=level)


def require(condition: bool, message: str) -> None:
    """Raises `InputError` unless the condition holds."""
    if not condition:
        raise InputError(message)


def require_count(name: str, value: object, minimum: int = 1) -> None:
    """Raises `InputError` unless `value` is a whole number of at least `minimum`, and below 2^63."""
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= minimum):
        raise InputError(f"{name} must be a whole number >= {minimum}, got {shown(value)}")
    if value >= 2**63:  # torch takes no larger number
        raise InputError(f"{name} must be < 2^63, got {shown(value)}")


def require_batch(x: object, event_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises `InputError` unless `x` is a tensor `(batch, *event_shape)` of the parameters' dtype, and not empty."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
        raise InputError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    require(x.dtype == dtype, f"x must be of {dtype}, as the parameters are, got {x.dtype}")
    expected = ", ".join(map(str, ("batch", *event_shape)))
    fits = x.dim() == len(event_shape) + 1 and x.shape[1:] == event_shape
    require(fits, f"x must have shape ({expected}), got {tuple(x.shape)}")
    require(len(x) > 0, "x must hold at least one datum, got 0")


def require_seed(seed: object) -> None:
    """Raises `InputError` unless torch's generators take `seed`."""
    require_count("seed", seed, 0)


def require_seeds(seeds: Collection[object]) -> None:
    """Raises `InputError` unless `seeds` holds one seed or more, all different."""
    require(len(seeds) > 0, "seeds must hold at least one, got none")
    for seed in seeds:
        require_seed(seed)
    require(len(set(seeds)) == len(seeds), f"seeds must differ, got {tuple(seeds)}: their error would be too small")


def shown(value: object) -> str:
    """Returns the value as an error shows it, in one short line."""
    try:
        text = repr(value)
    except ValueError:  # a whole number with more digits than Python prints
        text = f"a whole number of more than {sys.get_int_max_str_digits()} digits"
    return " ".join(text.split())[:200]


def require_number(name: str, value: object, above: float = -math.inf, below: float = math.inf) -> None:
    """Raises `InputError` unless `value` is a finite number strictly between `above` and `below`."""
    number = math.nan  # which lies between no two numbers
    with suppress(OverflowError):  # a whole number too large for a float
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            number = value
    rule = (
        "a finite number"
        + (f" > {above:g}" if above > -math.inf else "")
        + (f" < {below:g}" if below < math.inf else "")
    )
    require(above < number < below, f"{name} must be {rule}, got {repr(value)[:50]}")


def require_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raises `InputError` unless `value` is one of `choices`."""
    require(isinstance(value, str) and value in choices, f"{name} must be one of {', '.join(choices)}; got {value!r}")


def require_finite(name: str, value: torch.Tensor) -> None:
    """Raises `InputError` unless every element of the tensor `value` is finite, and names the first that is not."""
    require(value.layout == torch.strided, f"{name} must be dense, got {value.layout}")
    finite = torch.isfinite(value)
    if not finite.all():
        index = tuple((~finite).nonzero()[0].tolist())
        raise InputError(f"{name} must be finite, got {value[index].item()} at index {index}")


def require_finite_data(x: torch.Tensor, program: object) -> None:
    """Raises `InputError` unless the data are finite; NaN is a missing cell to a program that `takes_missing`."""
    is_dense = x.layout == torch.strided
    if is_dense and takes_missing(program):
        x = torch.where(x.isnan(), 0.0, x)
    elif is_dense and bool(x.isnan().any()):
        index = tuple(x.isnan().nonzero()[0].tolist())
        hint = 'if it is a missing cell, take VAE(missing="mask")'
        raise InputError(f"x must be finite, got nan at index {index}; {hint}")
    require_finite("x", x)


def takes_missing(program: object) -> bool:
    """Returns True if a pair or one of its programs, or the object that it is a method of, says `missing = "mask"`."""
    owners = program, getattr(program, "__self__", None), getattr(program, "model", None)
    return any(getattr(owner, "missing", None) == "mask" for owner in owners)


def require_compile(compile: object) -> None:
    """Raises `InputError` unless `compile` is True, False or "auto"."""
    require(compile in (True, False, "auto"), f"compile must be true, false or auto, got {compile!r}")
