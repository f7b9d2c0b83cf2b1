"""Whether progress is told in lines. Beside `progress.py`, so that a command can say so before torch is imported."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_in_lines = ContextVar("progress in lines", default=False)


@contextmanager
def progress_in_lines() -> Iterator[None]:
    """Within the block, where there is no terminal, what would be a bar is a line of standard error now and then."""
    token = _in_lines.set(True)
    try:
        yield
    finally:
        _in_lines.reset(token)


def has_progress_in_lines() -> bool:
    """Returns whether a block of `progress_in_lines` has been entered."""
    return _in_lines.get()
