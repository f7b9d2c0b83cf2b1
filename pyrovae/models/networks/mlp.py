"""The multilayer perceptron."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyrovae.models.networks.network import ACTIVATIONS, Network, check_layers, join


class MLP(Network):
    """A multilayer perceptron: linear layers with an activation between them.

    It maps `x` `(..., *in_shape)` to `(..., *out_shape)`. Features of a condition, `(..., num_features)`, are joined to
    the flattened input.

    Args:
        in_shape: The shape of an input without leading dimensions.
        out_shape: The shape of its output.
        hidden: The units of each hidden layer; none makes the network linear.
        activation: One of relu, tanh, softplus, elu, gelu, silu, leaky_relu.
        num_features: The number of features that `forward` is given beside x.

    Raises:
        InputError: If `activation` is unknown, or a number of units is not a whole number >= 1.

    Example:
        The encoder and the decoder of a 784-400-20 VAE:

        >>> encoder = pv.MLP((1, 28, 28), (2, 20), hidden=(400,))
        >>> decoder = pv.MLP((20,), (1, 28, 28), hidden=(400,))
        >>> encoder(torch.zeros(7, 1, 28, 28)).shape
        torch.Size([7, 2, 20])
        >>> decoder(torch.zeros(50, 7, 20)).shape
        torch.Size([50, 7, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden: Sequence[int],
        activation: str = "relu",
        num_features: int = 0,
    ) -> None:
        super().__init__(in_shape, out_shape, num_features)
        check_layers(hidden, activation)
        sizes = [math.prod(self.in_shape) + num_features, *hidden]
        layers = []
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(sizes[-1], math.prod(self.out_shape))

    @property
    def output_bias(self) -> nn.Parameter:
        """The bias of the last layer, which `data_mean` of the VAE sets in a decoder."""
        return self.output.bias

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        joined = join(x.reshape(*self._leading(x), -1), features)
        return self.output(self.layers(joined)).reshape(*joined.shape[:-1], *self.out_shape)
