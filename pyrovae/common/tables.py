"""Tables as text, with numbers aligned to the right."""

from collections.abc import Sequence

from tabulate import tabulate


def right_aligned(lines: Sequence[Sequence], header: Sequence[str], tablefmt: str = "simple", left: int = 1) -> str:
    """Returns a table with all columns aligned to the right, except for the first `left` columns."""
    columns = ("left",) * left + ("right",) * (len(header) - left)
    return tabulate(lines, header, tablefmt, disable_numparse=True, colalign=columns)
