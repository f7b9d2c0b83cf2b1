"""Checks tensors, each refused in one line, and tells what torch's and Pyro's own errors mean."""

import re
import traceback
from pathlib import Path

import numpy as np
import pyro.distributions
import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.runtime import am_i_wrapped

from pyrovae.common.errors import InputError, require, shown
from pyrovae.common.spelling import setting

_DISTRIBUTIONS = tuple(str(Path(package.__path__[0])) for package in (torch.distributions, pyro.distributions))
# Beyond about a hundred the usual initial weights overflow, and data that are scaled well do not reach fifty.
MAX_SCALED_VALUE = 50.0
MOST_SEEN = 100  # rows that are looked at as an encoder sees them, which may take far more memory than the data
_NEGATIVE = re.compile(r"invalid values:.*(?<!e)-\d", re.DOTALL)
_WHOLE = (torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64)
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = {torch.bool, *_WHOLE, *_REAL, torch.complex64, torch.complex128}  # those that torch computes with
# What torch and NumPy say when a tensor cannot be had, because there is no memory or no number that counts its bytes.
_TOO_LARGE = re.compile(
    r"allocate memory|calculation overflowed|integer multiplication overflow|invalid memory size|array is too big|"
    r"Overflow when unpacking long"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether there was no memory for a tensor, or can be none: on the CPU torch raises a RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _TOO_LARGE.search(str(error)) is not None


def is_validation_error(error: BaseException) -> bool:
    """Returns whether the error began with a distribution that refused the values of a parameter or of a draw.

    This is how a diverged training shows itself. Any other error of a program, such as a wrong shape that it gave to a
    distribution, is the program's own.
    """
    error = _root_of(error)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    within = bool(frames) and frames[-1].f_code.co_filename.startswith(_DISTRIBUTIONS)
    return within and isinstance(error, ValueError) and "invalid values" in str(error)


def _root_of(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def scale_hint(pair: object, error: BaseException | None, *args: object) -> str:
    """Returns a hint to standardise data so large that networks overflow, for the start of an error; else no text.

    `pair` is the pair or one of its programs, and `error` what it raised, if it raised anything. There is no hint if
    that does not come of an overflow.
    """
    if error is not None and not _is_overflow(error):
        return ""
    for name, value in zip(("x", *"y" * len(args)), args, strict=False):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            largest = _largest(value.detach())
            if largest > MAX_SCALED_VALUE and name == "x":
                largest = _largest(_as_seen(pair, value.detach()))
            if largest > MAX_SCALED_VALUE:
                return f"{name} reaches {largest:.3g}: standardise it; "
    return ""


def _is_overflow(error: BaseException) -> bool:
    """Returns whether a distribution refused numbers that may have overflowed: no data, and no scale below 0."""
    text = str(_root_of(error))
    is_outside = "Expected value argument" in text or _NEGATIVE.search(text) is not None
    return is_validation_error(error) and ("Real()" in text or not is_outside)


def _largest(value: torch.Tensor) -> float:
    """Returns the largest magnitude of the elements that are not NaN, and 0 without any."""
    there = value[~value.isnan()]
    return there.abs().max().item() if there.numel() else 0.0


def _as_seen(pair: object, x: torch.Tensor) -> torch.Tensor:
    """Returns what the encoder of a VAE sees of the data, for example logarithms of counts: of the largest, a few."""
    see = getattr(getattr(pair, "__self__", pair), "encoder_input", None)
    if see is None or x.dim() == 0:
        return x
    sizes = x.nan_to_num(0.0).abs().reshape(len(x), -1).amax(1)
    return see(x[sizes.topk(min(len(x), MOST_SEEN)).indices])


def require_batch(x: object, event_shape: tuple[int, ...], dtype: torch.dtype, name: str = "x") -> None:
    """Raises `InputError` unless `x` is a tensor `(batch, *event_shape)` of the parameters' dtype, and not empty."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point() and not x.is_nested and not x.is_meta):
        raise InputError(f"{name} must be a floating-point tensor, got {kind_of(x)}")
    require(x.dtype == dtype, f"{name} must be of {dtype}, as the parameters are, got {x.dtype}")
    expected = ", ".join(map(str, ("batch", *event_shape)))
    fits = x.dim() == len(event_shape) + 1 and x.shape[1:] == event_shape
    require(fits, f"{name} must have shape ({expected}), got {tuple(x.shape)}")
    require(len(x) > 0, f"{name} must hold at least one datum, got 0")
    require(x.layout == torch.strided, f"{name} must be a dense tensor of numbers, got {x.layout}")


def require_finite_input(x: torch.Tensor, program: object, name: str = "x") -> None:
    """Raises `InputError` as `require_finite_data` does where a method is asked by a user, and not by a program."""
    if is_asked():
        require_finite_data(x, program, name)


def is_asked() -> bool:
    """Returns False within a program: its data were checked before, and NaN draws mean that the training diverged."""
    return is_validation_enabled() and not am_i_wrapped()


def kind_of(x: object) -> str:
    """Returns what `x` is: of a tensor its dtype, and of an array that it is one."""
    if isinstance(x, torch.Tensor):
        return str(x.dtype)
    return f"an array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__


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


def require_finite_data(x: torch.Tensor, program: object, name: str = "x") -> None:
    """Raises `InputError` unless the data are finite; NaN is a missing cell to a program that `takes_missing`."""
    require_plain(name, x)
    if takes_missing(program):
        x = torch.where(x.isnan(), 0.0, x)
    elif bool(x.isnan().any()):
        index = tuple(x.isnan().nonzero()[0].tolist())
        raise InputError(f"{name} must be finite, got nan at index {index}{_missing_hint(program)}")
    require_finite(name, x)


def _missing_hint(program: object) -> str:
    """Returns how a VAE, or the model of any other pair, says that NaN is a missing cell; nothing if it cannot."""
    owner = getattr(program, "__self__", program)
    if hasattr(owner, "convert_data"):  # a VAE of ours
        return f"; if it is a missing cell, the VAE needs {setting('missing', 'mask')}" * hasattr(owner, "missing")
    own = 'self.missing = "mask"' if owner is not program else 'model.missing = "mask"'
    return f"; if it is a missing cell, mask it in the model and say {own}"


def takes_missing(program: object) -> bool:
    """Returns True if a pair or one of its programs, or the object that it is a method of, says `missing = "mask"`."""
    owners = program, getattr(program, "__self__", None), getattr(program, "model", None)
    return any(getattr(owner, "missing", None) == "mask" for owner in owners)
