"""A data set in memory, split into data for training, validation and testing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.common import (
    as_data,
    choose_device,
    data_frame,
    if_given,
    require,
    require_callable,
    require_choice,
    require_count,
    require_plain,
    require_text,
    shown,
)
from pyrovae.data.columns import Column, ColumnTable, named_cells, numbers_the_rows
from pyrovae.data.pixels import binarize_grey, dequantize_grey

SPLITS = ("train", "validation", "test")
DATA_KINDS = ("real", "binary", "grey", "dequantised", "count", "mixed")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Holds training, validation and test data in memory, on one device.

    Args:
        name: The name of the data set, for tables and figures.
        kind: What an event is: `"real"`, `"binary"` (0 or 1), `"grey"` (256 levels in [0, 1], of grey or of each
            colour), `"dequantised"` (such levels with uniform noise, in [0, 1)), `"count"` (whole numbers from 0) or
            `"mixed"` (what `columns` say).
        train_x: Training data, `(num_train, *event_shape)`, floating-point. NaN is a missing cell.
        train_y: Integer labels, `(num_train,)`, or the conditions that `with_conditions` put in their place, a tensor
            or a tuple of tensors. `()` if there are none.
        validation_x: Validation data, `(num_validation, *event_shape)`.
        validation_y: The labels or conditions of the validation data.
        test_x: Test data, `(num_test, *event_shape)`.
        test_y: The labels or conditions of the test data.
        train_grey: The grey levels of the training images, 0 to 255, `uint8`, if training pixels are drawn again for
            every batch. `train_x` is then one draw, which the seed fixes. None if the pixels are fixed.
        log_density: A function that gives the exact log-density of `x` in nats, `(num,)`. None if it is unknown.
        columns: What each element of x holds, for the rows of a table, as a tuple that prints as a table; `()` for
            other data.
        classes: The names of the labels 0, 1, 2, ...; `()` if there are none.
        factors: The names of the parts of y, where they are the known factors that each x was made from, whole numbers
            from 0; `()` for other data.

    Raises:
        InputError: If a field has the wrong type, shape or dtype, or the fields do not fit each other.

    Example:
        >>> data = pv.load("ring", num_train=100)
        >>> data.event_shape
        (2,)
        >>> [len(x) for x, y in data.batches(batch_size=64)]
        [64, 36]
        >>> data.log_density(data.test_x).shape
        torch.Size([2000])
    """

    name: str
    kind: str
    train_x: Tensor
    train_y: Tensor | tuple[Tensor, ...]
    validation_x: Tensor
    validation_y: Tensor | tuple[Tensor, ...]
    test_x: Tensor
    test_y: Tensor | tuple[Tensor, ...]
    train_grey: Tensor | None = None
    log_density: Callable[[Tensor], Tensor] | None = None
    columns: tuple[Column, ...] = ()
    classes: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_text("name", self.name)
        require_choice("kind", self.kind, DATA_KINDS)
        for split in SPLITS:
            self._check_x(f"{split}_x")
            self._check_y(f"{split}_y", len(getattr(self, f"{split}_x")))
        require(len(self.train_x) > 0, "train_x must hold at least one datum, got 0")
        if self.train_grey is not None:
            grey = getattr(self.train_grey, "dtype", None), getattr(self.train_grey, "shape", None)
            rule = f"train_grey must be None or a uint8 tensor of shape {tuple(self.train_x.shape)}, as train_x"
            require(grey == (torch.uint8, self.train_x.shape), f"{rule}, got {_described(self.train_grey)}")
        if_given(require_callable, "log_density", self.log_density)
        is_named = isinstance(self.columns, tuple) and all(isinstance(one, Column) for one in self.columns)
        fits = is_named and (not self.columns or self.event_shape == (len(self.columns),))
        require(fits, f"columns must be a tuple of a Column for each element of x, {self.event_shape}, or ()")
        object.__setattr__(self, "columns", self._printing(self.columns))
        for field in ("classes", "factors"):
            names = getattr(self, field)
            are_texts = isinstance(names, tuple) and all(isinstance(one, str) for one in names)
            require(are_texts, f"{field} must be a tuple of texts, got {shown(names)}")
        parts = len(self.train_y) if isinstance(self.train_y, tuple) else 1
        named = not self.factors or len(self.factors) == parts
        require(named, f"factors must be a name for each part of y, {parts}, or (), got {len(self.factors)}")

    def _printing(self, columns: tuple[Column, ...]) -> ColumnTable:
        """Returns the columns as a table that prints, in which those are marked that number the rows."""
        table, parts = ColumnTable(columns), [getattr(self, f"{split}_x") for split in SPLITS]
        values = (torch.cat([part[:, j] for part in parts]).cpu().numpy() for j in range(len(columns)))
        found = zip(columns, values, strict=True)
        table.numbering_rows = frozenset(column.name for column, of_it in found if numbers_the_rows(column, of_it))
        return table

    def _check_x(self, field: str) -> None:
        x, train_x = getattr(self, field), self.train_x
        if isinstance(x, Tensor):
            require_plain(field, x)
        is_float = isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 0
        hint = "" if isinstance(x, Tensor) else "; pv.load((x, y)) makes a Dataset of arrays"
        require(is_float, f"{field} must be a floating-point tensor of one row per datum, got {_described(x)}{hint}")
        same = (x.shape[1:], x.dtype, x.device) == (train_x.shape[1:], train_x.dtype, train_x.device)
        require(same, f"{field} must be as train_x, {_described(train_x)}, save its length; got {_described(x)}")

    def _check_y(self, field: str, num_data: int) -> None:
        y = getattr(self, field)
        rule = f"{field} must be a tensor or a tuple of tensors of {num_data} rows, as x has, or () for none"
        for part in y if isinstance(y, tuple) else (y,):
            if isinstance(part, Tensor):
                require_plain(field, part)
            fits = isinstance(part, Tensor) and part.dim() > 0 and len(part) == num_data
            require(fits, f"{rule}; got {_described(part)}")
        train_y = self.train_y
        counts = [len(one) if isinstance(one, tuple) else -1 for one in (y, train_y)]
        require(counts[0] == counts[1], f"{field} must have as many parts as train_y")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, f'{split}_x')):,} {split}" for split in SPLITS)
        return f"data set {self.name}: {self.kind}, event shape {self.event_shape}\n{sizes} data"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.train_x.shape[1:])

    @property
    def train_mean(self) -> Tensor:
        """The mean of the observed training data per coordinate, `event_shape`. A decoder's bias starts from it."""
        if self.train_grey is not None:
            return self.train_grey.sum(0) / (255.0 * len(self.train_grey))
        mean = self.train_x.mean(0)
        return self.train_x.nanmean(0) if mean.isnan().any() else mean

    def arguments(self, split: str) -> tuple[Tensor, ...]:
        """Returns the arguments that a conditional model is called with: `(x, y)`, or `(x, y_1, y_2, ...)`.

        Args:
            split: `"train"`, `"validation"` or `"test"`.
        """
        require_choice("split", split, SPLITS)
        x, y = getattr(self, f"{split}_x"), getattr(self, f"{split}_y")
        return (x, *y) if isinstance(y, tuple) else (x, y)

    def in_file_units(self, x: Tensor) -> Tensor:
        """Returns x `(..., *event_shape)` with its standardised columns in the units of the file, x_j sd_j + mean_j.

        Example:
            >>> x = torch.tensor([[1.0], [3.0], [5.0]])
            >>> data = pv.load(x, kinds="continuous", standardise=True, shares=(1, 0, 0))
            >>> data.train_x.flatten()
            tensor([-1.2247,  0.0000,  1.2247])
            >>> data.in_file_units(data.train_x).flatten()
            tensor([1.0000, 3.0000, 5.0000])
        """
        if not self.columns:
            return x
        mean = x.new_tensor([column.mean or 0.0 for column in self.columns])
        return x * x.new_tensor(self._sds) + mean

    def to_pandas(self, x: Tensor) -> Any:
        """Returns rows of x `(num, columns)` as a `pandas.DataFrame`, in the units and with the names of the file.

        Raises:
            InputError: If the data are of no table, x has other columns, or a column with names has a value that is no
                code of one, as the mean of an imputed cell is none; `Imputation.draws` have codes.

        Example:
            >>> import pandas
            >>> people = {"town": ["Bonn", "Oslo", "Bonn"], "age": [20.5, 31.0, 44.5]}
            >>> data = pv.load(pandas.DataFrame(people), standardise=True, shares=(1, 0, 0))
            >>> data.to_pandas(data.train_x)
               town   age
            0  Bonn  20.5
            1  Oslo  31.0
            2  Bonn  44.5
        """
        columns = self.columns
        require(bool(columns), f"to_pandas needs the columns of a table, and {self.name} has none")
        fits = isinstance(x, Tensor) and x.dim() == 2 and x.shape[1] == len(columns)
        require(fits, f"x must be a tensor of shape (num, {len(columns)}), got {_described(x)}")
        values = self.in_file_units(x.detach().double()).cpu().numpy()
        return data_frame({column.name: named_cells(column, values[:, j]) for j, column in enumerate(columns)})

    def log_px_in_file_units(self, log_px: Tensor, x: Tensor) -> Tensor:
        """Returns log p of the data in the units of the file, given log p of the same data as they are in x.

            log p(cells) = log p(x) - sum over the observed j of log sd_j,    x_j = (cell_j - mean_j) / sd_j

        A density has a unit: one of lengths in mm is a thousandth of that in m. Columns that are not standardised have
        a term of 0, and so do cells that are missing, which have no part in log p(x).

        Args:
            log_px: log p(x), or a bound on it, `(..., num)`, in nats.
            x: The data that it is of, `(num, *event_shape)`.

        Returns:
            A tensor `(..., num)`, in nats.

        Example:
            >>> x = torch.tensor([[1.0], [3.0], [5.0]])
            >>> data = pv.load(x, kinds="continuous", standardise=True, shares=(1, 0, 0))
            >>> data.log_px_in_file_units(torch.zeros(3), data.train_x)  # the standard deviation is 1.633
            tensor([-0.4904, -0.4904, -0.4904])
        """
        if not self.columns:
            return log_px
        log_sd = torch.tensor(self._sds, dtype=torch.float64).log()
        return log_px - (~x.isnan()).double().mv(log_sd.to(x.device)).to(log_px)

    @property
    def _sds(self) -> list[float]:
        return [1.0 if column.sd is None else column.sd for column in self.columns]

    def with_conditions(self, condition: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]]) -> "Dataset":
        """Returns the same data with conditions in place of the labels.

        Args:
            condition: Takes `(x, y)` of a split and returns its conditions, a tensor or a tuple of tensors, each with
                one row per datum.

        Example:
            >>> data = pv.load("ring").with_conditions(lambda x, y: (y, x.norm(dim=-1)))
            >>> [part.shape for part in data.arguments("train")]
            [torch.Size([2000, 2]), torch.Size([2000]), torch.Size([2000])]
        """
        require_callable("condition", condition, "a function of x and y")
        changed: dict[str, Any] = {
            f"{s}_y": condition(getattr(self, f"{s}_x"), getattr(self, f"{s}_y")) for s in SPLITS
        }
        return replace(self, **changed, factors=())

    def to(self, device: torch.device | str) -> "Dataset":
        """Returns the same data on `device`; "auto" is a GPU if there is one. Raises `InputError` if there is none."""
        chosen = device if isinstance(device, torch.device) else choose_device(device)

        def move(value):
            if isinstance(value, tuple):
                return tuple(map(move, value))
            return as_data(value).to(chosen) if isinstance(value, Tensor) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, ...]]:
        """Returns the batches of one epoch in a new random order, which torch's global generator gives.

        Args:
            batch_size: The number of data in a batch. The last batch may be smaller.

        Returns:
            An iterator over `(x, y)`, or `(x, y_1, y_2, ...)`, of each batch. Pixels that are random are drawn anew.

        Raises:
            InputError: If `batch_size` is not a whole number of at least 1.
        """
        require_count("batch_size", batch_size)
        # The order is drawn on the CPU, so that it is the same on every device.
        return map(self.batch, torch.randperm(len(self.train_x)).split(batch_size))

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Returns these rows of the training data as `(x, y)`, or `(x, y_1, y_2, ...)`.

        Args:
            rows: Row numbers, `(batch,)`. Pixels that are random are drawn anew.
        """
        is_index = isinstance(rows, Tensor) and rows.dtype == torch.int64 and rows.dim() == 1
        require(is_index, f"rows must be an int64 tensor (batch,), got {getattr(rows, 'dtype', type(rows).__name__)}")
        index = rows.to(self.train_x.device)
        x, *y = (part[index] for part in self.arguments("train"))
        if self.train_grey is not None:
            draw = binarize_grey if self.kind == "binary" else dequantize_grey
            x = draw(self.train_grey[index]).to(self.train_x.dtype)
        return x, *y


def _described(value: object) -> str:
    """Returns dtype and shape of a tensor, and the type of anything else, for errors."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
