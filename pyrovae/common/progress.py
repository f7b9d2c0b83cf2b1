"""The progress of everything that takes long: a bar on a terminal, and lines in the log of a command."""

import io
import sys
import time
from contextlib import suppress
from threading import RLock
from typing import Any, ClassVar
from weakref import WeakSet

from tqdm.auto import notebook_tqdm, tqdm
from tqdm.std import tqdm as plain_tqdm

from pyrovae.common.lines import has_progress_in_lines
from pyrovae.common.workers import Workers

SECONDS_BETWEEN_LINES = 10.0
LINE = "{desc}: {unit} {n_fmt} of {total_fmt}, {elapsed}{postfix}"


def progress_bar(progress: bool | None, total: int, desc: str, unit: str) -> tqdm:
    """Returns a bar that counts to `total` and is cleared at its end.

    Args:
        progress: True shows the bar, False hides it, and None shows it on a terminal only, or lines in its place (see
            `progress_in_lines`). If several processes work together, the first alone shows one.
        total: The number of units of work.
        desc: What is done, as the text before the bar.
        unit: The name of one unit of work.
    """
    disable, file = hides_progress(progress), StandardError()
    has_no_place = disable is None and not file.isatty()
    if has_no_place and has_progress_in_lines():
        return _Lines(total=total, unit=unit, desc=desc)
    if disable or (has_no_place and notebook_tqdm is plain_tqdm):
        return _Alone(total=total, unit=unit, desc=desc, disable=True)
    return tqdm(total=total, unit=unit, desc=desc, disable=disable, leave=False, file=file, dynamic_ncols=True)


def hides_progress(progress: bool | None) -> bool | None:
    """Returns tqdm's `disable`, which with None shows a bar on a terminal only (see `progress_bar`)."""
    if not Workers().is_first:
        return True
    return None if progress is None else not progress


class _Alone(plain_tqdm):
    """A bar that shares nothing with others.

    All forks of a process share the lock of tqdm's bars: one that is killed while it holds the lock stops the others
    for good.
    """

    _lock = RLock()
    _instances: ClassVar[WeakSet[plain_tqdm]] = WeakSet()
    monitor_interval = 0  # no thread, which would be in the way of a fork


class _Lines(_Alone):
    """A bar that prints itself as a line of standard error, at most every `SECONDS_BETWEEN_LINES`."""

    def __init__(self, **settings: Any) -> None:
        self._shown = time.monotonic()
        super().__init__(**settings, bar_format=LINE, leave=False, miniters=1, mininterval=0, file=io.StringIO())

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = time.monotonic()
        if msg is None and now - self._shown >= SECONDS_BETWEEN_LINES:
            print(self, file=StandardError(), flush=True)
            self._shown = now


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
