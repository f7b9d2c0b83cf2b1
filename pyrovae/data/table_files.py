"""Reads tables: files of comma- or tab-separated values, parquet files, and frames of pandas or its kin."""

import codecs
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae.common import InputError, first_line, require, setting, shown
from pyrovae.data.columns import Cells, without, word
from pyrovae.data.tables import MOST_COLUMNS, Table
from pyrovae.data.written_cells import cells_as_written, quoted, values_as_written

TEXT_FILES = (".csv", ".tsv")
TABLE_FILES = (*TEXT_FILES, ".parquet")  # whose columns have names
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _every(name: str) -> bool:
    return True


def read_csv(path: Path, header: bool | None, needs: Callable[[str], bool] = _every) -> Table:
    """Reads a file of values that are separated by tabs (.tsv), commas, or semicolons if the first row has no comma.

    Args:
        path: The file, in UTF-8, or in UTF-16 with a byte order mark.
        header: Whether the first row has the names. None takes it so, unless all its cells are numbers.
        needs: Says by its name whether a column is needed.

    Raises:
        InputError: If the file is not a table.
    """
    text = _decoded(path)
    require(bool(text.strip()), f"{path} is empty")
    first = text.lstrip().split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
    trimmed = text.rstrip(" \r\n")  # a tab may stand between two cells
    reader = csv.reader(io.StringIO(trimmed, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        rows = _without_blank_lines(list(enumerate(reader, 1)))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a row of values ({first_line(error)})") from error
    width = len(rows[0][1])
    names, body = _header(path, rows, header)
    needed = [j for j, name in enumerate(names) if needs(name)]
    too_wide = f"{path} has {width:,} columns, more than {MOST_COLUMNS:,}: choose some with {setting('columns')}"
    require(len(needed) <= MOST_COLUMNS, too_wide)
    start = 0 if body is rows else rows[0][0]
    for number, row in body:
        if len(row) != width:
            raise InputError(f"{path}, row {number}: must have {width} cells, as the first row, got {len(row)}")
        if start and row == rows[0][1]:
            raise InputError(f"{path}, row {number}: repeats the header of row {start}")
    require(len(body) > 0, f"{path} has a header and no rows below it")
    cells: dict[str, Cells] = {names[j]: [row[j] for _, row in body] for j in needed}
    numbers = [number for number, _ in rows]
    written, has_header = lambda: cells_as_written(text, delimiter, numbers), body is not rows
    return Table(str(path), names, cells, lambda index: f"row {body[index][0]}", written, has_header, delimiter)


def _without_blank_lines(rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Returns the rows from the first that is not blank. Where it has one cell, a blank line is a missing cell."""
    blank: tuple[list[str], ...] = ([], [""])
    start = next((index for index, (_, row) in enumerate(rows) if row not in blank), 0)
    if len(rows[start][1]) == 1:
        return [(number, row or [""]) for number, row in rows[start:]]
    return [(number, row) for number, row in rows if row not in blank]


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        row, begin = data.count(b"\n", 0, error.start) + 1, data.rfind(b"\n", 0, error.start) + 1
        cell = data[max(begin, error.start - 10) : error.start + 10].splitlines()[0].decode("latin-1")
        rule = f"{path}, row {row}: must be in UTF-8, got the byte 0x{data[error.start]:02x}"
        raise InputError(f"{rule}, in Latin-1 {shown(cell)}; save the file as UTF-8") from error


def _header(path: Path, rows: list[tuple[int, list[str]]], header: bool | None) -> tuple[list[str], list]:
    """Returns the names of the columns, x1, x2, ... if the file has none, and the rows below them."""
    number, first = rows[0]
    if header is None:
        header = not all(word(cell) is None or _is_number(cell) for cell in first)
    if not header:
        return [f"x{j}" for j in range(1, len(first) + 1)], rows
    names = [name.strip() for name in first]
    for j, name in enumerate(names, 1):
        unnamed = f"{path}, row {number}: column {j} has no name"
        require(bool(name), f"{unnamed}; name it, or leave it out (pandas: to_csv(..., index=False))")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}, row {number}: the name {shown(twice)} must be unique, and is there twice or more")
    return names, rows[1:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_parquet(path: Path, needs: Callable[[str], bool] = _every, *, exact: bool = False) -> Table:
    """Reads a parquet file with pandas; see `table_of_frame`.

    Args:
        path: The file.
        needs: As there.
        exact: Whether all that the file has is a column as it is: else pandas makes whole numbers beside missing cells
            numbers of float64, and an index with a name is none.
    """
    try:
        import pandas
    except ImportError as error:
        raise InputError(f"{path} needs pandas and pyarrow: pip install 'pyrovae[tables]'") from error
    try:
        frame = pandas.read_parquet(path, **({"dtype_backend": "numpy_nullable"} if exact else {}))
        frame = frame.reset_index() if exact and any(frame.index.names) else frame
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: pip install 'pyrovae[tables]'") from error
    except (OSError, ValueError) as error:  # pyarrow's errors are of these types
        raise InputError(f"{path} is not a readable parquet file ({first_line(error)})") from error
    return table_of_frame(frame, str(path), needs)


def table_of_frame(frame: Any, source: str, needs: Callable[[str], bool] = _every) -> Table:
    """Returns the table of a frame of pandas or polars. Text, categories and truth values are texts in it.

    Args:
        frame: The frame.
        source: Names it in errors.
        needs: Says by its name whether a column is needed. Others may hold anything.

    Raises:
        InputError: If there are no columns, a name is there twice, or a column has neither numbers nor texts.
    """
    names = [str(name) for name in frame.columns]
    require(len(names) > 0, f"{source} has no columns")
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    require(not twice, f"{source}: the name {shown(min(twice, default=''))} must be unique, and is there twice or more")
    by_name = dict(zip(names, frame.columns, strict=True))
    cells = {name: _cells_of(frame[column], source, name) for name, column in by_name.items() if needs(name)}
    header = [quoted(name) for name in names]
    return Table(source, names, cells, lambda index: f"index {index}", lambda: [header, *values_as_written(frame)])


def _cells_of(series: Any, source: str, name: str) -> Cells:
    values = series.to_numpy()
    if values.dtype.kind in "OUT":  # texts, or numbers with missing cells among them
        return ["" if value is None else str(value) for value in values.tolist()]
    fits = values.dtype.kind in "biuf"
    require(fits, f"{source}, column {shown(name)}: must hold numbers or texts, got {values.dtype}; {without(name)}")
    return values.astype(np.float64)


def table_of_array(x: np.ndarray, source: str) -> Table:
    """Returns the table of an array `(num, columns)` of numbers; its columns are x1, x2, ..."""
    values = x.astype(np.float64)
    cells = {f"x{j + 1}": np.ascontiguousarray(values[:, j]) for j in range(values.shape[1])}
    return Table(source, list(cells), cells, lambda index: f"index {index}")
