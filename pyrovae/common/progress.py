"""The progress bar of everything that takes long."""

import sys
from contextlib import suppress
from typing import Any

from tqdm.auto import tqdm

from pyrovae.common.workers import Workers


def progress_bar(progress: bool | None, total: int, desc: str | None = None, unit: str = "it") -> tqdm:
    """Returns a bar that counts to `total` and is cleared at its end.

    Args:
        progress: True shows the bar, False hides it, and None shows it on a terminal only. If several processes work
            together, the first alone shows one.
        total: The number of units of work.
        desc: The text before the bar.
        unit: The name of one unit of work.
    """
    disable, file = hides_progress(progress), StandardError()
    return tqdm(total=total, unit=unit, desc=desc, disable=disable, leave=False, file=file, dynamic_ncols=True)


def hides_progress(progress: bool | None) -> bool | None:
    """Returns tqdm's `disable`, which with None shows a bar on a terminal only (see `progress_bar`)."""
    if not Workers().is_first:
        return True
    return None if progress is None else not progress


class StandardError:
    """The standard error of the moment, for what may be lost: writing does nothing if it is closed or full."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def isatty(self) -> bool:
        return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError of a stream that is closed
            _ = sys.stderr and sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            _ = sys.stderr and sys.stderr.flush()
