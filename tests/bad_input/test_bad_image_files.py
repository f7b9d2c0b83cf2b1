"""Image files that are damaged or missing, and arguments of `load`."""

import math
import re

import broken_files as files
import pytest
from helpers import IMAGE_FILES, LABEL_FILES, NUM_TRAIN, load_fake
from refusals import IMAGES_ONLY, Table, check_refusal

import pyrovae as pv

CASES = Table()
add = CASES.add

for file in (*IMAGE_FILES, *LABEL_FILES):
    for name, damage in files.CORRUPT.items():
        said = rf"\S+/{file} .+ \(.+\)|\S+/{file} must .+"
        add(f"idx: {file} {name}", said, load_fake, files.IMAGES, given=files.rewritten(file, damage))
    said = f"{file} not found in {files.RAW}, and MNIST could not be downloaded; name the folder .+"
    add(f"idx: no {file}", said, load_fake, files.IMAGES, given=files.without(file))
    add(f"idx: {file}.gz alone", said, load_fake, files.IMAGES, given=files.archived(file))
for num in (NUM_TRAIN - 1, NUM_TRAIN + 1):
    said = rf"\S+/{LABEL_FILES[0]} must hold one label per image of {IMAGE_FILES[0]}, got {num} for {NUM_TRAIN}"
    add(f"idx: {num} labels", said, load_fake, files.IMAGES, given=files.with_labels(num))
for counts, found in (
    ({"num_train": 31}, "31 + 10"),
    ({"num_train": 41, "num_validation": 0}, "41 + 0"),
    ({"num_validation": 40}, "0 + 40"),
    ({"num_validation": 5_000}, "-4960 + 5000"),
    ({"num_train": 20, "num_validation": 21}, "20 + 21"),
):
    said = f"num_train + num_validation must be <= 40 and leave something to train on, got {found}"
    add(f"load: {counts}", re.escape(said), load_fake, files.IMAGES, **counts, given=files.images)
add("load: num_test 13", "num_test must be <= 12, got 13", load_fake, files.IMAGES, num_test=13, given=files.images)
for dataset in ("ring", "pinwheel", "mnist"):
    for field, low in (("num_train", 1), ("num_validation", 0), ("num_test", 1), ("seed", 0)):
        for value in (low - 1, -7, 1.5, 2.0, True, "3", math.nan, [2]):
            said = f"{field} must be a whole number >= {low}, got {re.escape(repr(value))}"
            add(f"load: {dataset}, {field} {value!r}", said, pv.load, dataset, **{field: value})
known = "ring, four_clusters, pinwheel, mnist, fashion_mnist, kmnist, cifar10, svhn, omniglot, sprites, "
known += "rotated_mnist, digits"
for value, hint in (("rings", ": did you mean ring?"), ("", ""), ("MNIST", ": did you mean mnist?"), ("nope", "")):
    said = rf"dataset must be one of {known}, a path or module:function; got {value!r}{re.escape(hint)}"
    add(f"load: {value!r}", said, pv.load, value)
for value in (0, -1.0, math.nan, "2"):
    said = f"scale must be a finite number > 0, got {re.escape(repr(value))}"
    add(f"load: scale {value!r}", said, pv.load, "ring", scale=value)
add("load: scale of images", "scale is for toy sets, and sprites is .+; got 2.0", pv.load, "sprites", scale=2.0)
for value in (None, 3, ["ring"]):
    said = f"source must be a name, a path, an array, .+, got {type(value).__name__}"
    add(f"load: {value!r}", said, pv.load, value)
for value in ("nope", "", "Static", 1, True, ["static"]):
    said = f"binarize must be one of none, static, dynamic, dequantise; got {re.escape(repr(value))}"
    add(f"load: mnist, binarize {value!r}", said, load_fake, files.IMAGES, binarize=value, given=files.images)
for value in ("none", "static", "dynamic", "nope"):
    add(f"load: ring, binarize {value!r}", f"binarize {IMAGES_ONLY}; got {value!r}", pv.load, "ring", binarize=value)


@pytest.mark.parametrize("case", CASES.parameters())
def test_bad_input_is_one_line_that_names_field_rule_and_value_and_nothing_is_written(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)
