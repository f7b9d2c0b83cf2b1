"""Tables made into data sets: columns chosen, their kinds found, missing cells kept, real numbers standardised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyrovae.common import InputError, as_dtype, did_you_mean, require, require_choice, setting, shown, warn
from pyrovae.data.columns import (
    KINDS,
    Cells,
    Column,
    Place,
    as_text,
    classes_of,
    column_of,
    without,
)
from pyrovae.data.dataset import Dataset
from pyrovae.data.options import LoadOptions
from pyrovae.data.splits import Rows, split_by_column, split_by_shares, split_fields

MOST_COLUMNS = 100_000  # a network on more numbers than that is no table's


@dataclass(frozen=True)
class Table:
    """Holds the cells of a table by column.

    Args:
        source: Names the file, or whatever the table comes from, in errors.
        names: The names of all columns, in order.
        cells: The cells of each column that is needed, by its name.
        row: Names the row of an index in errors.
        written: Returns the rows, that of the names first if there is one, as the texts that their cells are in a
            file, quotes and all. It has all columns.
        has_header: Whether the first row of these has the names.
        delimiter: What stands between two cells in the file.
    """

    source: str
    names: Sequence[str]
    cells: Mapping[str, Cells]
    row: Callable[[int], str]
    written: Callable[[], list[list[str]]] = list
    has_header: bool = True
    delimiter: str = ","

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.cells.values())))

    def place(self, name: str) -> Place:
        """Returns the function that names the place of a cell of this column, and for None the column."""
        column = f"column {shown(name)}"
        return lambda index: ", ".join((self.source, *(() if index is None else (self.row(index),)), column))


def table_dataset(
    name: str,
    table: Table,
    options: LoadOptions,
    y: Tensor | None = None,
    classes: tuple[str, ...] = (),
    rows: Rows | None = None,
) -> Dataset:
    """Returns the data set of a table.

    Args:
        name: The name of the data set.
        table: The cells.
        options: What `load` was told.
        y: The labels or conditions, if they are not in a column, and the names of the labels, `classes`.
        classes: The names of the labels.
        rows: The split, if it is neither in a column nor by chance.

    Raises:
        InputError: If a name is not in the table, or a cell does not fit its column.
    """
    chosen, kinds = chosen_columns(options, table.names, table.source)
    found = [column_of(one, table.cells[one], kinds.get(one), table.place(one)) for one in chosen]
    columns, x = [column for column, _ in found], np.stack([values for _, values in found], 1)
    if options.missing is None and np.isnan(x).any():
        index, column = np.argwhere(np.isnan(x))[0]
        place = table.place(chosen[column])(index)
        raise InputError(f"{place}: the cell is missing; {setting('missing', 'mask')} keeps such cells, as NaN")
    if options.split_column is not None:
        require(
            rows is None and options.shares is None, "split_column must not be given beside another split or shares"
        )
        rows = split_by_column(table.cells[options.split_column], table.place(options.split_column))
    rows = rows or split_by_shares(table.num_rows, options.shares, options.seed, table.source)
    train = x[rows["train"]]
    for column, has_none in zip(columns, np.isnan(train).all(0), strict=True):
        require(
            not has_none, f"{table.source}, column {shown(column.name)}: every cell of the training data is missing"
        )
    if options.standardise:
        columns = [_standardised(one, x[:, j], train[:, j], table.source) for j, one in enumerate(columns)]
    if options.label_column is not None:
        classes, labels = classes_of(table.cells[options.label_column], table.place(options.label_column))
        y = torch.from_numpy(labels)
    parts = split_fields(checked_tensor(x, columns, table), y, rows)
    data = Dataset(name, kind_of_columns(columns), **parts, columns=tuple(columns), classes=classes)
    guessed = [column.name for column in data.columns if options.columns is None and column.name not in kinds]
    for one in (one for one in guessed if one in data.columns.numbering_rows):  # type: ignore[attr-defined]
        place = table.place(one)(None)
        warn(f"{place}: numbers the rows: an identifier? {without(one)}")
    return data


def chosen_columns(options: LoadOptions, names: Sequence[str], source: str) -> tuple[list[str], dict[str, str]]:
    """Returns the names of the columns of x, and the kinds that were given; checks every name and kind."""
    others = {field: getattr(options, field) for field in ("label_column", "split_column")}
    for field, name in others.items():
        _require_names(field, [] if name is None else [name], names, source)
    excluded = [] if options.exclude is None else options.exclude
    _require_names("exclude", excluded, names, source)
    both = [name for name in excluded if name in others.values()]
    require(not both, f"exclude must not name the column of the labels or of the split, got {', '.join(both)}")
    usual = [name for name in names if name not in others.values()]
    chosen = usual if options.columns is None else options.columns
    _require_names("columns", chosen, names, source)
    columns = [name for name in chosen if name not in excluded]
    require(len(columns) > 0, f"columns must name at least one column of x, and {source} has no other")
    require(len(set(columns)) == len(columns), f"columns must differ, got {shown(columns)}")
    both = [name for name in columns if name in others.values()]
    require(not both, f"columns must not name the column of the labels or of the split, got {', '.join(both)}")
    rule = f"{source} has {len(columns):,} columns, more than {MOST_COLUMNS:,}"
    require(len(columns) <= MOST_COLUMNS, f"{rule}: choose some with {setting('columns')}")
    kinds = options.kinds
    of_columns = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(columns, kinds) if kinds else {}
    _require_names("kinds", [name for name in of_columns if name not in excluded], columns, source)
    for kind in of_columns.values():
        require_choice("kinds", kind, KINDS)
    return list(columns), of_columns


def kind_of_columns(columns: Sequence[Column]) -> str:
    """Returns the kind of a data set with these columns."""
    kinds = {column.kind for column in columns}
    only = next(iter(kinds)) if len(kinds) == 1 else "mixed"
    return {"continuous": "real", "binary": "binary", "count": "count"}.get(only, "mixed")


def _standardised(column: Column, x: np.ndarray, train: np.ndarray, source: str) -> Column:
    """Standardises the values of a real-valued column in place, and returns the column with its mean and its sd."""
    if column.kind != "continuous":
        return column
    observed = train[~np.isnan(train)]
    lowest = observed.min()
    rule = f"{source}, column {shown(column.name)}: must vary in the training data to be standardised"
    require(bool(lowest < observed.max()), f"{rule}, all of it is {as_text(lowest)}; {without(column.name)}")
    mean, sd = float(observed.mean()), float(observed.std())
    require(np.isfinite(sd) and sd > 0, f"{rule}, got a standard deviation of {sd:g}")
    x -= mean
    x /= sd
    return replace(column, mean=mean, sd=sd)


def checked_tensor(x: np.ndarray, columns: Sequence[Column], table: Table) -> Tensor:
    """Returns the values in torch's default dtype, and refuses those that would become others in it."""
    dtype = torch.get_default_dtype()
    with np.errstate(over="ignore"):
        converted = torch.from_numpy(x).to(dtype)
    back = converted.double().numpy()
    for j, column in enumerate(columns):
        was, now = x[:, j], back[:, j]
        lost = np.isinf(now) | ((now == 0) & (was != 0) & (column.kind in ("positive", "unit")))
        if column.kind == "count":
            lost |= (was != now) & ~np.isnan(was)
        if lost.any():
            index = int(np.flatnonzero(lost)[0])
            raise InputError(f"{table.place(column.name)(index)}: {dtype} does not hold {as_text(was[index])}")
        as_dtype(f"{table.source}, column {shown(column.name)}:", torch.from_numpy(was), dtype)
    return converted


def _require_names(field: str, given: Sequence[str], names: Sequence[str], source: str) -> None:
    known = set(names)
    for name in given:
        if not isinstance(name, str) or name not in known:
            some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            rule = f"{field} must name columns of {source} ({some})"[:300]
            raise InputError(f"{rule}, got {shown(name)}{did_you_mean(name, names)}")
