"""The one place that writes to the disk: files that are there whole or not at all.

No symbolic link in the place of a file is followed by what is written, nor another user's in that of a folder, so that
nobody's link in a shared folder can have another file overwritten. All text is UTF-8, whatever the locale.
"""

import errno
import io
import json
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pyrovae.common.checks import plain_number
from pyrovae.common.errors import InputError, require, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 120  # of figures
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a FIFO without a writer would make `open` wait for ever
# Characters that UTF-8 does not have (a path with a byte that is no UTF-8 gives some) become \udcff in the file.
_UTF_8 = {"encoding": "utf-8", "errors": "backslashreplace"}


def check_folder(folder: Path, name: str) -> None:
    """Raises `InputError` unless `folder` is a folder, or can be made, and can be written to."""
    try:
        with tempfile.TemporaryFile(dir=existing_part(folder, name)):  # os.access can be wrong
            pass
    except OSError as error:
        raise InputError(f"{name} must be writable, and {folder} is not ({error.strerror})") from error


def existing_part(folder: Path, name: str) -> Path:
    """Returns the part of the path `folder` that exists: the folder itself, or the parent that it can be made in."""
    try:
        with suppress(OSError):
            os.lstat(folder)
    except ValueError as error:  # a null character, or one that the system's encoding lacks
        raise InputError(f"{name} must be a folder, and {shown(str(folder))} cannot be one ({error})") from error
    try:
        require(not folder.exists() or folder.is_dir(), f"{name} must be a folder, got the file {folder}")
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:  # the name may be too long, for example
        raise InputError(f"{name} must be a folder, and {folder} is not ({error.strerror})") from error
    require(existing.is_dir(), f"{name} must be a folder, and {existing} is a file")
    return existing


def check_link(folder: Path) -> None:
    """Raises `InputError` if a symbolic link of another user's is in the place of `folder`. One's own is followed."""
    if folder.is_symlink():
        is_own = hasattr(os, "geteuid") and folder.lstat().st_uid == os.geteuid()
        require(is_own, f"{folder} must be a folder, and is a symbolic link of another user's: remove it")


def is_there(path: Path) -> bool:
    """Returns whether `path` is a file or a folder."""
    try:
        return path.exists()
    except OSError:  # the name is too long, for example
        return False


def require_there(path: Path) -> None:
    """Raises `InputError` unless `path` is a file or a folder."""
    if not is_there(path):
        where = "" if path.is_absolute() else f" in {os.getcwd()}"
        raise InputError(f"{shown(str(path))} is no file or folder{where}")


# Reading --------------------------------------------------------------------------------------------------------------


def open_plain(path: Path) -> BinaryIO:
    """Opens a file to read its bytes.

    Raises:
        OSError: The file cannot be opened, or is something else than a plain file: a FIFO or a device might never end.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a plain file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8. Raises OSError or ValueError if there is none."""
    with open_plain(path) as file:
        return file.read().decode("utf-8")


# Writing --------------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Has `write` fill a new file beside `path`, and then puts that file in the place of `path`.

    Args:
        path: The file to write or to replace. A link in its place is replaced, and not the file that it points at.
        write: Writes into the open file that it is given, from which it may read, too.

    Raises:
        OSError: The file cannot be written, and names `path`; what was there before stays.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with _naming(path):
        temporary.unlink(missing_ok=True)  # of a process that was killed
        file = os.fdopen(os.open(temporary, _NEW_FILE, 0o666), "w+b")
        try:
            with file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                ours = os.fstat(file.fileno())
            if not os.path.samestat(ours, os.lstat(temporary)):
                raise OSError(errno.EBUSY, "Another process is writing it")
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes a file of text, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode(**_UTF_8)))


def write_json(path: Path, content: object) -> None:
    """Writes a file of JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=plain_number) + "\n")


def append_text(path: Path, text: str) -> None:
    """Appends text to a file, which is made if it is not there."""
    with _naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o666)
        with os.fdopen(descriptor, "ab") as file:
            file.write(text.encode(**_UTF_8))


def write_figure(path: Path, figure: "Figure") -> bytes:
    """Writes a figure as PNG, whole or not at all, and returns the content of the file.

    Characters that its font lacks are drawn as boxes.
    """
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
    write_atomically(path, lambda file: file.write(png.getbuffer()))
    return png.getvalue()


def flush_renames(folder: Path) -> None:
    """Makes sure that the renaming of files in `folder` has reached the disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives the system's errors the name of the file that was to be written, which errors of `write` do not have."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise
