"""Files that are written whole or not at all, folders that can be written to, and locks that end with their process."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyrovae.common.errors import InputError, require

try:
    import fcntl
except ImportError:  # not a posix system
    fcntl = None  # type: ignore[assignment]

_LOCKED: set[Path] = set()  # by this process, since the system's locks do not stop a process from locking twice


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a temporary file beside `path`, and then puts that file in the place of `path`."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file of text, whole or not at all."""
    write_atomically(path, lambda beside: beside.write_text(text))


class FolderInUse(InputError):
    """Another process, or another training in this process, is writing to the folder."""


@contextmanager
def exclusive_lock(lock: Path) -> Iterator[None]:
    """Within the block no one else has the lock on the file `lock`, which is made.

    Raises `FolderInUse` if someone else has it.
    """
    place, in_use = lock.resolve(), FolderInUse(f"another training is writing to {lock.parent}")
    if place in _LOCKED:
        raise in_use
    lock.parent.mkdir(parents=True, exist_ok=True)
    _LOCKED.add(place)
    try:
        with open(lock, "w") as file:
            if fcntl is not None:
                try:  # the system releases it when the process dies, and child processes do not inherit it
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EAGAIN):
                        raise in_use from error
            yield
    finally:
        _LOCKED.discard(place)


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
    written = [name for name in files if (folder / name).exists()]
    require(overwrite or not written, f"{folder / written[0] if written else ''} exists; say --overwrite to replace it")
