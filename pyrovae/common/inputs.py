"""Takes data as they come: arrays and frames become tensors, and tensors those of a model's dtype, if nothing is lost.

A VAE says by its method `convert_data` what becomes of its arguments. Any other pair is given what the caller gives,
except that an array or a frame becomes a tensor of its own dtype.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyrovae.common.errors import InputError, require, shown
from pyrovae.common.tensor_checks import is_asked, kind_of, require_finite, require_plain

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MOST_ERROR = 1e-3  # of rounding, in standard deviations: a shift that no density would show
FEWEST_ROWS = 10  # a few rows may be close to each other by chance
NOISE = 1e-12  # relative standard deviations below it are of rounding in float64: 0.1 + 0.2 and 0.3
NUMBERS = "biufc"  # the kinds of dtypes
WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}  # for which torch has few functions


def is_array(value: object) -> bool:
    """Returns True for an array of NumPy, and for a frame or a series of pandas or its kin."""
    return isinstance(value, np.ndarray) or (
        not isinstance(value, Tensor) and callable(getattr(value, "to_numpy", None))
    )


def has_numbers(value: object) -> bool:
    """Returns True for an array, a frame or a series of numbers."""
    array = value if isinstance(value, np.ndarray) else value.to_numpy() if is_array(value) else None  # type: ignore[attr-defined]
    return isinstance(array, np.ndarray) and array.dtype.kind in NUMBERS


def as_tensor(name: str, value: Any) -> Any:
    """Returns an array or a frame as a tensor of its own dtype, and anything else as it is.

    Raises:
        InputError: If the array or the frame has something else than numbers; `name` is that of the argument.
    """
    if not is_array(value):
        # Autograd does not take a tensor of inference mode, and modules have parameters.
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
    array = value if isinstance(value, np.ndarray) else _array_of_frame(name, value)
    require(
        array.dtype.kind in NUMBERS,
        f"{name} must be an array of numbers, got one of {array.dtype}; pv.load reads tables with texts",
    )
    array = unmasked(array)
    native = array.dtype.newbyteorder("=")
    kind = (
        np.dtype(np.float64) if native.kind == "f" and native.itemsize > 8 else np.dtype(WIDER.get(native.name, native))
    )
    if native.name == "uint64":
        require(bool((array <= np.iinfo(np.int64).max).all()), f"{name} must be below 2^63, got {array.max()}")
    array = array.astype(kind, copy=False)
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():  # an array that must not be written to, as one on the disk; nothing here writes
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def unmasked(array: np.ndarray) -> np.ndarray:
    """Returns an array of numbers whose masked cells are missing: NaN, and not the numbers that lie under the mask."""
    if not isinstance(array, np.ma.MaskedArray):
        return array
    kind = array.dtype if array.dtype.kind in "fc" else np.dtype(np.float64)
    return np.ma.filled(array.astype(kind), np.nan) if np.ma.is_masked(array) else array.data


def _array_of_frame(name: str, frame: Any) -> np.ndarray:
    array = frame.to_numpy()
    if array.dtype.kind == "O":  # of columns with several dtypes, or numbers with missing cells
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError) as error:
            hint = "pv.load reads frames with texts or missing cells"
            raise InputError(f"{name} must be a frame of numbers, got {_no_number(frame, array)}; {hint}") from error
    return array


def _no_number(frame: Any, cells: np.ndarray) -> str:
    """Returns the first cell of a frame or a series that is no number, and the name of its column."""
    names = getattr(frame, "columns", [getattr(frame, "name", None)])
    for name, column in zip(names, cells.reshape(len(cells), -1).T, strict=True):
        for cell in column:
            try:
                float(cell)
            except (TypeError, ValueError):
                return f"{shown(cell)} in column {shown(name)}"
    return "other cells"


def as_data(value: Any) -> Any:
    """Returns a tensor apart from the graph that it was computed in, which the first step would free."""
    return value.detach() if isinstance(value, Tensor) else value


def as_dtype(name: str, value: Any, dtype: torch.dtype) -> Any:
    """Returns a tensor of real numbers in this floating-point dtype, and anything else as it is.

    Whole numbers must be exact in it, and float64 is rounded to float32 only where that is far less than the data vary.

    Raises:
        InputError: If the dtype would lose something; `name` is that of the argument.
    """
    if not isinstance(value, Tensor):
        return value
    require_plain(name, value)
    if value.dtype == dtype or value.is_complex():
        return value
    converted = value.to(dtype)
    if torch.promote_types(value.dtype, dtype) == dtype and value.is_floating_point():
        return converted
    rule = f"{name} must be of {dtype}, got {value.dtype}"
    if not value.is_floating_point():
        lost = converted.to(value.dtype) != value
    else:
        require((value.dtype, dtype) == (torch.float64, torch.float32), rule)
        lost = converted.isinf() & value.isfinite()
        if value.dim() > 0 and len(value) >= FEWEST_ROWS:
            mean = value.nanmean(0)
            spread = (value - mean).square().nanmean(0).sqrt()
            lost |= (converted.double() - value).abs() > MOST_ERROR * spread.where(
                spread > NOISE * mean.abs(), torch.inf
            )
    if lost.any():
        index = tuple(lost.nonzero()[0].tolist())
        raise InputError(f"{rule}, whose {value[index].item()} at index {index} would lose digits in it")
    return converted


def as_arguments(owner: object, args: tuple) -> tuple:
    """Returns the arguments of one call of a pair as it takes them.

    Args:
        owner: The pair. If it has a method `convert_data`, as a VAE does, one argument may hold all of them: a tuple or
            a list, a `TensorDataset`, or a dict with the fields x and y (y_1, y_2, ... of several conditions).
        args: The arguments as they come.

    Raises:
        InputError: If an array is not of numbers, a dict lacks a field, or the model's dtype would lose something.
    """
    convert = getattr(owner, "convert_data", None)
    if convert is not None and len(args) == 1:
        remedy = remedy_for(args[0], with_y=getattr(owner, "num_conditions", 0) > 0)
        require(not remedy, f"x must be a tensor or an array, got a {type(args[0]).__name__}: {remedy}")
        args = parts_of(owner, args[0])
    if convert is None:
        return tuple(
            as_tensor("x", value) if has_numbers(value) or isinstance(value, Tensor) else value for value in args
        )
    return convert(*(as_tensor("x" if index == 0 else "y", value) for index, value in enumerate(args))) if args else ()


def takes_data(method: Callable[Concatenate[Any, Arguments], Result]) -> Callable[Concatenate[Any, Arguments], Result]:
    """Decorates a method of `(x, *y)` of a VAE, so that it takes data as every function of a pair does.

    Within a program the method is given what the program was given.
    """

    @wraps(method)
    def with_data(self: Any, *args: Any, **kwargs: Any) -> Result:
        if not am_i_wrapped():
            args = (kwargs.pop("x"), *args) if "x" in kwargs else args
            args = as_arguments(self, args)
        return method(self, *args, **kwargs)

    return with_data


def as_codes(z: Any, event_shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Returns values of a latent as a decoder takes them, `(..., *event_shape)`: in `dtype` if a user gives them.

    Whole numbers may be codes that a decoder of the user's own takes, and autocast shortens what an encoder gives.

    Raises:
        InputError: If they are of another shape or no real numbers; where a user gives them also if they are not
            finite, or `dtype` would lose something.
    """
    is_given = not am_i_wrapped()  # and not drawn in a program
    if is_given:
        z = as_tensor("z", z)
    if not (isinstance(z, Tensor) and not z.is_nested and not z.is_meta and not z.is_complex()):
        raise InputError(f"z must be a tensor of real numbers, got {kind_of(z)}")
    fits = z.shape[max(0, z.dim() - len(event_shape)) :] == event_shape
    require(fits, f"z must have shape ({', '.join(map(str, ('...', *event_shape)))}), got {tuple(z.shape)}")
    if is_asked():
        require_finite("z", z)
    if is_given and z.is_floating_point() and not torch.is_autocast_enabled(z.device.type):
        return as_dtype("z", z, dtype)
    return z


def remedy_for(value: object, with_y: bool = False) -> str:
    """Returns how to give the data that `value` has, if it is a data set or a loader; else no text."""
    if is_array(value):
        return ""
    if hasattr(value, "test_x"):
        return "give its test_x" + " and test_y" * with_y
    has_batches = isinstance(value, DataLoader | Dataset) and not isinstance(value, TensorDataset)
    return "give a batch of it" if has_batches else ""


def parts_of(owner: object, value: object) -> tuple:
    """Returns what a value holds for a VAE: x, and no more conditions than the VAE has."""
    num_conditions = getattr(owner, "num_conditions", 0)
    if isinstance(value, TensorDataset):
        value = value.tensors
    if isinstance(value, Mapping):
        fields = ["x", *(["y"] if num_conditions == 1 else [f"y_{i + 1}" for i in range(num_conditions)])]
        missing = [field for field in fields if field not in value]
        require(not missing, f"a dict must have the fields {', '.join(fields)}; got {', '.join(map(str, value))}"[:300])
        return tuple(value[field] for field in fields)
    if isinstance(value, list | tuple) and not isinstance(value, PackedSequence):
        require(len(value) > 0, f"x must be given, got an empty {type(value).__name__}")
        return tuple(value)[: 1 + num_conditions]
    return (value,)
