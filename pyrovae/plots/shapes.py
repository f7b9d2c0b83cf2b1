"""What a figure takes: arrays of numbers whose shapes fit each other, checked before anything is drawn."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from matplotlib.axes import Axes

from pyrovae.common import InputError, require, shown
from pyrovae.plots.axes import as_numpy

Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")
Shape = str | tuple[str, ...] | list[str]
RULES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "finite": ("finite", np.isfinite),
    "positive": ("> 0", lambda array: np.isfinite(array) & (array > 0)),  # on a log axis
    "no_less": (">= 0", lambda array: ~(array < 0)),  # an error, which may be unknown
}
_SHAPE = re.compile(rf"\((?P<dims>[\w, ]*)\)( (?P<rule>{'|'.join(RULES)}))?(?P<optional> or None)?")


def takes_arrays(**shapes: Shape) -> Callable[[Callable[Arguments, Drawn]], Callable[Arguments, Drawn]]:
    """Returns a decorator of a function that draws, which refuses what it could not draw, in one line.

    Args:
        **shapes: What an argument must be, `None` aside where that is its default. `"(num, 2)"` is an array, where
            dimensions of one name are of one size, and of 1 at least unless the name is `any`. A rule for the numbers
            may follow, one of `RULES`; by default NaN and inf are left to be drawn as gaps. A tuple of such texts is a
            tuple of arrays, and a list of them a dict: of arrays if it has one, of tuples of arrays if it has several,
            whose dimensions are their own.
    """

    def decorate(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
        signature = inspect.signature(draw)

        @wraps(draw)
        def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Drawn:
            for value in (*args, *kwargs.values()):
                if is_dataclass(value):
                    kind = type(value).__name__
                    hint = "its own plot() draws it" if hasattr(value, "plot") else "give some of its values"
                    raise InputError(f"plots.{draw.__name__} takes arrays, got {kind}: {hint}")
            try:
                given, sizes = signature.bind(*args, **kwargs).arguments, dict[str, int]()
            except TypeError:
                return draw(*args, **kwargs)  # Python's own error names the function, too
            for name, shape in shapes.items():
                value, annotation = given.get(name), str(signature.parameters[name].annotation)
                is_empty = isinstance(shape, list) and isinstance(value, Mapping) and not value
                if not ((value is None or is_empty) and annotation.endswith("None")):
                    _check(name, value, shape, sizes)
            _check_axes(given.get("axes"))
            return draw(*args, **kwargs)

        return checked

    return decorate


def _check(name: str, value: Any, shape: Shape, sizes: dict[str, int]) -> None:
    if isinstance(shape, str):
        _check_array(name, value, shape, sizes)
    elif isinstance(shape, tuple):
        fits = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(shape)
        require(fits, f"{name} must be a tuple of {len(shape)}, got {_described(value)}")
        for index, (one, inner) in enumerate(zip(value, shape, strict=True)):
            _check(f"{name}[{index}]", one, inner, sizes)
    else:
        require(isinstance(value, Mapping), f"{name} must be a dict by name, got {_described(value)}")
        require(len(value) > 0, f"{name} must hold at least one entry, got none")
        for key, one in value.items():
            inside = f"{name}[{key!r}]"
            _check(inside, one, shape[0], sizes) if len(shape) == 1 else _check(inside, one, tuple(shape), {})


def _check_array(name: str, value: Any, shape: str, sizes: dict[str, int]) -> None:
    """Raises `InputError` unless the value has the shape; dimensions that are seen first are added to `sizes`."""
    said = _SHAPE.fullmatch(shape)
    assert said is not None, shape
    if value is None and said["optional"]:
        return
    try:
        array = as_numpy(value)
    except (ValueError, TypeError, RuntimeError):  # rows of several lengths; a sparse tensor
        array = np.asarray(None)
    require(array.dtype.kind in "biuf", f"{name} must be an array of numbers, got {_described(value)}")
    dims = [dim.strip() for dim in said["dims"].split(",") if dim.strip()]
    known = dict(sizes)
    fits = array.ndim == len(dims) and all(
        size == (int(dim) if dim.isdecimal() else known.setdefault(dim, size))
        for dim, size in zip(dims, array.shape, strict=True)
    )
    expected = ", ".join(str(sizes.get(dim, dim)) for dim in dims).replace("any", "num")
    require(fits, f"{name} must have shape ({expected}{',' if len(dims) == 1 else ''}), got {array.shape}")
    is_empty = any(size == 0 for dim, size in known.items() if dim != "any")
    require(not is_empty, f"{name} must not be empty, got shape {array.shape}")
    sizes.update(known)
    if said["rule"]:
        rule, holds = RULES[said["rule"]]
        wrong = np.argwhere(~holds(array))
        if len(wrong):
            index = tuple(wrong[0].tolist())
            raise InputError(f"{name} must be {rule}, got {array[index]:g}{f' at index {index}' if index else ''}")


def _check_axes(axes: Any) -> None:
    each = [axes] if axes is None or isinstance(axes, Axes) else list(np.ravel(np.asarray(axes, dtype=object)))
    require(all(one is None or isinstance(one, Axes) for one in each), f"axes must be matplotlib's, got {shown(axes)}")


def _described(value: Any) -> str:
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple | list | Mapping) else shown(value)
