"""What of a call, and of torch's settings, decides which graph serves it."""

import torch
from torch import Tensor


def torch_settings() -> tuple:
    """Returns the part of torch's global state that decides what a program does."""
    autocast = [torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in ("cpu", "cuda")]
    return torch.get_default_dtype(), *autocast


def layouts(args: list) -> list:
    """Returns each tensor's layout and which other argument it is the same as; other arguments as they are."""
    places: dict[int, int] = {}
    return [
        (arg.shape, arg.stride(), arg.dtype, arg.device, arg.requires_grad, places.setdefault(id(arg), place))
        if isinstance(arg, Tensor) and arg.layout == torch.strided and not arg.is_nested
        else (type(arg), arg)
        for place, arg in enumerate(args)
    ]
