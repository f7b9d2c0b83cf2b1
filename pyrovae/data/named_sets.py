"""Data sets by name: draws from toy densities, image sets, and scikit-learn's digits."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pyrovae.common import InputError, require, require_choice
from pyrovae.data.dataset import SPLITS, Dataset
from pyrovae.data.factor_sets import DIGIT_FACTORS, SPRITE_FACTORS, SPRITE_SHAPES, sprites, turned_and_scaled
from pyrovae.data.image_files import IDX_SETS, class_names, read_images
from pyrovae.data.images import image_dataset, split_generator
from pyrovae.data.options import LoadOptions
from pyrovae.data.pixels import BINARIZE
from pyrovae.data.splits import split_fields
from pyrovae.data.torchvision_sets import TORCHVISION_SETS, read_torchvision
from pyrovae.data.toy import TOY_DENSITIES, GaussianRing, Pinwheel, Scaled

NUM_VALIDATION_IMAGES = 5_000
NUM_VALIDATION_POINTS = 1_000
NUM_TEST_POINTS = 2_000
NUM_VALIDATION_DIGITS, NUM_TEST_DIGITS = 180, 360
NUM_VALIDATION_SPRITES, NUM_TEST_SPRITES = 1_000, 2_000
IMAGE_SETS = (*IDX_SETS, *TORCHVISION_SETS, "sprites", "rotated_mnist")
IN_COLOUR = ("cifar10", "svhn")
DATASETS = (*TOY_DENSITIES, *IMAGE_SETS, "digits")
TEN_NUMBERS = tuple(map(str, range(10)))
NUM_CLASSES = {
    **{"ring": 8, "four_clusters": 4, "pinwheel": 5},
    **dict.fromkeys((*IMAGE_SETS, "digits"), 10),
    "omniglot": 1_623,
    "sprites": len(SPRITE_SHAPES),
}


def named_dataset(name: str, options: LoadOptions) -> Dataset:
    """Returns the data set of this name; see `load`."""
    counts = ("num_train", "num_validation", "num_test")
    if name in IMAGE_SETS:
        options.check_only((*counts, "binarize"), name, "is an image set by name")
        return _images(name, options)
    if name == "digits":
        options.check_only(counts, name, "holds whole numbers from 0 to 16")
        return _digits(options)
    options.check_only((*counts, "scale"), name, "holds points")
    density: GaussianRing | Pinwheel | Scaled
    density, default_train = TOY_DENSITIES[name]
    if options.scale is not None:
        density = Scaled(density, options.scale)
    sizes = (
        default_train if options.num_train is None else options.num_train,
        NUM_VALIDATION_POINTS if options.num_validation is None else options.num_validation,
        NUM_TEST_POINTS if options.num_test is None else options.num_test,
    )
    splits = [density.sample(n, split_generator(options.seed, split)) for n, split in zip(sizes, SPLITS, strict=True)]
    train, validation, test = splits
    classes = tuple(map(str, range(NUM_CLASSES[name])))
    return Dataset(name, "real", *train, *validation, *test, log_density=density.log_density, classes=classes)


def _images(name: str, options: LoadOptions) -> Dataset:
    root = Path(options.data_root or os.environ.get("PYROVAE_DATA") or "data")
    binarize = options.binarize
    if binarize is None:
        binarize = "none" if name in IN_COLOUR else "dynamic"
    require_choice("binarize", binarize, BINARIZE)
    if name == "sprites":
        return _sprites(options, binarize)
    if name in TORCHVISION_SETS:
        splits, classes = read_torchvision(name, root)
    else:
        splits = read_images(name.removeprefix("rotated_"), root)
        classes = class_names(name) if name == "fashion_mnist" else TEN_NUMBERS
    if name == "rotated_mnist":
        splits = [
            turned_and_scaled(*split, split_generator(options.seed, f"{file} levels"))
            for file, split in zip(("train", "test"), splits, strict=True)
        ]
    (train, train_y), (test, test_y) = splits
    num_validation = NUM_VALIDATION_IMAGES if options.num_validation is None else options.num_validation
    sizes = _sizes(options, len(train), num_validation, len(test))
    first, num = len(train) - num_validation, len(train)
    rows = {"train": slice(0, sizes[0]), "validation": slice(first, num), "test": slice(num, num + sizes[1])}
    levels, y = torch.cat((train, test)), torch.cat((train_y, test_y))
    data = image_dataset(name, levels, y, rows, binarize, options.seed, classes)
    return _with_factors(data, DIGIT_FACTORS) if name == "rotated_mnist" else data


def _sprites(options: LoadOptions, binarize: str) -> Dataset:
    levels, factors = sprites()
    num_validation = NUM_VALIDATION_SPRITES if options.num_validation is None else options.num_validation
    num_test = NUM_TEST_SPRITES if options.num_test is None else options.num_test
    rows = _rows_by_chance(options, len(levels), num_validation, num_test, "sprites")
    data = image_dataset("sprites", levels, factors, rows, binarize, options.seed, SPRITE_SHAPES)
    return _with_factors(data, SPRITE_FACTORS)


def _with_factors(data: Dataset, factors: Mapping[str, int]) -> Dataset:
    """Returns the data with each of the factors, the columns of y, as a part of its own."""
    parts = data.with_conditions(lambda _, y: tuple(part.contiguous() for part in y.unbind(1)))
    return replace(parts, factors=tuple(factors))


def _rows_by_chance(
    options: LoadOptions, num: int, num_validation: int, num_test: int, name: str
) -> dict[str, np.ndarray]:
    """Returns the rows of each split of data without a file of their own for tests; the first are tested on."""
    require(num_test < num, f"num_test must be < {num}, got {num_test}")
    num_train, _ = _sizes(options, num - num_test, num_validation, num_test)
    order = torch.randperm(num, generator=split_generator(options.seed, name)).numpy()
    validation, test = order[num_test : num_test + num_validation], order[:num_test]
    return {"train": order[num_test + num_validation :][:num_train], "validation": validation, "test": test}


def _sizes(options: LoadOptions, num: int, num_validation: int, num_for_test: int) -> tuple[int, int]:
    """Returns the numbers of training and of test images, of `num` in the training file and those of the test file."""
    num_train = num - num_validation if options.num_train is None else options.num_train
    num_test = num_for_test if options.num_test is None else options.num_test
    require(
        0 < num_train <= num - num_validation,
        f"num_train + num_validation must be <= {num} and leave something to train on, "
        f"got {num_train} + {num_validation}",
    )
    require(num_test <= num_for_test, f"num_test must be <= {num_for_test}, got {num_test}")
    return num_train, num_test


def _digits(options: LoadOptions) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("digits needs scikit-learn: pip install 'pyrovae[digits]'") from error
    found = load_digits()
    x, y = torch.from_numpy(found.images).to(torch.get_default_dtype())[:, None], torch.from_numpy(found.target).long()
    num_test = NUM_TEST_DIGITS if options.num_test is None else options.num_test
    num_validation = NUM_VALIDATION_DIGITS if options.num_validation is None else options.num_validation
    rows = _rows_by_chance(options, len(x), num_validation, num_test, "digits")
    return Dataset("digits", "count", **split_fields(x, y, rows), classes=TEN_NUMBERS)
