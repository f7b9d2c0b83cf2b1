"""Loads a data set: by its name, from a file or a folder of one's own, from a function, or from arrays in memory."""

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pyrovae.common import InputError, did_you_mean, is_array, is_there, require, require_there, shown
from pyrovae.data.arrays import array_dataset, mapped_dataset, named_arrays, read_arrays
from pyrovae.data.dataset import Dataset
from pyrovae.data.image_folders import folder_dataset
from pyrovae.data.named_sets import DATASETS, named_dataset
from pyrovae.data.options import OF_TABLES, LoadOptions
from pyrovae.data.table_files import TABLE_FILES, TEXT_FILES, read_csv, read_parquet, table_of_frame
from pyrovae.data.tables import table_dataset

FILES = (*TABLE_FILES, ".npy", ".npz", ".pt")
FUNCTION = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")  # a module and a function in it


def load(
    source: Any,
    *,
    binarize: str | None = None,
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    scale: float | None = None,
    shares: Sequence[float] | None = None,
    columns: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    header: bool | None = None,
    kinds: Mapping[str, str] | str | None = None,
    missing: str | None = None,
    standardise: bool = False,
    image_size: int | None = None,
    data_root: str | Path | None = None,
    seed: int = 0,
) -> Dataset:
    """Loads a data set by its name, or makes one of data of one's own.

    - Toy sets: `ring`, `four_clusters`, `pinwheel`. Points are drawn from `seed`. Each split has a random stream of its
      own, so that the test set does not depend on `num_train`.
    - Image sets: `mnist`, `fashion_mnist`, `kmnist`, `cifar10`, `svhn`, `omniglot` (28 x 28, strokes bright, trained on
      the background alphabets and tested on the others). The validation images are the last of the training file.
    - Images whose factors are known, and are the parts of y: `sprites`, each combination of a shape, a scale, an
      orientation, an x and a y once, 32 x 32, split by `seed`; `rotated_mnist`, the digits of MNIST turned and scaled
      by levels that `seed` draws. `Dataset.factors` has the names.
    - `digits`: scikit-learn's 8 x 8 images of whole numbers from 0 to 16.
    - A table: a .csv, .tsv or .parquet file, or a frame of pandas. A cell that is empty, NA, N/A, NaN, null or ? is
      missing. In x a category is the index of its name, and a binary column 0 or 1.
    - Arrays: an .npy, .npz or .pt file, or in memory x, `(x, y)` or a dict of them. They are x and y, or train_x,
      train_y, validation_x, ..., test_y. Bytes in 3 or 4 dimensions are images, `(num, height, width)` or with 1 or 3
      channels; other arrays of 1 or 2 dimensions are tables, with columns x1, x2, .... Whole numbers and texts in y are
      labels. An .npy of 1 GiB or more in torch's default dtype stays on the disk; its splits are blocks in its order.
    - A folder of images: loose, or in a folder for each class, or so within folders train, validation and test. Folders
      without images are passed over.
    - `"module:function"`: the function returns the `Dataset`.

    The values of tables and arrays are in torch's default dtype. The seed fixes what is drawn: points, the split of
    data of one's own, and the pixels of evaluation images.

    Args:
        source: The name, the path, the function or the arrays.
        binarize: What becomes of the 256 levels of images, grey or of each colour.

            - `"dynamic"`: 0/1 pixels, which are 1 with probability level / 255. Training pixels are drawn again for
              every batch (Burda et al. 2016, arXiv:1509.00519). The default for the grey sets by name.
            - `"static"`: 0/1 pixels, drawn once, fixed by `seed`.
            - `"dequantise"`: (level + uniform noise) / 256. Training pixels are drawn again for every batch. A density
              on [0, 1] needs them in place of 256 atoms (Theis et al. 2016, arXiv:1511.01844).
            - `"none"`: level / 255. The default for sets in colour and for images of one's own.
        num_train: The number of training data of a set by name. By default 2,000 for `ring`, 800 for `four_clusters`,
            4,000 for `pinwheel`, and else all those that are not for validation.
        num_validation: Its number of validation data, 0 for none. By default 1,000 points or sprites, 5,000
            images or 180 digits.
        num_test: Its number of test data. By default 2,000 points or sprites, all images of the test file, or 360
            digits.
        scale: Multiplies the points of a toy set, and its log-density is that of the larger ones; 1 by default.
        shares: The shares of training, validation and test data, for data of one's own; by default (0.8, 0.1, 0.1).
        columns: The names of the columns of x. By default all but those of the labels and of the split.
        exclude: The names of columns to leave out of these, such as identifiers and dates.
        label_column: The column of the labels y, which become 0, 1, 2, ... in the order of their names.
        split_column: The column that says train, validation or test for each row.
        header: Whether the first row has the names of the columns. By default it has, unless all its cells are
            numbers; the names are then x1, x2, ....
        kinds: What columns hold, by name, or one kind for all: continuous, positive (above 0), unit (between 0 and 1),
            count, binary or category. Others are guessed: texts are a category, or binary if there are two of them;
            numbers are binary if all are 0 or 1, counts if all are whole and none is negative, and else continuous.
        missing: `"mask"` keeps missing cells, as NaN in x. By default they are refused.
        standardise: True subtracts the mean of each continuous column and divides by its standard deviation, those of
            the observed training data. Other kinds stay as they are: they would leave their support.
        image_size: Scales the shorter side of each image of a folder to this, and cuts the square in the middle.
        data_root: The folder of image sets by name; by default `$PYROVAE_DATA`, or `./data` if that is not set. Missing
            files are downloaded to it by torchvision.
        seed: A whole number.

    Returns:
        The `Dataset`. Its `columns` say what was found in a table, and its `classes` are the names of the labels.

    Raises:
        InputError: If the source is unknown, an option is bad or not for this source, a number is too large for the
            files, or a file is corrupt, or missing and cannot be downloaded. Errors in a file name the row, the column
            and the cell.

    Example:
        >>> data = pv.load("pinwheel", num_train=500, seed=3)
        >>> data.train_x.shape, data.validation_x.shape, data.test_x.shape
        (torch.Size([500, 2]), torch.Size([1000, 2]), torch.Size([2000, 2]))

        Arrays of one's own, here a table of two columns with labels:

        >>> data = pv.load((torch.randn(100, 2), torch.arange(100) % 3), standardise=True)
        >>> [column.kind for column in data.columns], data.classes, len(data.test_x)
        (['continuous', 'continuous'], ('0', '1', '2'), 10)
    """
    options = LoadOptions(
        binarize=binarize,
        num_train=num_train,
        num_validation=num_validation,
        num_test=num_test,
        scale=scale,
        shares=shares,
        columns=columns,
        exclude=exclude,
        label_column=label_column,
        split_column=split_column,
        header=header,
        kinds=kinds,
        missing=missing,
        standardise=standardise,
        image_size=image_size,
        data_root=data_root,
        seed=seed,
    )
    if isinstance(source, str) and source in DATASETS:
        return named_dataset(source, options)
    if isinstance(source, str | Path):
        path = Path(os.path.expanduser(source))
        function = FUNCTION.fullmatch(str(source))
        if function and not is_there(path):
            return _from_function(str(source), function[1], function[2], options)
        return _from_path(source, path, options)
    if hasattr(source, "columns"):
        options.check_only(OF_TABLES, "a frame", "holds a table")
        return table_dataset("frame", table_of_frame(source, "the frame", options.needs), options)
    is_known = isinstance(source, tuple | Mapping | Tensor) or is_array(source)
    rule = "source must be a name, a path, an array, (x, y), a dict of arrays or a frame"
    require(is_known, f"{rule}, got {type(source).__name__}")
    return array_dataset("arrays", named_arrays(source, "source"), options, "source")


def _from_path(source: str | Path, path: Path, options: LoadOptions) -> Dataset:
    if source == "" or not is_there(path):
        is_name = isinstance(source, str) and not path.suffix and len(path.parts) < 2
        rule = f"dataset must be one of {', '.join(DATASETS)}, a path or module:function"
        require(not is_name, f"{rule}; got {shown(source)}{did_you_mean(source, DATASETS)}")
        require_there(path)
    if path.is_dir():
        options.check_only(("binarize", "shares", "image_size"), str(path), "is a folder of images")
        return folder_dataset(path, options)
    kind = path.suffix.lower()
    require(kind in FILES, f"{path} must be a folder or a file of type {', '.join(FILES)}, got {kind or 'no type'}")
    try:
        if kind in TEXT_FILES:
            options.check_only((*OF_TABLES, "header"), str(path), "is a table")
            return table_dataset(path.stem, read_csv(path, options.header, options.needs), options)
        if kind == ".parquet":
            options.check_only(OF_TABLES, str(path), "is a parquet file")
            return table_dataset(path.stem, read_parquet(path, options.needs), options)
        arrays = read_arrays(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    mapped = mapped_dataset(path.stem, arrays["x"], options, str(path)) if kind == ".npy" else None
    return mapped or array_dataset(path.stem, arrays, options, str(path))


def _from_function(source: str, module: str, name: str, options: LoadOptions) -> Dataset:
    """Returns the data set that a function returns; its module may lie in the working folder."""
    options.check_only((), source, "is a function, which returns a data set as it is")
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that the user's own imports
        raise InputError(f"{source}: there is no module {module} in {os.getcwd()} or among those installed") from error
    finally:
        sys.path.remove(os.getcwd())
    function = getattr(found, name, None)
    require(callable(function), f"{source}: the module {module} has no function {name}")
    data = function()  # type: ignore[misc]
    require(isinstance(data, Dataset), f"{source} must return a pyrovae.Dataset, got {type(data).__name__}")
    return data
