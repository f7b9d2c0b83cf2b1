"""Image sets that torchvision reads: CIFAR-10, SVHN and Omniglot; and the digits of scikit-learn."""

import shutil
import tempfile
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.common import InputError, first_line
from pyrovae.data.image_folders import as_levels

OMNIGLOT_SIZE = 28
# Each class in torchvision.datasets, with its arguments for the training and for the test images.
TORCHVISION_SETS: dict[str, tuple[str, tuple[Mapping[str, Any], Mapping[str, Any]]]] = {
    "cifar10": ("CIFAR10", ({"train": True}, {"train": False})),
    "svhn": ("SVHN", ({"split": "train"}, {"split": "test"})),
    "omniglot": ("Omniglot", ({"background": True}, {"background": False})),
}


def read_torchvision(name: str, root: Path) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
    """Reads an image set, which is downloaded first if it is not in `root`.

    Args:
        name: The set's name, a key of `TORCHVISION_SETS`.
        root: The folder that holds it as torchvision lays it out.

    Returns:
        `[(train images, labels), (test images, labels)]`, as `read_images` does, and the names of the labels.

    Raises:
        InputError: If it can neither be read nor be downloaded.
    """
    kind, both = _reader_of(name)
    try:
        found = [kind(root, **settings) for settings in both]
    except (RuntimeError, OSError) as missing:
        _download(name, root, first_line(missing))
        found = [kind(root, **settings) for settings in both]
    if name == "cifar10":
        parts = [(np.moveaxis(one.data, 3, 1), one.targets) for one in found]
        return [_as_tensors(*part) for part in parts], tuple(found[0].classes)
    if name == "svhn":
        return [_as_tensors(one.data, one.labels) for one in found], tuple(map(str, range(10)))
    names = [one._characters for one in found]
    return [_omniglot(found[0], 0), _omniglot(found[1], len(names[0]))], (*names[0], *names[1])


def _reader_of(name: str) -> tuple[Any, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    from torchvision import datasets  # two seconds of imports that other data do not need

    kind, both = TORCHVISION_SETS[name]
    return getattr(datasets, kind), both


def _as_tensors(images: np.ndarray, labels: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(images)), torch.as_tensor(labels, dtype=torch.int64)


def _omniglot(found: Any, first: int) -> tuple[Tensor, Tensor]:
    """Returns the characters as bright strokes on black, and their numbers, counted from `first`."""
    images, labels = zip(*(found[index] for index in range(len(found))), strict=True)
    levels = torch.stack([255 - as_levels(image, OMNIGLOT_SIZE, "L") for image in images])
    return levels, torch.tensor(labels) + first


def _download(name: str, root: Path, reason: str) -> None:
    # Files go to a temporary folder first, so that a download that breaks off leaves nothing half-written in `root`.
    kind, both = _reader_of(name)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            for settings in both:
                kind(temporary, **settings, download=True)
        except (RuntimeError, OSError, HTTPException) as error:
            hint = "name the folder that holds it with data_root or PYROVAE_DATA"
            said = f"{name} is not in {root}, where torchvision would look for it ({reason})"
            raise InputError(f"{said}, and could not be downloaded; {hint}") from error
        shutil.copytree(temporary, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.tar.gz"))
