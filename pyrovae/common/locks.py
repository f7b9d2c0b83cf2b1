"""Locks on folders, which end with their process."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyrovae.common.errors import InputError

try:
    import fcntl
except ImportError:  # not a posix system
    fcntl = None  # type: ignore[assignment]

_HELD: set[int] = set()  # descriptors
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class FolderInUse(InputError):
    """Another process, or another training in this process, is writing to the folder."""


@contextmanager
def exclusive_lock(
    lock: Path, *, wait: bool = False, refusal: str = "another training is writing to"
) -> Iterator[None]:
    """Within the block no one else has the lock on the file `lock`, which is there for as long.

    The system releases the lock when the process dies. A file that is then left behind locks nothing.

    Args:
        lock: The file, in a folder that is made if it is not there, and removed again if it ends up empty.
        wait: Wait while someone else has the lock.
        refusal: What the error says before the name of the folder.

    Raises:
        FolderInUse: Someone else has the lock, another process or this one, and `wait` is false.
        InputError: `lock` is a link or something else than a plain file, or its folder is none.
    """
    new = [folder for folder in lock.parents if not folder.exists()]
    try:
        descriptor = _locked(lock, wait, refusal)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{lock.parent} must be a folder, and is something else: remove it") from error
    _HELD.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _HELD:  # it is not in a fork that leaves the block
            _HELD.discard(descriptor)
            lock.unlink(missing_ok=True)  # while it is ours: nobody else has locked it
            os.close(descriptor)
            with suppress(OSError):  # it holds something
                for folder in new:
                    folder.rmdir()


def _locked(lock: Path, wait: bool, refusal: str) -> int:
    """Returns the descriptor of the lock's file once it is locked and is still the file in that place."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(lock, _FLAGS, 0o666)
        except FileNotFoundError:
            continue  # whoever had the lock has just removed the folder, which had stayed empty
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputError(f"{lock} must be a plain file, and is a symbolic link: remove it") from error
            if error.errno in (errno.EISDIR, errno.ENXIO):  # ENXIO: a socket
                raise InputError(f"{lock} must be a plain file, and is something else: remove it") from error
            raise
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{lock} must be a plain file, and is something else: remove it")
            _lock(descriptor, wait, f"{refusal} {lock.parent}")
            try:
                if os.path.samestat(found, os.lstat(lock)):
                    return descriptor
            except FileNotFoundError:
                pass  # whoever had the lock removed the file between the opening and the locking
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, wait: bool, refusal: str) -> None:
    if fcntl is None:
        return
    try:
        # Unlike `lockf`, whose lock is lost when the process opens and closes the file once more (a backup does).
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise FolderInUse(refusal) from error


def _close_in_child() -> None:
    """Closes the locks in a fork, such as a process of a DataLoader, which must not keep them when its parent dies."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
