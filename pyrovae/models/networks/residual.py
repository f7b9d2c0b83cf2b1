"""Residual encoders and decoders of images."""

from torch import nn

from pyrovae.models.networks.convolutional import ConvDecoder, ConvEncoder, ResidualBlock

NUM_BLOCKS = 2  # at each size of the image


class ResNetEncoder(ConvEncoder):
    """A `ConvEncoder` with two residual blocks after each of its convolutions of stride 2.

        block(x) = x + conv(act(conv(act(x))))

    A block starts as the identity, since the weights of its last convolution start at 0. No layer normalises over a
    batch, so that particles and data stay apart.

    Args:
        in_shape: The shape of an image, `(channels, height, width)`.
        out_shape: The shape of its output.
        hidden: The channels at each size; each size is half of the one before it.
        activation: As in `MLP`.
        num_features: The number of features that `forward` is given beside the images.

    Raises:
        InputError: If `in_shape` is not that of an image or too small, or `hidden` or `activation` is not valid.

    Example:
        >>> encoder = pv.ResNetEncoder((3, 32, 32), (2, 64))
        >>> encoder(torch.zeros(7, 3, 32, 32)).shape
        torch.Size([7, 2, 64])

    Source:
        Blocks with the activation first: He et al. 2016, arXiv:1603.05027; without normalisation in a VAE: Child 2021,
        arXiv:2011.10650.
    """

    def _between(self, channels: int, activation: str) -> list[nn.Module]:
        return [*_blocks(channels, activation), *super()._between(channels, activation)]


class ResNetDecoder(ConvDecoder):
    """The mirror of `ResNetEncoder`: a `ConvDecoder` with two residual blocks before each transposed convolution.

    Args:
        in_shape: The shape of an input, for example `(latent_dim,)`.
        out_shape: `(channels, height, width)`, or `(k, channels, height, width)` for k outputs per pixel.
        hidden: The channels at each size: the encoder's, reversed.
        activation: As in `MLP`.
        num_features: The number of features that `forward` is given beside the input.

    Raises:
        InputError: If `out_shape` is not that of an image or too small, or `hidden` or `activation` is not valid.

    Example:
        >>> decoder = pv.ResNetDecoder((64,), (3, 32, 32))
        >>> decoder(torch.zeros(50, 7, 64)).shape
        torch.Size([50, 7, 3, 32, 32])
    """

    def _between(self, channels: int, activation: str) -> list[nn.Module]:
        return [*_blocks(channels, activation), *super()._between(channels, activation)]


def _blocks(channels: int, activation: str) -> list[nn.Module]:
    return [ResidualBlock(channels, activation) for _ in range(NUM_BLOCKS)]
