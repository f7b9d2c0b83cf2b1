"""Files of tensors and plain values, which run no code when they are read."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pyrovae.common.errors import require
from pyrovae.common.files import open_plain, write_atomically


def save_tensors(path: Path, content: object) -> None:
    """Writes tensors and plain values, whole or not at all."""

    def write(file: BinaryIO) -> None:
        with disk_errors():
            torch.save(content, file)

    write_atomically(path, write)


def load_tensors(source: Path | BinaryIO) -> Any:
    """Returns the tensors, on the CPU, and the plain values that `torch.save` wrote.

    Raises:
        InputError: The file is no archive of torch, one that would take more memory than it has bytes, or one whose
            bytes have changed.
        Exception: Anything else that `torch.load` raises at a damaged file.
    """
    if isinstance(source, Path):
        with open_plain(source) as file:
            return load_tensors(file)
    size = source.seek(0, 2)
    source.seek(0)
    try:
        archive = zipfile.ZipFile(source)
        entries = archive.infolist()
    except zipfile.BadZipFile:
        entries = []
    require(len(entries) > 0, "it holds no tensors that torch.save wrote")
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    require(stored and sum(entry.file_size for entry in entries) <= size, "it is compressed, or longer than its file")
    # `torch.load` does not look at the checksums that `torch.save` writes: with another bit it returns other numbers.
    require(archive.testzip() is None, "its bytes are not those that were written")
    source.seek(0)
    return torch.load(source, map_location="cpu", weights_only=True)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raises the system's error where torch's writer raises a RuntimeError because of it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
