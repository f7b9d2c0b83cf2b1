"""The arguments of one call of a pair: tensors and anything else, also in lists, tuples and dicts."""

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

Batch = tuple[Any, ...]  # the arguments of one call of a pair


def is_spread(batch: object) -> bool:
    """Returns True if the items of a batch are arguments, as those of a list or a tuple are."""
    return isinstance(batch, list | tuple) and not isinstance(batch, PackedSequence)


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Returns the value with `change` applied to everything in its lists, tuples and dicts."""
    if isinstance(value, dict):
        copied = copy.copy(value)
        copied.update((key, mapped(change, item)) for key, item in value.items())
        return copied
    if not is_spread(value):
        return change(value)
    items = [mapped(change, item) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def leaves_of(value: object) -> list[Any]:
    """Returns everything in the value's lists, tuples and dicts, in order."""
    found: list[Any] = []
    mapped(found.append, value)
    return found


def moved(value: Any, device: torch.device) -> Any:
    """Returns the value with all that has a `to` on the device: tensors, packed sequences."""
    return mapped(lambda leaf: leaf.to(device) if hasattr(leaf, "to") and not isinstance(leaf, type) else leaf, value)


def main_tensor(value: object) -> object:
    """Returns the data of a packed sequence, and anything else as it is."""
    return value.data if isinstance(value, PackedSequence) else value


def positions(*programs: Callable) -> tuple[int, float]:
    """Returns how many positional arguments the programs need, and how many all of them take."""
    needed, taken = 0, math.inf
    for program in programs:
        try:
            function = program.forward if isinstance(program, nn.Module) else program
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # a function that does not say
            continue
        known = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        needed = max(needed, sum(p.default is p.empty for p in known))
        if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            taken = min(taken, len(known))
    return needed, taken
