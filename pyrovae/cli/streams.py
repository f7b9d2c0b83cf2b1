"""The standard streams of a program, on which printing cannot fail in the middle of the work."""

import io
import os
import select
import sys
from typing import Any


class _Stream(io.FileIO):
    """A standard stream. The first error in writing is kept in `error`, and what follows is not written."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            while self.error is None and (written := super().write(data)) is None:
                select.select((), (self,), ())  # it does not block, and is full for the moment
        except OSError as error:
            self.error = error
        return len(data) if self.error is not None else written


def protect_streams() -> None:
    """Lets the program print any text, and to streams that are closed or full or whose reader is gone.

    Characters that the encoding of a stream lacks are printed as \\udcff. A stream that the caller has replaced stays.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # it is closed: the next file to be opened would take its number, and get what is printed
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is getattr(sys, f"__{name}__"):
            buffer = io.BufferedWriter(_Stream(descriptor, "w", closefd=False))
            by_line = name == "stderr" or buffer.isatty() or getattr(old, "write_through", False)  # by python -u
            new = io.TextIOWrapper(buffer, getattr(old, "encoding", "utf-8"), "backslashreplace", None, by_line)
            setattr(sys, name, new)


def output_error() -> OSError | None:
    """Returns the first error in writing to standard output, once all that was printed is written."""
    stream = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(stream, _Stream):
        return None
    sys.stdout.flush()
    return stream.error
