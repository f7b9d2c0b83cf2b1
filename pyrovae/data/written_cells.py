"""Cells as a file has them, letter by letter: what a completed table writes where a cell was there."""

import csv
import io
import re
from collections.abc import Collection
from typing import Any

SPECIAL = re.compile(r'[",;\t\r\n]|^ | $')  # what a cell must be quoted for, whatever stands between two cells
MISSING = ("nan", "NaT", "<NA>")  # as frames print their missing values


def cells_as_written(text: str, delimiter: str, numbers: Collection[int]) -> list[list[str]]:
    """Returns the rows of these numbers, from 1, as the pieces of a text that their cells are, quotes and blanks too.

    Args:
        text: That of a file which `csv` has read.
        delimiter: What stands between two cells.
        numbers: The numbers of the rows.
    """
    lines = io.StringIO(text, newline="").readlines()
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)  # which knows where a row ends
    cell = re.compile(rf'(?:^|{delimiter})( *"(?:[^"]|"")*"|[^{delimiter}]*)')
    wanted, rows, start = set(numbers), [], 0
    for number, _ in enumerate(reader, 1):
        if number in wanted:
            rows.append(cell.findall("".join(lines[start : reader.line_num]).rstrip("\r\n")))
        start = reader.line_num
    return rows


def values_as_written(frame: Any) -> list[list[str]]:
    """Returns the rows of a frame of pandas as texts for the cells of a file, empty where a value is missing."""
    columns = [[_value_as_written(value) for value in _values(frame[name])] for name in frame.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def _values(series: Any) -> Any:
    """Returns values as they are: float32 not as float64, and whole numbers not as float64 beside missing ones."""
    return series.to_numpy() if series.dtype.kind == "f" else series.to_numpy(dtype=object)


def _value_as_written(value: object) -> str:
    text = "" if value is None else str(value)
    return "" if text in MISSING and not isinstance(value, str) else quoted(text)


def quoted(text: str) -> str:
    """Returns a text for a cell, in quotes if it needs them."""
    return '"' + text.replace('"', '""') + '"' if SPECIAL.search(text) else text


def requoted(cell: str) -> str:
    """Returns a cell of a file for one with something else between two cells."""
    return cell if cell.lstrip(" ").startswith('"') else quoted(cell)
