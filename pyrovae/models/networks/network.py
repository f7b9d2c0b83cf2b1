"""The base class of the built-in networks: tensors to tensors, for any number of leading batch dimensions."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pyrovae.common import require, require_choice, require_shape, require_size, require_sizes
from pyrovae.models.param_store import Module

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}


class Network(Module):
    """The base class of networks: maps `(..., *in_shape)` and features `(..., num_features)` to `(..., *out_shape)`.

    Input and features may have any leading dimensions, which broadcast against each other. `output_bias`, with as many
    elements as `out_shape`, is added to a linear output layer.
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], num_features: int) -> None:
        super().__init__()
        require_shape("in_shape", in_shape, 0)
        require_shape("out_shape", out_shape)
        require_size("num_features", num_features, 0)
        self.in_shape, self.out_shape, self.num_features = tuple(in_shape), tuple(out_shape), num_features

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Returns the output, `(..., *out_shape)`, for `(..., *in_shape)` and the features of the conditions if any."""
        raise NotImplementedError

    def _leading(self, x: Tensor) -> torch.Size:
        return x.shape[: x.dim() - len(self.in_shape)]

    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Makes the output start at `bias`, of shape `out_shape`.

        Burda et al. 2016 (arXiv:1509.00519) start a decoder from the mean of the data in this way.
        """
        require(bias.shape == self.out_shape, f"bias must have shape {self.out_shape}, got {tuple(bias.shape)}")
        own = cast(Tensor, self.output_bias)  # a parameter of a subclass, or that of one of its layers
        own.copy_(bias.reshape(own.shape))


def join(x: Tensor, features: Tensor | None) -> Tensor:
    """Returns inputs `(..., n)` and features `(..., m)` side by side, `(..., n + m)`; leading dimensions broadcast."""
    if features is None:
        return x
    leading = torch.broadcast_shapes(x.shape[:-1], features.shape[:-1])
    return torch.cat((x.expand(*leading, -1), features.expand(*leading, -1)), -1)


def check_layers(hidden: Sequence[int], activation: str) -> None:
    require_choice("activation", activation, ACTIVATIONS)
    require_sizes("hidden", hidden)
