"""Keeps what is built from a file from taking far more memory than the file has bytes."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.common.errors import require

SPARE = 1_000_000  # numbers, which take a few megabytes


class SizeLimit(TorchDispatchMode):
    """Within the block, tensors much larger than all of `tensors` together are refused before they are made.

    Args:
        name: The file's name in messages.
        tensors: What the file holds; anything else than tensors does not count.

    Raises:
        InputError: A size is beyond the limit.
    """

    def __init__(self, name: str, tensors: Iterable[object]) -> None:
        super().__init__()
        self.name = name
        self.held = sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for size in args:
            if isinstance(size, list | tuple) and size and all(type(number) is int for number in size):
                asked = math.prod(size)
                fits = asked <= 4 * self.held + SPARE
                require(fits, f"{self.name} would need a tensor of {asked:,} numbers, and holds {self.held:,}")
        return func(*args, **(kwargs or {}))
