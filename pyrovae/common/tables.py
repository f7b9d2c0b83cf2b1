"""Tables as text with numbers aligned to the right, as HTML, and as data frames of pandas."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tabulate import tabulate

from pyrovae.common.errors import InputError


def counted(num: int, thing: str) -> str:
    """Returns a number of things in words: "1 draw", "5,000 draws"."""
    return f"{num:,} {thing}{'' if num == 1 else 's'}"


def right_aligned(lines: Sequence[Sequence], header: Sequence[str], tablefmt: str = "simple", left: int = 1) -> str:
    """Returns a table with all columns aligned to the right, except for the first `left` columns.

    In Markdown ("github") and in HTML a cell holds what it says, as it stands: names of the user's are no markup.
    """
    columns = ("left",) * left + ("right",) * (len(header) - left)
    if tablefmt == "github":
        lines, header = [[_markdown_cell(cell) for cell in line] for line in lines], [*map(_markdown_cell, header)]
    return tabulate(lines, header, tablefmt, disable_numparse=True, colalign=columns)


def without_markup(text: str) -> str:
    """Returns a text as Markdown in which no tag of HTML begins, and no link or image."""
    # A backslash of the text's own, too: before a "<" it would take back the one that is put there.
    return re.sub(r"<(?=[A-Za-z/!?])|(?<=\])\(|\\(?=[!-/:-@[-`{-~]|$)", r"\\\g<0>", text)


def _markdown_cell(value: object) -> str:
    return without_markup(" ".join(str(value).splitlines())).replace("|", r"\|")


def with_lines_below(table: str, text: str) -> str:
    """Returns a table in HTML with the lines of a text below it, as a notebook shows them."""
    return f"{table}<p>{escape(text).replace(chr(10), '<br>')}</p>"


def data_frame(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
    """Returns columns by name, or rows, as a `pandas.DataFrame`. Raises `InputError` if pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise InputError("to_pandas needs pandas: pip install 'pyrovae[tables]'") from error
    return pandas.DataFrame(data)
