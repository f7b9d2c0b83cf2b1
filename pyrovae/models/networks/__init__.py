"""Neural networks from tensors to tensors, for any number of leading batch dimensions; they know nothing of Pyro."""

from pyrovae.models.networks.choosing import NETWORKS, encoder_and_decoder
from pyrovae.models.networks.convolutional import ConvDecoder, ConvEncoder, halved_sizes
from pyrovae.models.networks.mlp import MLP
from pyrovae.models.networks.network import ACTIVATIONS, Network
from pyrovae.models.networks.own import Maker, run_network, set_output_bias
from pyrovae.models.networks.residual import ResNetDecoder, ResNetEncoder

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "NETWORKS",
    "ConvDecoder",
    "ConvEncoder",
    "Maker",
    "Network",
    "ResNetDecoder",
    "ResNetEncoder",
    "encoder_and_decoder",
    "halved_sizes",
    "run_network",
    "set_output_bias",
]
