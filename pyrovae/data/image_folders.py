"""Reads a folder of images, grey or in colour: loose, in a folder for each class, or in folders for each split."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.ImageOps import exif_transpose
from torch import Tensor

from pyrovae.common import InputError, first_line, require
from pyrovae.data.dataset import SPLITS, Dataset
from pyrovae.data.images import image_dataset
from pyrovae.data.options import LoadOptions
from pyrovae.data.splits import SPLIT_NAMES, Rows, split_by_shares

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision
GREY_MODES, COLOUR_MODES = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


def folder_dataset(folder: Path, options: LoadOptions) -> Dataset:
    """Returns the data set of the images in a folder; see `load`.

    Raises:
        InputError: If there are no images, one cannot be read, or they have several sizes and `image_size` is None.
    """
    parts = _parts_of(folder)
    classes = tuple(sorted({label for files in parts.values() for _, label in files if label is not None}))
    index = {label: number for number, label in enumerate(classes)}
    files = [
        file for split in SPLITS for file in parts.get(split, parts[""] if split == "train" and "" in parts else [])
    ]
    levels = _read([path for path, _ in files], options.image_size, folder)
    y = torch.tensor([index[label] for _, label in files if label is not None]) if classes else None
    if "" in parts:
        rows = split_by_shares(len(files), options.shares, options.seed, str(folder))
    else:
        require(options.shares is None, f"shares must not be given where the folders in {folder} are the splits")
        rows = _blocks({split: len(parts.get(split, [])) for split in SPLITS})
    name = folder.resolve().name
    return image_dataset(name, levels, y, rows, options.binarize or "none", options.seed, classes)


def as_levels(image: Image.Image, size: int | None, mode: str) -> Tensor:
    """Returns an image as levels `(channels, height, width)`, `uint8`.

    Args:
        image: The image.
        size: Its shorter side is scaled to this, and the square in its middle is cut out; None leaves it as it is.
        mode: "L" for grey or "RGB".
    """
    image = exif_transpose(image).convert(mode)  # as the camera was held
    if size is not None:
        from torchvision.transforms.functional import center_crop, resize  # imports of seconds

        image = center_crop(resize(image, [size], antialias=True), [size, size])
    levels = torch.from_numpy(np.array(image))
    return levels[None] if mode == "L" else levels.permute(2, 0, 1)


Files = list[tuple[Path, str | None]]  # each with the name of its class, if it has one


def _parts_of(folder: Path) -> dict[str, Files]:
    """Returns the images of each split, or of "" if the folder is not divided into splits."""
    inside = [path for path in _folders_in(folder) if path.name.lower() in SPLIT_NAMES or _holds_images(path)]
    splits = _splits_among(inside)
    others = [path for path in (*inside, *_images_in(folder)) if path not in splits]
    if "train" not in splits.values() or (others and len(splits) == 1):  # a class may be called train
        return {"": _files_of(folder, inside)}
    named = ", ".join(path.name for path in splits)
    require(not others, f"{folder} must hold no images beside those in {named}, got {_first(others)}")
    parts: dict[str, Files] = {}
    for path, split in splits.items():
        require(split not in parts, f"{folder} must have one folder for each split, has several for {split}")
        parts[split] = _files_of(path, _folders_in(path))
    labelled = {part[0][1] is not None for part in parts.values()}
    require(len(labelled) == 1, f"{folder} must have folders of classes in every split, or in none")
    return parts


def _files_of(folder: Path, inside: list[Path]) -> Files:
    """Returns the images in a folder, or those in the folders of classes inside it."""
    loose, full = _images_in(folder), [one for one in inside if _holds_images(one)]
    rule = f"{folder} must hold loose images or folders of images, and not both"
    require(not (loose and full), f"{rule}; got {_first(loose)} and the folder {_first(full)}")
    for one in full:
        splits = _splits_among(_folders_in(one))
        rule = f"{one} must not hold folders of splits, {', '.join(path.name for path in splits)}, as a class"
        require(
            "train" not in splits.values() or len(splits) == 1, f"{rule}; splits come first, as in train/{one.name}"
        )
    found: Files = [(path, None) for path in loose]
    found += [(path, one.name) for one in full for path in sorted(one.rglob("*")) if _is_image(path)]
    kinds = ", ".join(IMG_EXTENSIONS[:4])
    require(len(found) > 0, f"{folder} must hold images ({kinds}, ...), or a folder of images for each class; has none")
    return found


def _splits_among(folders: list[Path]) -> dict[Path, str]:
    return {path: SPLIT_NAMES[path.name.lower()] for path in folders if path.name.lower() in SPLIT_NAMES}


def _first(paths: list[Path]) -> str:
    return paths[0].name if paths else ""


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    return any(_is_image(path) for path in folder.rglob("*"))


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _read(paths: list[Path], size: int | None, folder: Path) -> Tensor:
    """Returns the levels of all images, in colour if one of them is."""
    mode = "L"
    for path in paths:  # which reads their headers alone
        with _opened(path) as image:
            kind = image.mode
        rule = f"{path} must have 8 bits for each level, got an image of mode {kind}"
        require(kind in (*GREY_MODES, *COLOUR_MODES), rule)
        mode = "L" if mode == "L" and kind in GREY_MODES else "RGB"
    levels: list[Tensor] = []
    for path in paths:
        with _opened(path) as image:
            try:
                levels.append(as_levels(image, size, mode))
            except UNREADABLE as error:
                raise _unreadable(path, error) from error
        shape, first = levels[-1].shape[1:], levels[0].shape[1:]
        rule = f"{path} must be as large as {paths[0].name}, {first[0]}x{first[1]} pixels, got {shape[0]}x{shape[1]}"
        require(shape == first, f"{rule}; image_size=64 scales all and cuts squares")
    return torch.stack(levels)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = first_line(error)
    return InputError(f"{path} is not a readable image" + ("" if str(path) in reason else f" ({reason})"))


def _blocks(sizes: dict[str, int]) -> Rows:
    """Returns the rows of splits that follow each other."""
    ends = np.cumsum(list(sizes.values()))
    return {split: np.arange(end - size, end) for (split, size), end in zip(sizes.items(), ends, strict=True)}
