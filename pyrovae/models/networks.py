"""Neural networks from tensors to tensors, for any number of leading batch dimensions. No Pyro here."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrovae.common import require, require_choice, require_count
from pyrovae.models.modules import Module

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
    """A map `(..., *in_shape)`, and `(..., num_features)` of a condition, to `(..., *out_shape)`.

    Leading dimensions are any number, those of input and features broadcast against each other. `output_bias`, of
    shape `out_shape`, is added to a linear output layer.
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], num_features: int) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.num_features = tuple(in_shape), tuple(out_shape), num_features

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def _leading(self, x: Tensor) -> torch.Size:
        return x.shape[: x.dim() - len(self.in_shape)]

    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Starts the output at `bias`, shape `out_shape` (Burda et al. 2016 start a decoder from the data's mean)."""
        require(bias.shape == self.out_shape, f"bias must have shape {self.out_shape}, got {tuple(bias.shape)}")
        self.output_bias.copy_(bias.reshape(self.output_bias.shape))


class MLP(Network):
    """A multilayer perceptron with `hidden` units and one activation between; features are joined to its input.

    `MLP((1, 28, 28), (2, 20), hidden=(400,))` is the encoder of the 784-400-20 VAE, `MLP((20,), (1, 28, 28), (400,))`
    its decoder.
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
        _check(hidden, activation)
        sizes = [math.prod(self.in_shape) + num_features, *hidden]
        layers = []
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(sizes[-1], math.prod(self.out_shape))

    @property
    def output_bias(self) -> nn.Parameter:
        return self.output.bias

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        joined = join(x.reshape(*self._leading(x), -1), features)
        return self.output(self.layers(joined)).reshape(*joined.shape[:-1], *self.out_shape)


class ConvEncoder(Network):
    """Images `(channels, height, width)` through convolutions of stride 2, then, with the features, a linear layer.

    `hidden` are the channels after each: (32, 64) takes 1 x 28 x 28 to 64 x 7 x 7. Any size that can be halved that
    often and any number of channels will do.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden: Sequence[int] = (32, 64),
        activation: str = "relu",
        num_features: int = 0,
    ) -> None:
        super().__init__(in_shape, out_shape, num_features)
        _check(hidden, activation)
        sizes = halved(self.in_shape, len(hidden))
        layers = []
        for channels_in, channels_out in itertools.pairwise((self.in_shape[0], *hidden)):
            layers += [nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)
        channels = hidden[-1] if hidden else self.in_shape[0]
        self.output = nn.Linear(channels * math.prod(sizes[-1]) + num_features, math.prod(self.out_shape))
        _he_initialise(self)

    @property
    def output_bias(self) -> nn.Parameter:
        return self.output.bias

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        maps = self.layers(_channels_last(x.reshape(-1, *self.in_shape)))
        joined = join(maps.reshape(*self._leading(x), -1), features)
        return self.output(joined).reshape(*joined.shape[:-1], *self.out_shape)


class ConvDecoder(Network):
    """The mirror of `ConvEncoder`: a linear layer of input and features, then transposed convolutions of stride 2.

    `out_shape` is `(channels, height, width)`, or `(k, channels, height, width)` for k outputs per pixel. The output
    bias is one per pixel and not one per channel, so that a decoder can start from the data's mean image.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden: Sequence[int] = (64, 32),
        activation: str = "relu",
        num_features: int = 0,
    ) -> None:
        super().__init__(in_shape, out_shape, num_features)
        _check(hidden, activation)
        require(
            len(hidden) > 0, "hidden must have at least one number of channels for a convolutional decoder, got none"
        )
        sizes = halved(self.out_shape[-3:], len(hidden))[::-1]
        self.first_shape = (hidden[0], *sizes[0])
        self.input = nn.Linear(math.prod(self.in_shape) + num_features, math.prod(self.first_shape))
        layers = [ACTIVATIONS[activation]()]
        channels = (*hidden, math.prod(self.out_shape[:-2]))
        for (channels_in, channels_out), (size_in, size_out) in zip(
            itertools.pairwise(channels), itertools.pairwise(sizes), strict=True
        ):
            extra = tuple(after - 2 * before for before, after in zip(size_in, size_out, strict=True))
            last = channels_out is channels[-1] and len(layers) == 2 * len(hidden) - 1
            layers.append(nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1, output_padding=extra, bias=not last))
            layers.append(ACTIVATIONS[activation]())
        self.layers = nn.Sequential(*layers[:-1])
        self.output_bias = nn.Parameter(torch.zeros(self.out_shape))
        _he_initialise(self)

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        joined = join(x.reshape(*self._leading(x), -1), features)
        maps = self.layers(_channels_last(self.input(joined).reshape(-1, *self.first_shape)))
        return maps.reshape(*joined.shape[:-1], *self.out_shape) + self.output_bias


# Encoder and decoder by name; a decoder takes the encoder's `hidden` reversed.
NETWORKS = {"mlp": (MLP, MLP), "conv": (ConvEncoder, ConvDecoder)}


def join(x: Tensor, features: Tensor | None) -> Tensor:
    """`(..., n)` and `(..., m)` to `(..., n + m)`, leading dimensions broadcast."""
    if features is None:
        return x
    leading = torch.broadcast_shapes(x.shape[:-1], features.shape[:-1])
    return torch.cat((x.expand(*leading, -1), features.expand(*leading, -1)), -1)


def halved(shape: Sequence[int], times: int) -> list[tuple[int, int]]:
    """(height, width) of `(channels, height, width)`, and after each of so many halvings (rounded down)."""
    require(len(shape) == 3, f"convolutions take images (channels, height, width), got events of shape {tuple(shape)}")
    sizes = [(shape[1] >> k, shape[2] >> k) for k in range(times + 1)]
    require(
        min(sizes[-1]) > 0, f"hidden must be at most as often as {shape[1]} x {shape[2]} can be halved, got {times}"
    )
    return sizes


def _channels_last(maps: Tensor) -> Tensor:
    """The same maps as convolutions are fastest with, and then lay out what comes after: nearly twice on a CPU."""
    return maps.to(memory_format=torch.channels_last)


def _he_initialise(network: nn.Module) -> None:
    """Weights ~ N(0, 2 / fan_in), He et al. 2015 (arXiv:1502.01852), biases 0.

    At PyTorch's default, a sixth of that variance, several convolutional layers let so little of z through that a
    decoder which starts from the mean image never uses it: MNIST's 32 latents all collapse (-205 nats for -104).
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            fan_in = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):  # of kernel 4 and stride 2, a pixel sees a quarter
                fan_in = layer.weight.shape[0] * layer.weight[0, 0].numel() / 4
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _check(hidden: Sequence[int], activation: str) -> None:
    require_choice("activation", activation, ACTIVATIONS)
    for units in hidden:
        require_count("hidden", units)
