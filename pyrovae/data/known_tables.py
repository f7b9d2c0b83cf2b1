"""Tables whose columns a model knows already: their cells become numbers as in its training, and numbers cells."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyrovae.common import InputError, did_you_mean, require, require_there, shown
from pyrovae.data.columns import Cells, Column, Place, as_text, of_numbers, parsed, word
from pyrovae.data.table_files import TABLE_FILES, read_csv, read_parquet
from pyrovae.data.tables import Table, checked_tensor
from pyrovae.data.written_cells import quoted, requoted

DIGITS = 6  # of a number's spread, which are written: more than it is known to
DIGITS_OF_ANY, MOST_DIGITS = 9, 17  # of a number of unknown spread: those of a float32; and of float64
MOST_PLAIN = 1e15  # from here on a number is written with an exponent
INSIDE = 1e-7  # of both ends of (0, 1), which a number between them must not be written as
MOST_NAMED = 8  # categories, in an error


@dataclass(frozen=True)
class KnownTable:
    """Holds a table as its file has it, beside the cells of the columns that a model knows.

    Args:
        table: The cells of the known columns, and of that of the labels.
        written: The rows as the file has them, see `Table`.
        columns: What the model knows of its columns.
        x: Their cells as in its training, `(rows, columns)`, NaN where one is missing.
    """

    table: Table
    written: list[list[str]]
    columns: tuple[Column, ...]
    x: Tensor

    def classes(self, label_column: str, names: Sequence[str]) -> Tensor:
        """Returns which of the classes of these names each row has in the column of labels, `(rows,)`."""
        column = Column(label_column, "category", categories=tuple(names))
        cells = _cells_of(self.table, label_column)
        values = _known_values(column, cells, self.table.place(label_column))
        absent = np.flatnonzero(np.isnan(values))
        if len(absent):
            raise InputError(f"{self.table.place(label_column)(int(absent[0]))}: a label must not be missing")
        return torch.from_numpy(values).long()

    def require_free(self, names: Sequence[str]) -> None:
        """Raises `InputError` if the file has a column of one of these names, which are to be those of others."""
        for name in names:
            require(name not in self.table.names, f"{self.table.source} has a column {shown(name)} already: rename it")

    def text(self, filled: Mapping[str, Sequence[str | None]], more: Mapping[str, Sequence[str]], suffix: str) -> str:
        """Returns the table as the text of a file, with a header if the table has one.

        Args:
            filled: By the names of columns, what is written in each row in place of its cell; None leaves the cell,
                letter by letter.
            more: Further columns, to the right of all others.
            suffix: That of the file: .tsv has tabs between cells, .csv what the table came with, or commas.
        """
        came_with = self.table.delimiter
        delimiter = "\t" if suffix == ".tsv" else ";" if came_with == ";" else ","
        rows = [[*row] if delimiter == came_with else [requoted(cell) for cell in row] for row in self.written]
        if self.table.has_header:
            rows[0] += [quoted(name) for name in more]
        below = rows[1:] if self.table.has_header else rows
        for name, texts in filled.items():
            at = self.table.names.index(name)
            for row, text in zip(below, texts, strict=True):
                row[at] = row[at] if text is None else quoted(text)
        for texts in more.values():
            for row, text in zip(below, texts, strict=True):
                row.append(text)
        return "".join(f"{delimiter.join(row)}\n" for row in rows)


def read_known_table(
    path: Path, columns: Sequence[Column], header: bool | None = None, label_column: str | None = None
) -> KnownTable:
    """Reads a table whose columns are known, as `load` reads one whose columns are not.

    Args:
        path: A .csv, .tsv or .parquet file. It may have other columns, too, which hold anything, and these in another
            order.
        columns: The columns, as a data set has them.
        header: As in `load`.
        label_column: The column of the labels, if `classes` is to read it.

    Raises:
        InputError: If it is no such file, lacks a column, or has a cell that is none of its column.
    """
    require_there(path)
    suffix = path.suffix.lower()
    require(suffix in TABLE_FILES, f"the table must be in a file of kind {', '.join(TABLE_FILES)}, got {path}")
    needed = {label_column, *(column.name for column in columns)}.__contains__
    table = read_parquet(path, needed, exact=True) if suffix == ".parquet" else read_csv(path, header, needed)
    values = [_known_values(one, _cells_of(table, one.name), table.place(one.name)) for one in columns]
    return KnownTable(table, table.written(), tuple(columns), checked_tensor(np.stack(values, 1), columns, table))


def cell_text(column: Column, value: float, spread: float = math.nan) -> str:
    """Returns a value of a column, as x has it, as the text of a cell: in the units or the names of the file.

    Args:
        column: The column.
        value: The value.
        spread: How far values in its place may lie apart, as x has it; NaN if that is unknown.
    """
    if column.categories:
        return column.categories[round(value)]
    if column.kind in ("binary", "count"):
        return str(round(value))
    value = min(max(value, INSIDE), 1 - INSIDE) if column.kind == "unit" else value
    if column.sd is None:
        return number_text(value, _digits(value, spread), value if column.kind == "unit" else 0.0)
    in_file = value * column.sd + (column.mean or 0.0)
    return number_text(in_file, _digits(in_file, spread * column.sd))


def _digits(value: float, spread: float) -> int:
    """Returns how many digits of a number are those that differ where numbers lie so far apart, and the first."""
    if not 0 < spread < math.inf:
        return DIGITS_OF_ANY
    above = math.floor(math.log10(abs(value))) - math.floor(math.log10(spread)) if value else 0
    return min(DIGITS + max(above, 0), MOST_DIGITS)


def number_text(value: float, digits: int = DIGITS, beside: float = 0.0) -> str:
    """Returns a number with so many digits, or as many as tell it from 0 and 1 if `beside` lies between these."""
    text = f"{value:.{digits}g}"
    if "e" in text and 1 <= abs(value) < MOST_PLAIN:
        return str(round(value))
    return repr(value) if 0 < beside < 1 and float(text) in (0.0, 1.0) else text


def _cells_of(table: Table, name: str) -> Cells:
    if name not in table.cells:
        some = ", ".join(table.names[:MOST_NAMED]) + (", ..." if len(table.names) > MOST_NAMED else "")
        rule = f"{table.source} must have the column {shown(name)}, and has {some}"
        raise InputError(f"{rule}{did_you_mean(name, table.names)}")
    return table.cells[name]


def _known_values(column: Column, cells: Cells, place: Place) -> np.ndarray:
    """Returns the cells of a column as numbers, NaN where one is missing; refuses what the column does not hold."""
    if column.categories:
        return _indices(column, cells, place)
    numbers, texts = parsed(cells)
    if texts:
        raise InputError(f"{place(texts[0])}: must be a number, got {shown(cells[texts[0]].strip()[:50])}")
    if column.kind == "binary":
        bad = np.flatnonzero(~(np.isnan(numbers) | np.isin(numbers, (0, 1))))
        if len(bad):
            raise InputError(f"{place(int(bad[0]))}: must be 0 or 1, got {as_text(numbers[bad[0]])}")
        return numbers
    of_numbers(column.name, numbers, column.kind, place, cells)
    return numbers if column.sd is None else (numbers - (column.mean or 0.0)) / column.sd


def _indices(column: Column, cells: Cells, place: Place) -> np.ndarray:
    """Returns which of the column's categories each cell is, NaN where it is missing."""
    index = {name: float(i) for i, name in enumerate(column.categories)}
    numbers, texts = parsed(cells)
    are_texts = set(texts)
    found = np.full(len(numbers), np.nan)
    for row, number in enumerate(numbers):
        is_text = row in are_texts
        if not is_text and np.isnan(number):
            continue
        name = str(word(cells[row])) if isinstance(cells, list) else as_text(number)
        known = index.get(name)  # 01 is not 1 where both are names
        if known is None and not is_text:
            known = index.get(as_text(number))
        if known is None:
            names = ", ".join(column.categories[:MOST_NAMED]) + (", ..." if len(index) > MOST_NAMED else "")
            raise InputError(
                f"{place(row)}: must be one of {names}; got {shown(name)}{did_you_mean(name, column.categories)}"
            )
        found[row] = known
    return found
