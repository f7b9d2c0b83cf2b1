"""A data set in memory, split into data for training, validation and testing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.common import require_count
from pyrovae.data.pixels import binarize_grey, dequantize_grey

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Holds training, validation and test data in memory, on one device.

    Args:
        name: The name of the data set, for tables and figures.
        kind: What an event is: `"real"`, `"binary"` (0 or 1), `"grey"` (one of 256 levels in [0, 1]) or
            `"dequantised"` (grey levels with uniform noise, in [0, 1)).
        train_x: Training data, `(num_train, *event_shape)`, floating-point.
        train_y: Integer labels, `(num_train,)`, or the conditions that `with_conditions` put in their place.
        validation_x: Validation data, `(num_validation, *event_shape)`.
        validation_y: The labels or conditions of the validation data.
        test_x: Test data, `(num_test, *event_shape)`.
        test_y: The labels or conditions of the test data.
        train_grey: The grey levels of the training images, 0 to 255, `uint8`, if training pixels are drawn again for
            every batch. `train_x` is then one draw, which the seed fixes. None if the pixels are fixed.
        log_density: A function that gives the exact log-density of `x` in nats, `(num,)`. None if it is unknown.

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

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, f'{split}_x')):,} {split}" for split in SPLITS)
        return f"data set {self.name}: {self.kind}, event shape {self.event_shape}\n{sizes} data"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.train_x.shape[1:])

    @property
    def train_mean(self) -> Tensor:
        """The mean of the training data per coordinate, `event_shape`. A decoder's output bias starts from it."""
        if self.train_grey is not None:
            return self.train_grey.sum(0) / (255.0 * len(self.train_grey))
        return self.train_x.mean(0)

    def arguments(self, split: str) -> tuple[Tensor, ...]:
        """Returns the arguments that a conditional model is called with: `(x, y)`, or `(x, y_1, y_2, ...)`.

        Args:
            split: `"train"`, `"validation"` or `"test"`.
        """
        x, y = getattr(self, f"{split}_x"), getattr(self, f"{split}_y")
        return (x, *y) if isinstance(y, tuple) else (x, y)

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
        changed: dict[str, Any] = {
            f"{s}_y": condition(getattr(self, f"{s}_x"), getattr(self, f"{s}_y")) for s in SPLITS
        }
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> "Dataset":
        """Returns the same data on `device`."""

        def move(value):
            if isinstance(value, tuple):
                return tuple(map(move, value))
            return value.to(device) if isinstance(value, Tensor) else value

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
        index = rows.to(self.train_x.device)
        x, *y = (part[index] for part in self.arguments("train"))
        if self.train_grey is not None:
            x = (binarize_grey if self.kind == "binary" else dequantize_grey)(self.train_grey[index])
        return x, *y
