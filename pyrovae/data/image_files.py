"""Images in IDX files: MNIST and the sets of its form, read from a folder or downloaded to it by torchvision."""

import shutil
import tempfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from torch import Tensor

from pyrovae.common import InputError, require

IDX_SETS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}  # names in torchvision.datasets


def class_names(name: str) -> tuple[str, ...]:
    """Returns the names of a set's labels; `name` is a key of `IDX_SETS`."""
    from torchvision import datasets  # two seconds of imports that other data do not need

    return tuple(getattr(datasets, IDX_SETS[name]).classes)


def read_images(name: str, root: Path) -> list[tuple[Tensor, Tensor]]:
    """Reads an image set, which is downloaded first if a file of it is missing.

    Args:
        name: The set's name, a key of `IDX_SETS`.
        root: The folder that holds the set as torchvision lays it out, in `MNIST/raw` for one.

    Returns:
        `[(train images, labels), (test images, labels)]`; images are `(num, 1, height, width)` `uint8`, labels `(num,)`
        integers.

    Raises:
        InputError: If a file is missing and cannot be downloaded, is not a readable IDX file, or has not one label
            per image.
    """
    from torchvision import datasets  # two seconds of imports that other data do not need
    from torchvision.datasets.mnist import read_image_file, read_label_file

    dataset = getattr(datasets, IDX_SETS[name])
    folder = root / dataset.__name__ / "raw"
    names = [url.removesuffix(".gz") for url, _ in dataset.resources]
    try:
        missing = [name for name in names if not (folder / name).is_file()]
    except OSError as error:  # the name may be too long, for example
        raise InputError(f"data_root must be a folder, got {root} ({error.strerror})") from error
    if missing:
        _download(dataset, root, f"{', '.join(missing)} not found in {folder}")
    splits = []
    for image_name, label_name in (names[:2], names[2:]):
        images, labels = _read(read_image_file, folder / image_name), _read(read_label_file, folder / label_name)
        require(
            len(images) == len(labels) > 0,
            f"{folder / label_name} must hold one label per image of {image_name}, got {len(labels)} for {len(images)}",
        )
        splits.append((images.unsqueeze(1), labels))
    return splits


def _read(reader: Callable[[str], Tensor], path: Path) -> Tensor:
    try:
        return reader(str(path))
    except (AssertionError, KeyError, IndexError, OSError, RuntimeError, TypeError, ValueError) as error:
        detail = str(error).split("\n")[0] or "header and length do not agree"
        raise InputError(f"{path} is not a readable IDX file ({detail})") from error


def _download(dataset: type, root: Path, reason: str) -> None:
    # Files go to a temporary folder first, so that a download that breaks off leaves nothing half-written in `root`.
    with tempfile.TemporaryDirectory() as temporary:
        try:
            dataset(temporary, download=True)
        except (RuntimeError, OSError, HTTPException) as error:
            hint = "name the folder that holds it with data_root or PYROVAE_DATA"
            raise InputError(f"{reason}, and {dataset.__name__} could not be downloaded; {hint}") from error
        raw = Path(temporary) / dataset.__name__ / "raw"
        shutil.copytree(raw, root / dataset.__name__ / "raw", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.gz"))
