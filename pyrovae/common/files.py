"""The one place that writes to the disk: files and sets of files that are there whole or not at all.

No symbolic link is followed by what is written, so that nobody's link in a shared folder can have another file
overwritten, and all text is UTF-8, whatever the locale.
"""

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pyrovae.common.errors import InputError, require

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
        require(not folder.exists() or folder.is_dir(), f"{name} must be a folder, got the file {folder}")
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:  # the name may be too long, for example
        raise InputError(f"{name} must be a folder, and {folder} is not ({error.strerror})") from error
    require(existing.is_dir(), f"{name} must be a folder, and {existing} is a file")
    return existing


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
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def append_text(path: Path, text: str) -> None:
    """Appends text to a file, which is made if it is not there."""
    with _naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o666)
        with os.fdopen(descriptor, "ab") as file:
            file.write(text.encode(**_UTF_8))


@contextmanager
def written_together(folder: Path, name: str) -> Iterator[Path]:
    """Puts several files into `folder` at once: all of them or, if the block raises or the process dies, none.

    The block writes them into the new folder that it is given. Once all are on the disk, that folder is renamed, which
    decides that they replace what was there, and then they are moved. If the process dies in between, the next call
    moves the rest, or a call of `finish_writing`.

    Args:
        folder: Where the files are wanted; it is made if it is not there.
        name: A name for the files as a set. Two sets of one name must not be written at the same time.

    Raises:
        OSError: A file cannot be written; it names the file that was wanted. What was there before stays.
    """
    finish_writing(folder)
    beside, complete = folder / f".{name}.tmp", folder / f".{name}.complete"
    folder.mkdir(parents=True, exist_ok=True)
    _remove(beside)
    beside.mkdir()
    try:
        yield beside
        for path in _files_in(beside):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.rename(beside, complete)
        flush_renames(folder)
    except OSError as error:
        if error.filename is not None:  # the caller knows the file by its place in `folder`
            error.filename = str(error.filename).replace(str(beside), str(folder))
        raise
    finally:
        _remove(beside)
    finish_writing(folder)


def finish_writing(folder: Path) -> None:
    """Moves the files of `written_together` to their places, if a process died before it had moved them all."""
    for complete in folder.glob(".*.complete") if folder.is_dir() else ():
        if complete.is_symlink() or not complete.is_dir():
            continue
        for path in _files_in(complete):
            place = folder / path.relative_to(complete)
            _make_folders(folder, place.parent)
            os.replace(path, place)
        flush_renames(folder)
        _remove(complete)


def flush_renames(folder: Path) -> None:
    """Makes sure that the renaming of files in `folder` has reached the disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_unwritten(folder: Path, overwrite: bool, files: Sequence[str]) -> None:
    """Raises `InputError` if `folder` holds one of `files`, unless they may be overwritten."""
    finish_writing(folder)
    written = [name for name in files if os.path.lexists(folder / name)]
    require(overwrite or not written, f"{folder / written[0] if written else ''} exists; say --overwrite to replace it")


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _make_folders(folder: Path, inner: Path) -> None:
    """Makes the folders from `folder` to `inner`, none of which may be a link to somewhere else."""
    for one in reversed([inner, *inner.parents][: len(inner.relative_to(folder).parts)]):
        if one.is_symlink():
            raise OSError(errno.ELOOP, "Is a symbolic link, which is not followed", str(one))
        one.mkdir(exist_ok=True)


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives the system's errors the name of the file that was to be written, which errors of `write` do not have."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise
