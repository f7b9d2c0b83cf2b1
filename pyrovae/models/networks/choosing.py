"""The encoder and the decoder of a model: built in, by name, or the user's own."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from pyrovae.common import if_given, require, require_choice, require_sizes, shown
from pyrovae.models.networks.convolutional import ConvDecoder, ConvEncoder
from pyrovae.models.networks.mlp import MLP
from pyrovae.models.networks.network import Network
from pyrovae.models.networks.own import Maker, own_network
from pyrovae.models.networks.residual import ResNetDecoder, ResNetEncoder

# Encoder and decoder by name; a decoder takes the encoder's `hidden` reversed.
NETWORKS: dict[str, tuple[Callable[..., Network], Callable[..., Network]]] = {
    "mlp": (MLP, MLP),
    "conv": (ConvEncoder, ConvDecoder),
    "resnet": (ResNetEncoder, ResNetDecoder),
}

Shapes = tuple[Sequence[int], Sequence[int]]  # of the input and of the output for one datum


def encoder_and_decoder(
    encoder: nn.Module | Maker | None,
    decoder: nn.Module | Maker | None,
    *,
    encoder_shapes: Shapes,
    decoder_shapes: Shapes,
    network: str,
    hidden: Sequence[int] | None,
    activation: str,
    num_features: int,
) -> tuple[nn.Module, nn.Module]:
    """Returns the networks that are given, and for None those that `network`, `hidden` and `activation` name."""
    require_choice("network", network, NETWORKS)
    if_given(require_sizes, "hidden", hidden)
    if encoder is None or decoder is None:
        require(hidden is not None, f"hidden must list the hidden units or channels of the {network}, got none")
    else:
        settings = {"hidden": (hidden, None), "network": (network, "mlp"), "activation": (activation, "relu")}
        for name, (value, usual) in settings.items():
            rule = f"{name} must be left out with an encoder and a decoder of your own, got {shown(value)}"
            require(value is usual or (isinstance(value, str) and value == usual), rule)
    built_in = [partial(kind, activation=activation, num_features=num_features) for kind in NETWORKS[network]]
    units = tuple(hidden or ())
    made = []
    for role, given, shapes, make, sizes in (
        ("encoder", encoder, encoder_shapes, built_in[0], units),
        ("decoder", decoder, decoder_shapes, built_in[1], units[::-1]),
    ):
        made.append(make(*shapes, sizes) if given is None else own_network(role, given, *shapes, num_features))
    return made[0], made[1]
