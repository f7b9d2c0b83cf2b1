"""The arguments of a pair, of any number and type: finds the tensors in them, changes them, checks their values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae.common import as_arguments, require, require_finite, require_finite_data, shown
from pyrovae.data import leaves_of, main_tensor, mapped
from pyrovae.models import VAE


def tensors_in(args: tuple) -> list[Tensor]:
    """Returns the tensors in the arguments, also those in lists, tuples, dicts and packed sequences."""
    return [tensor for tensor in map(main_tensor, leaves_of(args)) if isinstance(tensor, Tensor)]


def with_tensors(args: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the arguments with `change` of each tensor in its place; packed sequences stay as they are."""
    return mapped(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, args)


def changeable(args: tuple) -> list[Tensor]:
    """Returns the tensors in the arguments that `with_tensors` changes, in its order."""
    return [leaf for leaf in leaves_of(args) if isinstance(leaf, Tensor)]


def home_of(args: tuple) -> torch.device:
    """Returns the device of the first tensor in the arguments, where results belong; without any it is the CPU."""
    return next((tensor.device for tensor in tensors_in(args)), torch.device("cpu"))


def common_length(args: tuple) -> int | None:
    """Returns the length of all arguments if they are tensors of one length, and None if they are anything else."""
    lengths = {len(arg) if isinstance(arg, Tensor) and arg.dim() else None for arg in args}
    return lengths.pop() if len(lengths) == 1 else None


def arguments_of(vae: object, args: tuple) -> tuple:
    """Returns the arguments of a function of a VAE and its data, as the VAE takes them.

    Raises `InputError` if it is no VAE, or there are no data.
    """
    require_vae(vae)
    args = as_arguments(vae, args)
    require(len(args) > 0, "x must be given, got no data")
    return args


def require_vae(vae: object) -> None:
    """Raises `InputError` unless `vae` is a VAE itself, and no program of one or a model of another kind."""
    require(isinstance(vae, VAE), f"vae must be a pyrovae.VAE, got {shown(vae)}")


def check_args(model: Callable, args: tuple) -> None:
    """Raises `InputError` unless all floating-point tensors in the arguments are finite, and the first is not empty.

    In the first, NaN is a missing cell to a model that takes missing cells.
    """
    for index, arg in enumerate(args):
        for tensor in tensors_in((arg,)):
            if tensor.is_floating_point() and index == 0:
                require_finite_data(tensor, model)
            elif tensor.is_floating_point() and tensor.layout == torch.strided:
                require_finite("y", tensor)
    if args and isinstance(args[0], Tensor) and args[0].dim():
        require(len(args[0]) > 0, "x must hold at least one datum, got 0")
