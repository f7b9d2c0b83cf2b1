"""Networks of the user's own: what they are given and must return, which is tried out before anything is trained."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from pyrovae.common import InputError, evaluation_mode, first_line, fixed_generators, require, require_callable
from pyrovae.models.networks.network import Network

Maker = Callable[..., nn.Module]
NUM_DATA = 3  # of the trial run


def own_network(
    role: str, given: nn.Module | Maker, in_shape: Sequence[int], out_shape: Sequence[int], num_features: int
) -> nn.Module:
    """Returns the module `given` itself, or the one that a factory makes, after a trial run in evaluation mode.

    A factory is called as the built-in networks are: `given(in_shape, out_shape)`, and with conditions also
    `num_features=`. Raises `InputError` if the network cannot be `role`, `"encoder"` or `"decoder"`.
    """
    network = cast(nn.Module, given)
    if not isinstance(given, nn.Module):
        require_callable(role, given, "a module, or a function that makes one")
        features = {"num_features": num_features} if num_features else {}
        try:
            network = given(tuple(in_shape), tuple(out_shape), **features)
        except TypeError as error:
            called = ", ".join(["in_shape", "out_shape", *(f"{name}=..." for name in features)])
            raise InputError(f"{role} must be a module, or make one from ({called}): {first_line(error)}") from error
        require(isinstance(network, nn.Module), f"{role} must make a module, got {type(network).__name__}")
    _check_network(role, network, in_shape, out_shape, num_features)
    return network


def run_network(
    network: nn.Module, x: Tensor, features: Tensor | None, in_shape: Sequence[int], out_shape: Sequence[int]
) -> Tensor:
    """Returns the outputs, `(..., *out_shape)`, for x `(..., *in_shape)` and features `(..., num_features)` or None.

    A network of the user's own sees all leading dimensions as one, which is all that convolutions and batch
    normalisation can take.
    """
    if isinstance(network, Network) and (network.in_shape, network.out_shape) == (tuple(in_shape), tuple(out_shape)):
        return network(x, features)
    leading = x.shape[: x.dim() - len(in_shape)]
    if features is None:
        inputs = [x.reshape(leading.numel(), *in_shape)]
    else:
        leading = torch.broadcast_shapes(leading, features.shape[:-1])
        inputs = [x.expand(*leading, *in_shape).reshape(leading.numel(), *in_shape)]
        inputs.append(features.expand(*leading, -1).reshape(leading.numel(), -1).to(x.dtype))
    if leading[:-1].numel() > 1:
        _check_apart(network)
    return network(*inputs).reshape(*leading, *out_shape)


def _check_apart(network: nn.Module) -> None:
    """Raises `RuntimeError` if batch normalisation would mix particles, so that they are run one after another."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise RuntimeError(f"{type(module).__name__} normalises over particles, too")


@torch.no_grad()
def set_output_bias(decoder: Any, bias: Tensor) -> None:
    """Makes the outputs of `decoder` start at `bias`, which has the likelihood's output shape.

    A decoder of the user's own needs a method `set_output_bias`, or an attribute `output_bias` of as many elements.
    """
    own = getattr(decoder, "output_bias", None)
    if hasattr(decoder, "set_output_bias"):
        decoder.set_output_bias(bias)
    elif isinstance(own, Tensor) and own.numel() == bias.numel():
        own.copy_(bias.reshape(own.shape))
    else:
        raise InputError(
            f"data_mean needs a decoder with set_output_bias(bias), or output_bias of shape {tuple(bias.shape)}; "
            f"{type(decoder).__name__} has neither"
        )


def _check_network(
    role: str, network: nn.Module, in_shape: Sequence[int], out_shape: Sequence[int], num_features: int
) -> None:
    """Raises `InputError` unless the network takes a few data, and returns what it must of each."""
    parameters, dtype = list(network.parameters()), torch.get_default_dtype()
    for parameter in parameters:
        same = not parameter.is_floating_point() or parameter.dtype == dtype
        rule = f"{role} must have parameters of {dtype}, the default, got {parameter.dtype}"
        require(same, f"{rule}; convert the whole VAE when it is made")
    device = parameters[0].device if parameters else None
    inputs = [torch.zeros(NUM_DATA, *in_shape, device=device)]
    if num_features:
        inputs.append(torch.zeros(NUM_DATA, num_features, device=device))
    # A lazy module draws its parameters in its first run, and they are to be the caller's draws.
    draws = nullcontext() if any(map(is_lazy, parameters)) else fixed_generators(0)
    try:
        with evaluation_mode(network), torch.no_grad(), draws:
            outputs = network(*inputs)
    except Exception as error:
        taken = " and features ".join(_shown(part.shape) for part in inputs)
        found = f"{type(network).__name__} raises {type(error).__name__}: {first_line(error)}"
        raise InputError(f"{role} must take {'x' if role == 'encoder' else 'z'} {taken}, and {found}") from error
    shape, flat = (NUM_DATA, *out_shape), (NUM_DATA, torch.Size(out_shape).numel())
    rule = f"{role} must return a tensor {_shown(shape)}" + (f" or {_shown(flat)}" if flat != shape else "")
    if not isinstance(outputs, Tensor):
        hint = "; torch.stack((loc, log_variance), -2) makes one" if isinstance(outputs, tuple) else ""
        raise InputError(f"{rule}, got a {type(outputs).__name__}{hint}")
    require(outputs.shape in (shape, flat), f"{rule}, got {_shown(outputs.shape)}")
    require(outputs.is_floating_point(), f"{rule} of floating-point numbers, got {outputs.dtype}")


def _shown(shape: Sequence[int]) -> str:
    first = ["batch"] if shape[:1] == (NUM_DATA,) else [str(size) for size in shape[:1]]
    return f"({', '.join([*first, *map(str, shape[1:])])})"
