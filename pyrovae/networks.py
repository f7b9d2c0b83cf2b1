"""Neural networks from tensors to tensors, for any number of leading batch dimensions. No Pyro here."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrovae.errors import require, require_choice, require_count

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}


class MLP(nn.Module):
    """A multilayer perceptron `(..., *in_shape) -> (..., *out_shape)`, with `hidden` units and one activation between.

    `MLP((1, 28, 28), (2, 20), hidden=(400,))` is the encoder of the 784-400-20 VAE, `MLP((20,), (1, 28, 28), (400,))`
    its decoder. The output layer is linear.
    """

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], hidden: Sequence[int], activation: str = "relu"
    ) -> None:
        super().__init__()
        require_choice("activation", activation, ACTIVATIONS)
        for units in hidden:
            require_count("hidden", units)
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        sizes = [math.prod(self.in_shape), *hidden]
        layers = []
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(sizes[-1], math.prod(self.out_shape))

    def forward(self, x: Tensor) -> Tensor:
        batch_shape = x.shape[: x.dim() - len(self.in_shape)]
        return self.output(self.layers(x.reshape(*batch_shape, -1))).reshape(*batch_shape, *self.out_shape)

    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Starts the output at `bias`, shape `out_shape` (Burda et al. 2016 start a decoder from the data's mean)."""
        require(bias.shape == self.out_shape, f"bias must have shape {self.out_shape}, got {tuple(bias.shape)}")
        self.output.bias.copy_(bias.flatten())
