"""Loads a data set by its name: draws from a toy density, or images with the pixels that were asked for."""

import os
from pathlib import Path

import torch

from pyrovae.common import derived_seed, require, require_choice, require_count, require_seed
from pyrovae.data.dataset import SPLITS, Dataset
from pyrovae.data.image_files import IMAGE_SETS, read_images
from pyrovae.data.pixels import BINARIZE, binarize_grey, dequantize_grey
from pyrovae.data.toy import TOY_DENSITIES

NUM_VALIDATION_IMAGES = 5_000
NUM_VALIDATION_POINTS = 1_000
NUM_TEST_POINTS = 2_000
DATASETS = (*TOY_DENSITIES, *IMAGE_SETS)
NUM_CLASSES = {"ring": 8, "four_clusters": 4, "pinwheel": 5, **dict.fromkeys(IMAGE_SETS, 10)}


def load(
    name: str,
    *,
    binarize: str | None = None,
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    data_root: str | Path | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a data set by its name.

    Points of the toy sets are drawn from `seed`. Each split has a random stream of its own, so that the test set does
    not depend on `num_train`. Images are read from files. The validation images are the last of the training file, and
    the pixels of validation and test images are drawn once, fixed by `seed`.

    Args:
        name: A toy set (`ring`, `four_clusters` or `pinwheel`) or an image set (`mnist`, `fashion_mnist` or `kmnist`).
        binarize: What becomes of the 256 grey levels of images.

            - `"dynamic"`, the default: 0/1 pixels, which are 1 with probability level / 255. Training pixels are drawn
              again for every batch (Burda et al. 2016, arXiv:1509.00519).
            - `"static"`: 0/1 pixels, drawn once, fixed by `seed`.
            - `"dequantise"`: (level + uniform noise) / 256. Training pixels are drawn again for every batch. A density
              on [0, 1] needs them in place of 256 atoms (Theis et al. 2016, arXiv:1511.01844).
            - `"none"`: level / 255.
        num_train: The number of training data. By default 2,000 for `ring`, 800 for `four_clusters`, 4,000 for
            `pinwheel`, and for images all those of the training file that are not for validation.
        num_validation: The number of validation data, 0 for none. By default 1,000 points or 5,000 images.
        num_test: The number of test data. By default 2,000 points or all images of the test file.
        data_root: The folder of image files; by default `$PYROVAE_DATA`, or `./data` if that is not set. Missing files
            are downloaded to it by torchvision.
        seed: Fixes all points and pixels but those that are drawn again for every batch.

    Raises:
        InputError: If the name is unknown, a number is bad or too large for the files, or a file is corrupt, or
            missing and cannot be downloaded.

    Example:
        >>> data = pv.load("pinwheel", num_train=500, seed=3)
        >>> data.train_x.shape, data.validation_x.shape, data.test_x.shape
        (torch.Size([500, 2]), torch.Size([1000, 2]), torch.Size([2000, 2]))
    """
    require_choice("dataset", name, DATASETS)
    require_seed(seed)
    for field, count, minimum in (
        ("num_train", num_train, 1),
        ("num_validation", num_validation, 0),
        ("num_test", num_test, 1),
    ):
        if count is not None:
            require_count(field, count, minimum)
    if name in IMAGE_SETS:
        root = Path(data_root or os.environ.get("PYROVAE_DATA") or "data")
        counts = num_train, NUM_VALIDATION_IMAGES if num_validation is None else num_validation, num_test
        return _load_images(name, "dynamic" if binarize is None else binarize, counts, root, seed)
    require(binarize is None, f"binarize is for image sets, and {name} holds points; got {binarize!r}")
    density, default_train = TOY_DENSITIES[name]
    counts = (
        default_train if num_train is None else num_train,
        NUM_VALIDATION_POINTS if num_validation is None else num_validation,
        NUM_TEST_POINTS if num_test is None else num_test,
    )
    splits = [density.sample(n, _generator(seed, split)) for n, split in zip(counts, SPLITS, strict=True)]
    train, validation, test = splits
    return Dataset(name, "real", *train, *validation, *test, log_density=density.log_density)


def _load_images(
    name: str, binarize: str, counts: tuple[int | None, int, int | None], root: Path, seed: int
) -> Dataset:
    require_choice("binarize", binarize, BINARIZE)
    (train_grey, train_y), (test_grey, test_y) = read_images(name, root)
    num_train, num_validation, num_test = counts
    num_train = len(train_grey) - num_validation if num_train is None else num_train
    num_test = len(test_grey) if num_test is None else num_test
    require(
        0 < num_train <= len(train_grey) - num_validation,
        f"num_train + num_validation must be <= {len(train_grey)} and leave something to train on, "
        f"got {num_train} + {num_validation}",
    )
    require(num_test <= len(test_grey), f"num_test must be <= {len(test_grey)}, got {num_test}")
    start = len(train_grey) - num_validation
    grey = {"train": train_grey[:num_train], "validation": train_grey[start:], "test": test_grey[:num_test]}
    if binarize == "none":
        x = {split: g.float() / 255 for split, g in grey.items()}
    else:
        draw = dequantize_grey if binarize == "dequantise" else binarize_grey
        x = {split: draw(g, _generator(seed, split)) for split, g in grey.items()}
    return Dataset(
        name,
        {"none": "grey", "dequantise": "dequantised"}.get(binarize, "binary"),
        *(x["train"], train_y[:num_train], x["validation"], train_y[start:], x["test"], test_y[:num_test]),
        train_grey=grey["train"] if binarize in ("dynamic", "dequantise") else None,
    )


def _generator(seed: int, split: str) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, split))
