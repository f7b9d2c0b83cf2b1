"""Columns of a table: what each holds, how its cells become numbers, and which kind it seems to be."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from tabulate import tabulate

from pyrovae.common import InputError, if_given, require, require_choice, require_number, require_text, setting, shown

KINDS = ("continuous", "positive", "unit", "count", "binary", "category")
MISSING_CELLS = frozenset(("", "na", "n/a", "nan", "null", "<na>", "#n/a", "?"))  # in lower case
DATE = re.compile(r"([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2,4})([T ]|$)")
DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
FEWEST_ROWS = 20  # in fewer the values of any column may be a range
MOST_SHOWN = 40
MOST_EXACT = 2.0**53  # from here on float64 makes one of several whole numbers
MOST_GUESSED_CATEGORIES = 20  # or a tenth of the rows, if that is more: names and keys are no categories

Cells: TypeAlias = np.ndarray | list[str]  # numbers in float64, NaN where a cell is missing; or the texts of a file
Place = Callable[[int | None], str]  # names the file, the row of this index, unless it is None, and the column


@dataclass(frozen=True)
class Column:
    """Says what a column of a table holds, and how its cells became numbers.

    In x a continuous column is (cell - `mean`) / `sd` if it is standardised. Otherwise it is the cell itself, as are
    positive numbers, numbers between 0 and 1 and counts. A binary column is 0 or 1, and a category is its index in
    `categories`.

    Args:
        name: The name in the header of the file.
        kind: One of continuous, positive (above 0), unit (between 0 and 1), count (whole, 0 or more), binary, category.
        mean: The mean that was subtracted, in the file's units. None if the column is not standardised.
        sd: The standard deviation that it was divided by, in the file's units. None if it is not standardised.
        categories: The file's own names of the values 0, 1, 2, ... of a category. Also of a binary column, unless the
            file has 0 and 1.

    Raises:
        InputError: If the kind is unknown, or another field is of the wrong type.

    Example:
        >>> pv.Column("smoker", "binary", categories=("no", "yes"))
        Column(name='smoker', kind='binary', mean=None, sd=None, categories=('no', 'yes'))
    """

    name: str
    kind: str
    mean: float | None = None
    sd: float | None = None
    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_text("name", self.name, "the name of a column")
        require_choice("kind", self.kind, KINDS)
        if_given(require_number, "mean", self.mean)
        if_given(require_number, "sd", self.sd, 0)
        are_texts = isinstance(self.categories, tuple) and all(isinstance(one, str) for one in self.categories)
        require(are_texts, f"categories must be a tuple of texts, got {shown(self.categories)}")


class ColumnTable(tuple[Column, ...]):
    """The columns of a table as a tuple, which prints as a table."""

    numbering_rows: frozenset[str] = frozenset()
    """The names of those that number the rows, as an identifier does."""

    def __repr__(self) -> str:
        notes = {name: f"numbers the rows: an identifier? {without(name)}" for name in self.numbering_rows}
        shown = [(one.name[:30], one.kind, notes.get(one.name, _in_x(one))) for one in self[:MOST_SHOWN]]
        more = f"\n... and {len(self) - MOST_SHOWN:,} more" if len(self) > MOST_SHOWN else ""
        return tabulate(shown, ("column", "kind", "in x"), disable_numparse=True) + more if self else "()"


def named_cells(column: Column, values: np.ndarray) -> Any:
    """Returns values of a column by the file's names for them, None where a cell is missing; without names as they are.

    Raises `InputError` if the column has names, and a value is the code of none.
    """
    if not column.categories:
        return values
    known, last = np.isfinite(values), len(column.categories) - 1
    bad = ~np.isnan(values) & ~(known & (values == np.round(values)) & (values >= 0) & (values <= last))
    if bad.any():
        rule = f"column {shown(column.name)} must hold codes 0 ... {last} of its names"
        raise InputError(f"{rule}, got {values[bad][0]:.4g}, as a mean of codes is")
    return [column.categories[int(value)] if there else None for value, there in zip(values, known, strict=True)]


def _in_x(column: Column) -> str:
    """Returns in a few words how the cells of a column stand in x."""
    if column.sd is not None:
        mean = column.mean or 0.0
        return f"(cell {'-' if mean >= 0 else '+'} {abs(mean):.4g}) / {column.sd:.4g}"
    some = ", ".join(f"{name[:15]}: {index}" for index, name in enumerate(column.categories[:4]))
    return some + (", ..." if len(column.categories) > 4 else "")


def column_of(name: str, cells: Cells, kind: str | None, place: Place) -> tuple[Column, np.ndarray]:
    """Returns a column, which is not standardised, and its values in float64, NaN where a cell is missing.

    Args:
        name: The column's name.
        cells: Its cells.
        kind: One of `KINDS`, or None to guess. Texts are a category, or binary if there are two of them. Numbers are
            binary if all are 0 or 1, a count if all are whole and none is negative, and else continuous.
        place: Names the place of a cell in errors.

    Raises:
        InputError: If a cell does not fit the kind; it names the file, the row, the column and the cell.
    """
    numbers, texts = parsed(cells)
    num_observed = int((~np.isnan(numbers)).sum()) + len(texts)
    require(num_observed > 0, f"{place(None)}: every cell is missing; {without(name)}")
    named = kind in ("binary", "category")
    with_commas = [row for row in texts if not named and DECIMAL_COMMA.fullmatch(cells[row].strip())]
    if 2 * len(with_commas) > len(texts):
        row = with_commas[0]
        raise InputError(f"{place(row)}: must be a number with a decimal point, got {cells[row].strip()[:50]!r}")
    if texts and (named or (kind is None and 2 * len(texts) > num_observed)):
        words = {cell: word(cell) for cell in set(cells)}
        names = sorted({one for one in words.values() if one is not None})
        most = max(MOST_GUESSED_CATEGORIES, num_observed // 10)
        if not named and len(names) > most:
            many = f"{place(None)}: holds {len(names)} different texts"
            if all(map(DATE.match, names)):
                raise InputError(f"{many} that look like dates, as {names[0]!r}; {without(name)}, or make them numbers")
            other = setting("kinds", {name: "category"})
            raise InputError(f"{many}, too many for a category; {without(name)}, or say {other}")
        index: dict[str | None, float] = {one: i for i, one in enumerate(names)}
        return _named(name, kind, names, np.array([index.get(words[cell], np.nan) for cell in cells]), place)
    if texts:
        hint = "" if kind else f"; if the column holds categories, say {setting('kinds', {name: 'category'})}"
        raise InputError(f"{place(texts[0])}: must be a number, got {cells[texts[0]].strip()[:50]!r}{hint}")
    return of_numbers(name, numbers, kind, place, cells)


def word(cell: object) -> str | None:
    """Returns the text of a cell, or None if it is missing."""
    text = str(cell).strip()
    return None if text.lower() in MISSING_CELLS else text


def parsed(cells: Cells) -> tuple[np.ndarray, list[int]]:
    """Returns the cells as numbers, NaN where they are none, and the indices of those that are texts."""
    if isinstance(cells, np.ndarray):
        return cells, []
    with suppress(ValueError):
        if "_" not in "".join(cells):  # which Python takes in a number
            return np.array([float(cell or "nan") for cell in cells]), []
    known = {cell: _number_of(cell) for cell in set(cells)}
    numbers = np.array([np.nan if known[cell] is None else known[cell] for cell in cells])
    return numbers, [index for index, cell in enumerate(cells) if known[cell] is None]


def _number_of(cell: str) -> float | None:
    """Returns the number in a cell, NaN if it is missing, or None if it is a text."""
    text = word(cell)
    with suppress(ValueError):
        return None if text is not None and "_" in text else float("nan" if text is None else text)
    return None


def of_numbers(
    name: str, numbers: np.ndarray, kind: str | None, place: Place, cells: Cells
) -> tuple[Column, np.ndarray]:
    """Returns what `column_of` does of a column whose cells are numbers, NaN where one is missing."""
    are_names = kind in ("category", "binary")
    observed = ~np.isnan(numbers)
    found = numbers[observed]

    def check(good: np.ndarray, rule: str) -> None:
        if not good.all():
            index = int(np.flatnonzero(observed)[np.flatnonzero(~good)[0]])
            raise InputError(f"{place(index)}: {rule}, got {as_text(numbers[index])}")

    check(np.isfinite(found), "must be finite")
    if kind is None:
        whole = bool(((found == np.floor(found)) & (found >= 0)).all())
        kind = "continuous" if not whole else "binary" if bool((found <= 1).all()) else "count"
    rules = {
        "positive": (found > 0, "must be above 0 as a positive number"),
        "unit": ((found > 0) & (found < 1), "must lie between 0 and 1 (both excluded)"),
        "count": ((found == np.floor(found)) & (found >= 0), "must be a whole number of 0 or more as a count"),
    }
    if kind in rules:
        check(*rules[kind])
    if are_names:
        codes = {cell: _code(cell) for cell in (set(cells) if isinstance(cells, list) else np.unique(found))}
        names = sorted({code for code in codes.values() if code}, key=lambda code: (float(code), code))
        if kind == "category" or not set(names) <= {"0", "1"}:
            check(np.abs(found) < MOST_EXACT, "must lie between -2^53 and 2^53 to be told from others as a category")
            index = {code: float(i) for i, code in enumerate(names)}
            return _named(
                name, kind, names, np.array([index.get(codes.get(cell, ""), np.nan) for cell in cells]), place
            )
    return Column(name, kind), numbers


def _code(cell: float | str) -> str:
    """Returns what a number is called as a category: 02134 in a file is not 2134, but 1.0 is 1; "" if it is missing."""
    text = word(cell) if isinstance(cell, str) else as_text(cell)
    if text is None:
        return ""
    return text if text.isascii() and text.isdigit() else as_text(float(text))


def _named(
    name: str, kind: str | None, names: list[str], values: np.ndarray, place: Place
) -> tuple[Column, np.ndarray]:
    """Returns the column of values that have names."""
    kind = kind or ("binary" if len(names) == 2 else "category")
    most, rule = (2, "two values as binary") if kind == "binary" else (len(names), "two values or more as a category")
    shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
    require(2 <= len(names) <= most, f"{place(None)}: must have {rule}, got {shown}")
    return Column(name, kind, categories=tuple(names)), values


def numbers_the_rows(column: Column, values: np.ndarray) -> bool:
    """Returns True if a column's values, as x has them, are all whole numbers of a range, each once: an identifier?"""
    if column.kind not in ("count", "continuous"):
        return False
    x, sd = values[~np.isnan(values)].astype(np.float64), column.sd or 1.0
    if len(x) < FEWEST_ROWS or abs((x.max() - x.min()) * sd + 1 - len(x)) > 0.5:
        return False
    found = x * sd + (column.mean or 0.0)
    rounding = 4 * np.finfo(values.dtype).eps * np.abs(x).max() * sd if column.sd else 0.0
    whole = np.round(found)
    are_whole = (np.abs(found - whole) <= rounding + 4 * np.spacing(np.abs(whole).max())).all()
    return bool(are_whole and whole.min() >= 0 and len(np.unique(whole)) == len(whole))


def without(name: str) -> str:
    """Returns how a message says that a column can be left out."""
    return f"leave it out with {setting('exclude', [name])}"


def as_text(value: float) -> str:
    """Returns a number as a file has it, a whole one without a point."""
    return str(int(value)) if float(value).is_integer() else str(float(value))


def classes_of(cells: Cells, place: Place) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes in a column of labels, in order, and the index of each label among them.

    Raises:
        InputError: If a label is missing, or a number that is not whole.
    """
    numbers, texts = parsed(cells)
    absent = np.isnan(numbers)
    absent[texts] = False
    if absent.any():
        raise InputError(f"{place(int(np.flatnonzero(absent)[0]))}: a label must not be missing")
    if texts:
        words = [str(word(cell)) for cell in cells]
        names, index = np.unique(words, return_inverse=True)
        return tuple(map(str, names)), index
    whole = np.isfinite(numbers) & (numbers == np.floor(numbers))
    if not whole.all():
        bad = int(np.flatnonzero(~whole)[0])
        raise InputError(f"{place(bad)}: a label must be a whole number or a text, got {as_text(numbers[bad])}")
    inexact = np.abs(numbers) >= MOST_EXACT
    if inexact.any():
        bad = int(np.flatnonzero(inexact)[0])
        rule = "a label must lie between -2^53 and 2^53 to be told from others, or be a text"
        raise InputError(f"{place(bad)}: {rule}, got {as_text(numbers[bad])}")
    values, index = np.unique(numbers, return_inverse=True)
    return tuple(map(as_text, values)), index
