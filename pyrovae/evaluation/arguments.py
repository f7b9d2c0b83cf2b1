"""The arguments of a pair, of any number and type: finds the tensors in them, changes them, checks their values."""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyrovae.common import require, require_finite


def tensors_in(value: object) -> list[Tensor]:
    """Returns the tensors in a value, also those in lists, tuples, dicts and packed sequences, however deep."""
    match value:
        case Tensor():
            return [value]
        case PackedSequence():
            return [value.data]
        case dict():
            items = list(value.values())
        case list() | tuple():
            items = list(value)
        case _:
            return []
    return [tensor for item in items for tensor in tensors_in(item)]


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the value with `change` of each tensor in its place; packed sequences stay as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, PackedSequence) or not tensors_in(value):
        return value
    if isinstance(value, dict):
        result = copy(value)
        result.update({key: with_tensors(item, change) for key, item in value.items()})
        return result
    items = [with_tensors(item, change) for item in value]
    return (
        type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    )  # a named tuple takes them one by one


def changeable(args: tuple) -> list[Tensor]:
    """Returns the tensors in the arguments that `with_tensors` changes, in its order."""
    found: list[Tensor] = []
    with_tensors(args, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def moved(args: tuple, device: torch.device) -> tuple:
    """Returns the arguments with their tensors on a device."""

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, PackedSequence) else with_tensors(value, lambda t: t.to(device))

    return tuple(map(move, args))


def home_of(args: tuple) -> torch.device:
    """Returns the device of the first tensor in the arguments, where results belong; without any it is the CPU."""
    return next((tensor.device for tensor in tensors_in(args)), torch.device("cpu"))


def common_length(args: tuple) -> int | None:
    """Returns the length of all arguments if they are tensors of one length, and None if they are anything else."""
    lengths = {len(arg) if isinstance(arg, Tensor) and arg.dim() else None for arg in args}
    return lengths.pop() if len(lengths) == 1 else None


def check_args(args: tuple) -> None:
    """Raises `InputError` unless all floating-point tensors in the arguments are finite, and the first is not empty."""
    for index, arg in enumerate(args):
        for tensor in tensors_in(arg):
            if tensor.is_floating_point() and (index == 0 or tensor.layout == torch.strided):
                require_finite("x" if index == 0 else "y", tensor)
    if args and isinstance(args[0], Tensor) and args[0].dim():
        require(len(args[0]) > 0, "x must hold at least one datum, got 0")
