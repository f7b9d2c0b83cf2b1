"""The prior of several stochastic layers."""

import itertools
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.common import InputError, require, require_sequence, require_sizes, shown
from pyrovae.models.gaussian_distributions import diagonal_normal
from pyrovae.models.networks import MLP
from pyrovae.models.priors.continuous import Standard
from pyrovae.models.priors.prior import Encode, Prior


class Layered(Prior):
    """A chain of Gaussian layers, p(z_L) ... p(z_2|z_3) p(z_1|z_2), for `posteriors.Layered`.

    The top layer is N(0, I), and each layer below it a diagonal Gaussian given the layer above. The sites are `"z1"`,
    `"z2"`, ...; the decoder takes z_1.

    Args:
        latent_dims: The dimensions of z_1, z_2, ..., as of the posterior.
        hidden: The hidden units of the network between z_l and z_l+1 for each l, from the bottom, as of the posterior.
        activation: The activation of these networks.

    Raises:
        InputError: If there are fewer than two layers, or `hidden` does not fit them.

    Example:
        >>> layers = (2, 3), ((8,),)
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> prior, posterior = pv.priors.Layered(*layers), pv.posteriors.Layered(*layers)
        >>> vae = pv.VAE((4,), **settings, posterior=posterior, prior=prior)
        >>> vae.sample(5).shape
        torch.Size([5, 4])
    """

    is_real_vector = False

    def __init__(self, latent_dims: Sequence[int], hidden: Sequence[Sequence[int]], activation: str = "relu") -> None:
        super().__init__()
        check_layers(latent_dims, hidden)
        pairs = zip(itertools.pairwise(latent_dims), hidden, strict=True)
        self.nets = nn.ModuleList(MLP((high,), (2, low), units[::-1], activation) for (low, high), units in pairs)
        self.top = Standard(latent_dims[-1])

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        raise InputError("a prior of several layers is a program and not one distribution")

    def sample(self, encode: Encode) -> Tensor:
        z = pyro.sample(f"z{len(self.nets) + 1}", self.top(encode))
        for layer, net in reversed(list(enumerate(self.nets, 1))):
            z = pyro.sample(f"z{layer}", diagonal_normal(net(z)))
        return z


def check_layers(latent_dims: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
    """Raises `InputError` unless there are two layers or more, and `hidden` has the units of a network between each."""
    require_sizes("latent_dims", latent_dims)
    require(len(latent_dims) >= 2, f"latent_dims must hold the sizes of two or more layers, got {tuple(latent_dims)}")
    nets = len(latent_dims) - 1
    require_sequence("hidden", hidden, "the units of each network")
    is_valid = len(hidden) == nets and all(isinstance(units, list | tuple) for units in hidden)
    rule = f"hidden must list the units of each of {nets} networks, such as ((100, 100),) for one; got {shown(hidden)}"
    require(is_valid, rule)
    for units in hidden:
        require_sizes("hidden", units)
