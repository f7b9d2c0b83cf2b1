"""Files that are there whole or not at all, folders that can be written to, and locks that die with their process."""

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
    fcntl = None

_HELD: set[Path] = set()  # by this process, which the system's locks do not keep out


def check_folder(folder: Path, name: str) -> None:
    """`folder` is one, or can be made, and can be written to."""
    try:
        with tempfile.TemporaryFile(dir=existing_part(folder, name)):  # os.access says yes of what no one can write to
            pass
    except OSError as error:
        raise InputError(f"{name} must be writable, and {folder} is not ({error.strerror})") from error


def existing_part(folder: Path, name: str) -> Path:
    """What there is of `folder`: itself, or the parent that it can be made in."""
    try:
        require(not folder.exists() or folder.is_dir(), f"{name} must be a folder, got the file {folder}")
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:  # the name is too long, for one
        raise InputError(f"{name} must be a folder, and {folder} is not ({error.strerror})") from error
    require(existing.is_dir(), f"{name} must be a folder, and {existing} is a file")
    return existing


def atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`write`s a file beside `path` and puts it in its place."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    atomically(path, lambda beside: beside.write_text(text))


class Taken(InputError):
    """Another process, or another training of this one, has the folder."""


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Within the block no one else holds the file `lock`, which is made. Raises `Taken` where someone does already."""
    place, taken = lock.resolve(), Taken(f"another training is writing to {lock.parent}")
    if place in _HELD:
        raise taken
    lock.parent.mkdir(parents=True, exist_ok=True)
    _HELD.add(place)
    try:
        with open(lock, "w") as file:
            if fcntl is not None:
                try:  # the system lets go of it if the process dies, and its children do not have it
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EAGAIN):
                        raise taken from error
            yield
    finally:
        _HELD.discard(place)


def flush_names(folder: Path) -> None:
    """Renamings are on the disk, too."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_unwritten(folder: Path, overwrite: bool, files: Sequence[str]) -> None:
    """Refuses a folder that holds one of `files`, unless they may be overwritten."""
    written = [name for name in files if (folder / name).exists()]
    require(overwrite or not written, f"{folder / written[0] if written else ''} exists; say --overwrite to replace it")
