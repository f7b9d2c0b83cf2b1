"""The device that work runs on: chosen by name, of this worker process, or of a model's parameters."""

import os
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pyrovae.common.errors import InputError, require, shown


def choose_device(device: str | torch.device) -> torch.device:
    """Returns the device of this name; `"auto"` is a GPU if there is one, else the CPU.

    Raises `InputError` if torch cannot use the device here.
    """
    rule = "device must be auto or one that torch can use here"
    require(isinstance(device, str | torch.device), f"{rule}, got {shown(device)}")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings(action="ignore"):  # of names that torch will give up
            chosen = torch.device(device)
            torch.empty(1, device=chosen).sum().item()
    except Exception as error:  # torch knows names of devices whose own packages may be missing, or fail as they like
        raise InputError(f"{rule}, got {shown(str(device))}") from error
    return chosen


def device_of_worker(device: str) -> str:
    """Returns the name of this process's own GPU if `device` is `"auto"` under torchrun, else `device`.

    Without it all processes on one machine would take the first GPU.
    """
    if device == "auto" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device


def device_of(model: Callable, args: Iterable[object]) -> torch.device:
    """Returns the device of the model's parameters if it is a module or a module's method, else that of the data.

    Without a tensor among the arguments it is the CPU.
    """
    owner = getattr(model, "__self__", model)
    parameter = next(owner.parameters(), None) if isinstance(owner, torch.nn.Module) else None
    if parameter is not None:
        return parameter.device
    return next((arg.device for arg in args if isinstance(arg, Tensor)), torch.device("cpu"))


def on_device_of(model: Callable, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns the tensors on the device of the model."""
    device = device_of(model, args)
    return tuple(arg.to(device) for arg in args)
