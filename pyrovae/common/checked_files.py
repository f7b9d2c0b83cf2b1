"""Files that tell whether they are what was written: each has a checksum of its content, and a format's number."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrovae.common.errors import InputError, require, shown
from pyrovae.common.files import read_text, write_json
from pyrovae.common.tensor_files import load_tensors, save_tensors

FORMAT = 1
_FIELDS = {"format", "sha256", "content"}


def write_checked(path: Path, content: Mapping[str, object]) -> None:
    """Writes tensors and plain values with their checksum, whole or not at all.

    Args:
        path: The file. If its name ends in .json, it is one of JSON, for content without tensors.
        content: Tensors, numbers, texts, truths and None by name, also in dicts, lists and tuples.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write = write_json if path.suffix == ".json" else save_tensors
    write(path, sealed(content))


def read_checked(path: Path) -> dict[str, Any] | None:
    """Returns the content that `write_checked` wrote, or None if there is no such file.

    Raises:
        InputError: The file is cut, was changed after it was written, or is something else than such a file.
    """
    if not os.path.lexists(path):
        return None
    try:
        found = json.loads(read_text(path)) if path.suffix == ".json" else load_tensors(path)
    except Exception as error:  # torch.load has no error of its own: a damaged file may raise anything
        why = str(error) if isinstance(error, InputError) else getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"{path} cannot be read ({why}): remove it") from error
    return unsealed(found, str(path), "remove it")


def sealed(content: Mapping[str, object]) -> dict[str, object]:
    """Returns the content with its checksum and its format."""
    return {"format": FORMAT, "sha256": checksum(content), "content": content}


def unsealed(found: object, where: str, advice: str) -> dict[str, Any]:
    """Returns the content of what `sealed` returned. Raises `InputError` unless it is that, and names `where`."""
    known = isinstance(found, dict) and found.keys() == _FIELDS and type(found["format"]) is int
    require(known, f"{where} was not written by this version of pyrovae, or was changed: {advice}")
    assert isinstance(found, dict)
    require(found["format"] == FORMAT, f"{where} is of format {shown(found['format'])}, not {FORMAT}: {advice}")
    content, said = found["content"], found["sha256"]
    try:
        same = isinstance(content, dict) and isinstance(said, str) and checksum(content) == said
    except Exception:  # values that nobody sealed: sparse tensors, tensors without memory, objects
        same = False
    require(same, f"{where} was changed after it was written: {advice}")
    return content


def checksum(content: object) -> str:
    """Returns a hash of tensors and plain values, of their order, types, shapes and every bit."""
    found = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
            write(f"tensor {value.dtype} {tuple(value.shape)}")
            found.update(flat.numpy().data)
        elif isinstance(value, Mapping):
            write(f"dict {len(value)}")
            for key, one in value.items():
                add(key)
                add(one)
        elif isinstance(value, list | tuple):  # which are the same in JSON
            write(f"list {len(value)}")
            for one in value:
                add(one)
        elif value is None or type(value) in (bool, int, float, str):
            write(f"{type(value).__name__} {value!r}")
        else:
            raise TypeError(f"content must be of tensors and plain values, and holds a {type(value).__name__}")

    def write(text: str) -> None:
        line = text.encode("utf-8", "backslashreplace")
        found.update(f"{len(line)} ".encode() + line)

    add(content)
    return found.hexdigest()
