"""Finished parts of a long computation, kept in a folder, so that a call that was interrupted goes on from them."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyrovae.common.checked_files import checksum, read_checked, write_checked
from pyrovae.common.checks import plain_number
from pyrovae.common.errors import InputError, require, shown
from pyrovae.common.files import check_folder
from pyrovae.common.locks import exclusive_lock

LOCK, PARTS, SETTINGS = ".lock", "parts", "settings.json"
_DIGEST = re.compile("[0-9a-f]{64}")


class OtherSettings(InputError):
    """The parts in a folder were found with other settings, or by another computation."""


@contextmanager
def kept_parts(folder: Path | None, settings: Mapping[str, object], name: str = "out") -> Iterator["Parts"]:
    """Gives the `Parts` that are kept in a folder, to this process alone.

    Args:
        folder: New, empty, or that of an earlier call with the same settings; None keeps nothing.
        settings: All that decides the numbers of every part, by name, as values that JSON has; data as a digest.
        name: What the caller's user calls the folder.

    Raises:
        OtherSettings: The folder was begun with other settings.
        InputError: The folder holds other files, or another process is using it.
    """
    if folder is None:
        yield Parts(None, {})
        return
    check_for_parts(folder, name)
    with exclusive_lock(folder / LOCK):
        parts = Parts(folder, settings)
        try:
            yield parts
        finally:
            if {path.name for path in (folder / PARTS).glob("*")} <= {SETTINGS}:
                shutil.rmtree(folder / PARTS, ignore_errors=True)  # nothing was kept


def check_for_parts(folder: Path, name: str = "out") -> None:
    """Raises `InputError` unless the folder is new, empty or one that parts are kept in. Call it before work starts."""
    check_folder(folder, name)
    if folder.exists() and not (folder / PARTS / SETTINGS).exists():
        parts = folder / PARTS
        is_ours = parts.is_dir() and not parts.is_symlink()  # an earlier call may have found the disk full after that
        places = [path for path in folder.iterdir() if path != parts or not is_ours]
        places += parts.iterdir() if is_ours else ()
        others = [path for path in places if path.name != LOCK and not path.name.endswith(".tmp")]
        require(not others, f"{name} must be a new or empty folder, and {folder} holds files")


class Parts:
    """Keeps what each part of a computation has found, a file for each, under the settings that decided it.

    Each part must be computed from its key and the settings alone, and from random numbers that are its own, so that it
    does not matter which parts were found before it or in another process.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, object]) -> None:
        self.folder = None if folder is None else folder / PARTS
        self._settings = json.loads(json.dumps(dict(settings), default=plain_number))  # a tuple is a list there
        self._of = checksum(self._settings)
        begun = None if self.folder is None else read_checked(_no_link(self.folder) / SETTINGS)
        for setting in () if begun is None else (*begun, *self._settings):
            was, now = (begun or {}).get(setting), self._settings.get(setting)
            if checksum(was) != checksum(now):
                others = f"{setting} {shown(was)}, and {setting} is now {shown(now)}"
                if any(_DIGEST.fullmatch(str(value)) for value in (was, now)):  # which tells nobody anything
                    others = f"other {setting}"
                raise OtherSettings(f"{folder} was begun with {others}: remove it, or take another folder")

    def get(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the part that is kept under `key`, computing and keeping it if there is none.

        `compute` returns tensors and plain values by name.
        """
        found = self.kept(key)
        if found is None:
            found = compute()
            self.keep(key, found)
        return found

    def kept(self, key: str) -> dict[str, Any] | None:
        """Returns the part that is kept under `key`, or None. Raises `InputError` if its file is damaged."""
        if self.folder is None:
            return None
        path = self._path(key)
        found = read_checked(path)
        if found is None:
            return None
        same = (found.get("key"), found.get("settings")) == (key, self._of)
        require(same, f"{path} is of another part or of other settings: remove it")
        return found["found"]

    def keep(self, key: str, found: Mapping[str, object]) -> None:
        """Keeps a part, in place of an earlier one of the same key. What `folder_of` gave for it is removed."""
        if self.folder is None:
            return
        self._begin()
        write_checked(self._path(key), {"key": key, "settings": self._of, "found": found})
        if self._folder(key).is_dir():
            shutil.rmtree(self._folder(key))

    def folder_of(self, key: str) -> Path:
        """Returns a folder for what the part needs to go on with, such as its checkpoints, until it is kept."""
        self._begin()
        return self._folder(key)

    def _begin(self) -> None:
        assert self.folder is not None
        path = self.folder / SETTINGS
        if not path.exists():
            write_checked(path, self._settings)

    def _path(self, key: str) -> Path:
        return self._folder(key).with_name(f"{_as_file_name(key)}.pt")

    def _folder(self, key: str) -> Path:
        assert self.folder is not None
        return _no_link(self.folder / _as_file_name(key))


def _no_link(path: Path) -> Path:
    require(not path.is_symlink(), f"{path} must be a folder, and is a symbolic link: remove it")
    return path


def _as_file_name(key: str) -> str:
    return re.sub(r"[^\w=-]+", "_", key).strip("_")[:150]
