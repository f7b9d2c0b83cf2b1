"""Convolutional encoders and decoders of images of any size."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrovae.common import require
from pyrovae.models.networks.network import ACTIVATIONS, Network, check_layers, join


class ConvEncoder(Network):
    """A convolutional encoder: convolutions of stride 2, then a linear layer that also takes the features.

    It takes images of any number of channels and any size that can be halved once per convolution. The default takes
    1 x 28 x 28 to 64 x 7 x 7 before the linear layer.

    Args:
        in_shape: The shape of an image, `(channels, height, width)`.
        out_shape: The shape of its output.
        hidden: The channels after each convolution.
        activation: As in `MLP`.
        num_features: The number of features that `forward` is given beside the images.

    Raises:
        InputError: If `in_shape` is not that of an image or too small, or `hidden` or `activation` is not valid.

    Example:
        >>> encoder = pv.ConvEncoder((1, 28, 28), (2, 20))
        >>> encoder(torch.zeros(7, 1, 28, 28)).shape
        torch.Size([7, 2, 20])
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
        check_layers(hidden, activation)
        sizes = halved_sizes(self.in_shape, len(hidden))
        layers: list[nn.Module] = []
        for channels_in, channels_out in itertools.pairwise((self.in_shape[0], *hidden)):
            layers.append(nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1))
            layers += self._between(channels_out, activation)
        self.layers = nn.Sequential(*layers)
        channels = hidden[-1] if hidden else self.in_shape[0]
        self.output = nn.Linear(channels * math.prod(sizes[-1]) + num_features, math.prod(self.out_shape))
        _he_initialise(self)

    def _between(self, channels: int, activation: str) -> list[nn.Module]:
        """Returns the layers between two convolutions of stride 2."""
        return [ACTIVATIONS[activation]()]

    @property
    def output_bias(self) -> nn.Parameter:
        """The bias of the last layer, which `data_mean` of the VAE sets in a decoder."""
        return self.output.bias

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        maps = self.layers(_channels_last(x.reshape(-1, *self.in_shape)))
        joined = join(maps.reshape(*self._leading(x), -1), features)
        return self.output(joined).reshape(*joined.shape[:-1], *self.out_shape)


class ConvDecoder(Network):
    """The mirror of `ConvEncoder`: a linear layer of input and features, then transposed convolutions of stride 2.

    The output bias has one element per pixel and not one per channel, so that the decoder can start from the mean image
    of the data.

    Args:
        in_shape: The shape of an input, for example `(latent_dim,)`.
        out_shape: `(channels, height, width)`, or `(k, channels, height, width)` for k outputs per pixel.
        hidden: The channels before each transposed convolution: the encoder's, reversed.
        activation: As in `MLP`.
        num_features: The number of features that `forward` is given beside the input.

    Raises:
        InputError: If `out_shape` is not that of an image or too small, or `hidden` or `activation` is not valid.

    Example:
        >>> decoder = pv.ConvDecoder((20,), (1, 28, 28))
        >>> decoder(torch.zeros(50, 7, 20)).shape
        torch.Size([50, 7, 1, 28, 28])
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
        check_layers(hidden, activation)
        rule = "hidden must have at least one number of channels for a convolutional decoder, got none"
        require(len(hidden) > 0, rule)
        sizes = halved_sizes(self.out_shape[-3:], len(hidden))[::-1]
        self.first_shape = (hidden[0], *sizes[0])
        self.input = nn.Linear(math.prod(self.in_shape) + num_features, math.prod(self.first_shape))
        layers: list[nn.Module] = []
        channels = (*hidden, math.prod(self.out_shape[:-2]))
        pairs = zip(itertools.pairwise(channels), itertools.pairwise(sizes), strict=True)
        for index, ((channels_in, channels_out), (size_in, size_out)) in enumerate(pairs, 1):
            extra, has_bias = (size_out[0] - 2 * size_in[0], size_out[1] - 2 * size_in[1]), index < len(hidden)
            layers += self._between(channels_in, activation)
            layers.append(nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1, output_padding=extra, bias=has_bias))
        self.layers = nn.Sequential(*layers)
        self.output_bias = nn.Parameter(torch.zeros(self.out_shape))
        _he_initialise(self)

    def _between(self, channels: int, activation: str) -> list[nn.Module]:
        """Returns the layers between two convolutions of stride 2."""
        return [ACTIVATIONS[activation]()]

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        joined = join(x.reshape(*self._leading(x), -1), features)
        maps = self.layers(_channels_last(self.input(joined).reshape(-1, *self.first_shape)))
        return maps.reshape(*joined.shape[:-1], *self.out_shape) + self.output_bias


class ResidualBlock(nn.Module):
    """Returns x + conv(act(conv(act(x)))), the same at the start. Nothing normalises, so that no datum sees another."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.activation(self.first(self.activation(x))))


def halved_sizes(shape: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Returns (height, width) of an image `(channels, height, width)`, and after each of `times` halvings.

    Halves are rounded down. Raises `InputError` if `shape` is not that of an image, or nothing would be left of it.
    """
    require(len(shape) == 3, f"convolutions take images (channels, height, width), got events of shape {tuple(shape)}")
    height, width = shape[1:]
    most = min(height, width).bit_length() - 1
    require(times <= most, f"hidden must have at most {most} layers for images of {height} x {width}, got {times}")
    return [(height >> k, width >> k) for k in range(times + 1)]


def _channels_last(maps: Tensor) -> Tensor:
    """Returns the same maps in the memory format in which convolutions are nearly twice as fast on a CPU."""
    return maps.to(memory_format=torch.channels_last)


def _he_initialise(network: nn.Module) -> None:
    """Draws weights from N(0, 2 / fan_in) and sets biases to 0, as He et al. 2015 (arXiv:1502.01852).

    PyTorch's default has a sixth of that variance. With several convolutional layers so little of z then reaches the
    output that a decoder which starts from the mean image never learns to use z: on MNIST all 32 latents collapse, at
    -205 nats instead of -104.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            fan_in: float = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):  # with kernel 4 and stride 2, a pixel sees a quarter of it
                fan_in = layer.weight.shape[0] * layer.weight[0, 0].numel() / 4
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            nn.init.zeros_(block.last.weight)
