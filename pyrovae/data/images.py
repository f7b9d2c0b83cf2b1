"""Images of 256 levels made into a data set, with the pixels that were asked for."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pyrovae.common import derived_seed, require_choice
from pyrovae.data.dataset import SPLITS, Dataset
from pyrovae.data.pixels import BINARIZE, binarize_grey, dequantize_grey
from pyrovae.data.splits import split_fields


def image_dataset(
    name: str,
    levels: Tensor,
    y: Tensor | None,
    rows: Mapping[str, np.ndarray | slice],
    binarize: str,
    seed: int,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Returns the data set of images, with pixels that the seed fixes, or that are drawn anew for every batch.

    Args:
        name: The name of the data set.
        levels: All images, `(num, channels, height, width)`, `uint8`.
        y: Their labels, or None.
        rows: The rows of each split.
        binarize: What becomes of the levels, one of `BINARIZE`.
        seed: Fixes the pixels that are drawn once.
        classes: The names of the labels.
    """
    require_choice("binarize", binarize, BINARIZE)
    parts = split_fields(levels, y, rows)
    train_grey = parts["train_x"] if binarize in ("dynamic", "dequantise") else None
    draw = dequantize_grey if binarize == "dequantise" else binarize_grey
    for split in SPLITS:
        grey = parts[f"{split}_x"]
        parts[f"{split}_x"] = grey.float() / 255 if binarize == "none" else draw(grey, split_generator(seed, split))
    kind = {"none": "grey", "dequantise": "dequantised"}.get(binarize, "binary")
    return Dataset(name, kind, **parts, train_grey=train_grey, classes=classes)


def as_images(array: np.ndarray) -> Tensor | None:
    """Returns an array of images as a tensor `(num, channels, height, width)`, `uint8`, or None if it holds none.

    Images are bytes, `(num, height, width)` of grey levels, or with 1 or 3 channels in the second or in the last place.
    """
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        return None
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
        array = np.moveaxis(array, 3, 1)
    return torch.from_numpy(np.ascontiguousarray(array)) if array.shape[1] in (1, 3) else None


def split_generator(seed: int, split: str) -> torch.Generator:
    """Returns the random numbers of a split, which do not depend on the other splits."""
    return torch.Generator().manual_seed(derived_seed(seed, split))
