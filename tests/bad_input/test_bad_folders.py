"""Folders of images that `load` refuses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import Table, check_refusal

import pyrovae as pv

CASES = Table()
add = CASES.add


def images(sizes=((4, 4), (4, 4)), folder="photos", mode="L"):
    def given():
        Path(folder).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.new(mode, size).save(f"{folder}/{number}.tiff")

    return given


def broken():
    images(((8, 8), (8, 8)))()
    Path("photos/0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"rubbish")


def cut_short():
    images(((8, 8), (8, 8)))()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save("photos/2.png")
    Path("photos/2.png").write_bytes(Path("photos/2.png").read_bytes()[:90])


def folder(name: str, said: str, given, **settings) -> None:
    add(f"folder: {name}", said, pv.load, "photos", given=given, **settings)


folder("without images", "photos must hold images .+; has none", lambda: Path("photos/one").mkdir(parents=True))
folder("a broken PNG", "photos/0.png is not a readable image", broken)
folder("a PNG cut short", r"photos/2.png is not a readable image \(.+\)", cut_short)
folder(
    "two sizes",
    "photos/1.tiff must be as large as 0.tiff, 4x4 pixels, got 6x5; image_size=64 .+",
    images(((4, 4), (5, 6))),
)
folder("16 bits", "photos/0.tiff must have 8 bits for each level, got an image of mode I;16", images(mode="I;16"))
folder("image_size 0", "image_size must be a whole number >= 1, got 0", images(), image_size=0)
folder(
    "standardise", "standardise is for tables, and photos is a folder of images; got True", images(), standardise=True
)


def several(*folders: str):
    """Makes folders of images."""

    def given():
        for one in folders:
            images(folder=one)()

    return given


def with_loose(*folders: str):
    def given():
        several(*folders)()
        Image.new("L", (4, 4)).save("photos/loose.png")

    return given


def huge():
    Path("photos").mkdir()
    Path("photos/huge.pgm").write_bytes(b"P5 100000 100000 255\n")


BESIDE = "photos must hold no images beside those in test, train, got {}"
folder("splits and another", BESIDE.format("more"), several("photos/train", "photos/test", "photos/more"))
folder("splits of classes and another", BESIDE.format("x"), several("photos/train/a", "photos/test/a", "photos/x/y"))
folder("splits and a loose image", BESIDE.format("loose.png"), with_loose("photos/train", "photos/test"))
folder(
    "splits in a class",
    "photos/a must not hold folders of splits, test, train, as a class; splits come first, as in train/a",
    several("photos/a/train", "photos/a/test", "photos/b"),
)
BOTH = "must hold loose images or folders of images, and not both; got {} and the folder {}"
folder("classes and a loose image", f"photos {BOTH.format('loose.png', 'a')}", with_loose("photos/a", "photos/b"))
folder("a class train and a loose image", f"photos {BOTH.format('loose.png', 'train')}", with_loose("photos/train"))
folder(
    "both in a split",
    f"photos/train {BOTH.format('0.tiff', 'a')}",
    lambda: (images(folder="photos/train")(), images(folder="photos/train/a")()),
)
folder(
    "an empty split",
    "photos/test must hold images .+; has none",
    lambda: (images(folder="photos/train")(), Path("photos/test").mkdir()),
)
folder("a huge image", r"photos/huge.pgm is not a readable image \(.+ decompression bomb .+\)", huge)


@pytest.mark.parametrize("case", CASES.parameters())
def test_a_bad_folder_is_refused_in_one_line_that_names_field_rule_and_value(case, tmp_path, capsys):
    check_refusal(case, tmp_path, capsys)
