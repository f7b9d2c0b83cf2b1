"""Arrays of one's own made into a data set: read from .npy, .npz and .pt files, or as they are in memory."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.common import (
    InputError,
    as_dtype,
    as_tensor,
    first_line,
    is_array,
    require,
    require_plain,
    setting,
    unmasked,
)
from pyrovae.data.columns import Cells, classes_of
from pyrovae.data.dataset import SPLITS, Dataset
from pyrovae.data.images import as_images, image_dataset
from pyrovae.data.options import OF_TABLES, LoadOptions
from pyrovae.data.splits import Rows, split_by_shares, split_fields, split_in_order
from pyrovae.data.table_files import table_of_array
from pyrovae.data.tables import table_dataset

MAPPED_BYTES = 2**30  # an .npy of this size or more stays on the disk
CHECKED_BYTES = 2**26
VALUES = {f"{split}_{value}": (split, value) for split in SPLITS for value in "xy"}
VALUES |= {f"{value}_{split}": (split, value) for split, value in VALUES.values()}  # as Keras names them
VALUES |= {f"{value}_val": ("validation", value) for value in "xy"} | {
    f"val_{value}": ("validation", value) for value in "xy"
}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npy, .npz or .pt file by name; a single one is x, whatever its name.

    Raises:
        InputError: If the file is not one of arrays of numbers or texts. No code in a file is run.
    """
    found: Any
    try:
        if path.suffix == ".pt":
            found = torch.load(path, weights_only=True, map_location="cpu")
        else:
            found = np.load(path, allow_pickle=False, mmap_mode="c" if path.suffix == ".npy" else None)
            if not isinstance(found, np.ndarray):
                with found as opened:
                    found = {name: opened[name] for name in opened.files}
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} must hold tensors alone, and not objects that run code when they are read") from error
    except Exception as error:  # neither has an error of its own: a damaged file may raise anything
        raise InputError(f"{path} is not a readable {path.suffix} file of arrays ({first_line(error)})") from error
    if isinstance(found, Mapping) and len(found) == 1 and not VALUES.keys() & found.keys():
        found = next(iter(found.values()))
    return named_arrays(found, str(path))


def named_arrays(found: Any, source: str) -> dict[str, np.ndarray]:
    """Returns arrays by name: x and y, or those of each split, train_x and so on.

    Args:
        found: An array x, a tuple `(x, y)` or a dict with these names.
        source: Names the arrays in errors.

    Raises:
        InputError: If they are no arrays, or the names of a dict are others.
    """
    if isinstance(found, tuple):
        require(len(found) == 2, f"{source} must be x, (x, y) or a dict of arrays, got a tuple of {len(found)}")
        found = {"x": found[0], "y": found[1]}
    elif not isinstance(found, Mapping):
        found = {"x": found}
    named = ("x", "y") if "x" in found else tuple(VALUES)
    is_known = any(name in found for name in ("x", "train_x", "x_train")) and set(found) <= set(named)
    names = ", ".join(map(str, found)) or "none"
    require(is_known, f"{source} must hold arrays named x and y, or train_x, train_y, ..., test_y; got {names}"[:300])
    arrays = {name: _array(found[name], f"{source}, array {name}") for name in named if found.get(name) is not None}
    for name, array in arrays.items():
        is_x = name == "x" or VALUES.get(name, ("", "y"))[1] == "x"
        rule = f"{source}, array {name}: must hold numbers, got texts"
        require(not is_x or array.dtype.kind != "U", f"{rule}; a frame or a .csv file may have columns of texts")
    return arrays


def array_dataset(name: str, arrays: Mapping[str, np.ndarray], options: LoadOptions, source: str) -> Dataset:
    """Returns the data set of arrays by name.

    Bytes in 3 or 4 dimensions are images. Other arrays of 1 or 2 dimensions are tables, with columns x1, x2, ...

    Raises:
        InputError: If the arrays do not fit each other, or an option does not fit them.
    """
    x, y, rows = _joined(arrays, source)
    require(rows is None or options.shares is None, f"shares must not be given where {source} has arrays of each split")
    classes, labels = ((), None) if y is None else _labels(y, f"{source}, array y")
    images = as_images(x)
    if images is None and x.ndim < 3:
        options.check_only(OF_TABLES, source, "holds a table")
        require(
            y is None or options.label_column is None, f"label_column must not be given beside the array y of {source}"
        )
        return table_dataset(name, table_of_array(x.reshape(len(x), -1), source), options, labels, classes, rows)
    rule = f"{source}, array x: bytes in 4 dimensions must be images of 1 or 3 channels, got shape {x.shape}"
    is_odd = images is None and x.dtype == np.uint8 and x.ndim == 4
    require(not is_odd, f"{rule}; drop an alpha channel, or convert x to float if it holds no images")
    if images is not None:
        options.check_only(("binarize", "shares"), source, "holds images")
        rows = rows or split_by_shares(len(x), options.shares, options.seed, source)
        return image_dataset(name, images, labels, rows, options.binarize or "none", options.seed, classes)
    options.check_only(("missing", "shares"), source, f"holds an array of {x.ndim} dimensions")
    values = as_dtype(f"{source}, array x", as_tensor(f"{source}, array x", x), torch.get_default_dtype())
    _check_finite(values, f"{source}, array x", options.missing)
    rows = rows or split_by_shares(len(x), options.shares, options.seed, source)
    return Dataset(name, _kind_of(values), **split_fields(values, labels, rows), classes=classes)


def mapped_dataset(name: str, x: np.ndarray, options: LoadOptions, source: str) -> Dataset | None:
    """Returns the data set of a large array that stays on the disk, or None if the array is to be read into memory.

    It stays there if it has torch's default dtype. Its splits are blocks in the order of the file, training data first:
    rows by chance would have to be copied.
    """
    if x.nbytes < MAPPED_BYTES or x.ndim < 2 or as_tensor("x", x[:1]).dtype != torch.get_default_dtype():
        return None
    options.check_only(("missing", "shares"), source, f"has {x.nbytes / 2**30:.3g} GiB, which stay on the disk")
    values = as_tensor("x", x)
    size = max(1, CHECKED_BYTES // max(1, x[:1].nbytes))
    kinds = set()
    for start in range(0, len(values), size):
        part = values[start : start + size]
        _check_finite(part, source, options.missing, start)
        kinds.add(_kind_of(part))
    kind = next(kind for kind in ("real", "count", "binary") if kind in kinds)
    return Dataset(name, kind, **split_fields(values, None, split_in_order(len(x), options.shares, source)))


def _joined(arrays: Mapping[str, np.ndarray], source: str) -> tuple[np.ndarray, np.ndarray | None, Rows | None]:
    """Returns x, y and the split, which is None where the arrays are not those of each split."""
    if "x" in arrays:
        x, y = arrays["x"], arrays.get("y")
        rule = f"{source}: y must have a row for each of the {len(x)} rows of x"
        require(y is None or len(y) == len(x), f"{rule}, got {0 if y is None else len(y)}")
        require(x.size > 0, f"{source}: x must hold at least one datum, got shape {x.shape}")
        return x, y, None
    parts = {VALUES[name]: array for name, array in arrays.items()}
    x_parts = {split: parts[split, "x"] for split in SPLITS if (split, "x") in parts}
    y_parts = {split: parts[split, "y"] for split in SPLITS if (split, "y") in parts}
    shapes = {part.shape[1:] for part in x_parts.values()}
    require(len(shapes) == 1, f"{source}: x must have one shape in every split, got {', '.join(map(str, shapes))}")
    lengths, of_y = ({split: len(part) for split, part in found.items()} for found in (x_parts, y_parts))
    require(not of_y or of_y == lengths, f"{source}: y must have a row for each row of x, got {of_y} for {lengths}")
    ends = np.cumsum([lengths.get(split, 0) for split in SPLITS])
    rows = {split: np.arange(end - lengths.get(split, 0), end) for split, end in zip(SPLITS, ends, strict=True)}
    y = np.concatenate(list(y_parts.values())) if y_parts else None
    return np.concatenate(list(x_parts.values())), y, rows


def _labels(y: np.ndarray, place: str) -> tuple[tuple[str, ...], Tensor]:
    """Returns the names of the classes and the labels, of whole numbers or texts; or no names and real conditions."""
    if y.ndim == 1 and y.dtype.kind in "biuU":
        cells: Cells = y.tolist() if y.dtype.kind == "U" else y.astype(np.float64)
        classes, index = classes_of(cells, lambda row: f"{place}, index {row}")
        return classes, torch.from_numpy(index)
    require(y.dtype.kind != "U", f"{place}: texts must be labels, one per datum, got shape {y.shape}")
    values = as_tensor(place, y)
    values = as_dtype(place, values, torch.get_default_dtype()) if values.is_floating_point() else values
    _check_finite(values, place, None)
    return (), values


def _array(value: Any, place: str) -> np.ndarray:
    if isinstance(value, Tensor):
        require_plain(place, value)
        is_short = value.is_floating_point() and value.itemsize < 4  # NumPy has no bfloat16
        value = (value.float() if is_short else value).detach().cpu().resolve_neg().resolve_conj().numpy()
    value = value.to_numpy() if is_array(value) and not isinstance(value, np.ndarray) else value
    require(isinstance(value, np.ndarray), f"{place}: must be an array or a tensor, got {type(value).__name__}")
    if value.dtype.kind == "O" and all(isinstance(one, str) for one in value.flat):
        value = value.astype(str)
    fits = value.dtype.kind in "biufU" and value.ndim > 0
    require(fits, f"{place}: must hold numbers, with a row per datum, got {value.dtype} of shape {value.shape}")
    return unmasked(value)


def _check_finite(values: Tensor, place: str, missing: str | None, start: int = 0) -> None:
    bad = values.isinf() if missing else ~values.isfinite()
    if bad.any():
        row, *more = bad.nonzero()[0].tolist()
        keeps = f"; {setting('missing', 'mask')} keeps NaN as a missing value"
        hint = "" if missing or values[row, *more].isinf() else keeps
        raise InputError(
            f"{place}: must be finite, got {values[row, *more].item()} at index {(row + start, *more)}{hint}"
        )


def _kind_of(values: Tensor) -> str:
    """Returns the kind of data that are no table: binary, count or real."""
    found = values[~values.isnan()]
    if not bool(((found == found.floor()) & (found >= 0)).all()):
        return "real"
    return "binary" if bool((found <= 1).all()) else "count"
