"""Sets of files, such as a report and its figures, that are replaced together or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyrovae.common.errors import InputError, require
from pyrovae.common.files import check_link, flush_renames, open_plain, write_atomically
from pyrovae.common.locks import exclusive_lock


@contextmanager
def written_together(
    folder: Path, name: str, files: Sequence[str], *, overwrite: bool = True, wait: bool = False
) -> Iterator[Path]:
    """Puts several files into `folder` at once: all of them or, if the block raises or the process dies, none.

    The block writes them into the new folder that it is given. Once all are on the disk, that folder is renamed, which
    decides that they replace what was there, and then they are moved. If the process dies among the moves, the next
    call moves the rest.

    What takes long is best done within the block: what forbids to write the files is found before, and no other process
    writes them meanwhile.

    Args:
        folder: Where the files are wanted; it is made if it is not there.
        name: The name of the set: "evaluation".
        files: All files that the block may write, as paths in `folder`.
        overwrite: Whether they may be there already.
        wait: Wait while another process writes the set, which is for a block that takes no time.

    Raises:
        FolderInUse: Another process writes the set, and `wait` is false.
        InputError: A file is there and `overwrite` is false, or a folder is in the place of a file, or a file or
            another user's link in that of a folder.
        OSError: A file cannot be written; it names the file that was wanted. What was there before stays.
    """
    beside, complete = folder / f".{name}.tmp", folder / f".{name}.complete"
    refusal = f"another process is writing the {name} in"
    with exclusive_lock(folder / f".{name}.lock", wait=wait, refusal=refusal):
        _move(complete, folder)
        _check_places(folder, files, overwrite)
        _remove(beside)
        try:
            beside.mkdir()
            yield beside
            _check_places(folder, [str(path.relative_to(beside)) for path in _files_in(beside)], overwrite)
            for inner in (beside, *(path for path in beside.rglob("*") if path.is_dir())):
                flush_renames(inner)
            os.rename(beside, complete)
            flush_renames(folder)
        except OSError as error:
            if error.filename is not None:  # the caller knows the file by its place in `folder`
                error.filename = str(error.filename).replace(str(beside), str(folder))
            raise
        finally:
            _remove(beside)
        _move(complete, folder)


def _move(complete: Path, folder: Path) -> None:
    """Moves the files of a set that is complete to their places, if it is there."""
    if complete.is_symlink() or not complete.is_dir():
        _remove(complete)
        return
    files = _files_in(complete)
    _check_places(folder, [str(path.relative_to(complete)) for path in files])
    for path in files:
        place = folder / path.relative_to(complete)
        place.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, place)
    for inner in {folder, *(path.parent for path in files)}:
        flush_renames(inner)
    _remove(complete)


def _replace(path: Path, place: Path) -> None:
    try:
        os.replace(path, place)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the user's link leads to a folder on another disk
            raise
        with open_plain(path) as file:
            write_atomically(place, lambda copy: shutil.copyfileobj(file, copy))


def _check_places(folder: Path, files: Sequence[str], overwrite: bool = True) -> None:
    """Raises `InputError` unless the files can be moved to their places in `folder`, through no link of others."""
    for name in files:
        place = folder / name
        for parent in reversed(place.parents[: len(Path(name).parts) - 1]):
            check_link(parent)
            if os.path.lexists(parent) and not parent.is_dir():
                kind = "a symbolic link to none" if parent.is_symlink() else "a file"
                raise InputError(f"{parent} must be a folder, and is {kind}: remove it")
        is_folder = place.is_dir() and not place.is_symlink()
        require(not is_folder, f"{place} must be a file, and is a folder: remove it")
        require(overwrite or not os.path.lexists(place), f"{place} exists; say --overwrite to replace it")


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
