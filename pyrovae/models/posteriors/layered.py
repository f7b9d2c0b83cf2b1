"""The posterior of several stochastic layers."""

import itertools
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.models import priors
from pyrovae.models.gaussian_distributions import diagonal_normal
from pyrovae.models.networks import MLP
from pyrovae.models.posteriors.posterior import Posterior


class Layered(Posterior):
    """A chain of diagonal Gaussian layers, q(z_1|x) q(z_2|z_1) ..., with the sites `"z1"`, `"z2"`, ...

    Args:
        latent_dims: The dimensions of z_1, which the decoder takes and which is the VAE's `latent_dim`, z_2, ...
        hidden: The hidden units of the network from z_l to z_l+1, for each l.
        activation: The activation of these networks.

    Raises:
        InputError: If there are fewer than two layers, or `hidden` does not fit them.

    Example:
        The two layers of Burda et al.:

        >>> settings = {"latent_dim": 100, "hidden": (200, 200), "likelihood": pv.Bernoulli(), "activation": "tanh"}
        >>> posterior = pv.posteriors.Layered((100, 50), ((100, 100),), "tanh")
        >>> vae = pv.VAE((1, 28, 28), **settings, posterior=posterior)
        >>> sorted(name for name in pyro.poutine.trace(vae.guide).get_trace(torch.zeros(2, 1, 28, 28)).stochastic_nodes)
        ['data', 'z1', 'z2']

    Source:
        Burda et al. 2016, arXiv:1509.00519.
    """

    def __init__(self, latent_dims: Sequence[int], hidden: Sequence[Sequence[int]], activation: str = "relu") -> None:
        priors.check_layers(latent_dims, hidden)
        super().__init__(latent_dims[0])
        self.latent_dims, self.hidden, self.activation = latent_dims, hidden, activation
        pairs = zip(itertools.pairwise(latent_dims), hidden, strict=True)
        self.nets = nn.ModuleList(MLP((low,), (2, high), units, activation) for (low, high), units in pairs)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Returns q(z_1|x)."""
        return diagonal_normal(outputs)

    def sample(self, q: dist.TorchDistribution) -> None:
        z = pyro.sample("z1", q)
        for layer, net in enumerate(self.nets, 2):
            z = pyro.sample(f"z{layer}", diagonal_normal(net(z)))

    def usual_prior(self) -> priors.Prior:
        return priors.Layered(self.latent_dims, self.hidden, self.activation)
