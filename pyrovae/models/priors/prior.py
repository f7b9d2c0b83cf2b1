"""The base class of priors."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyrovae.common import InputError
from pyrovae.models.param_store import Module

# The type of the function from x to q(z|x) that a prior is given, of use to priors like Vamp.
Encode = Callable[[Tensor], dist.TorchDistribution]


class Prior(Module):
    """The base class of priors: a subclass defines `forward`, which returns p(z).

    p(z) has an empty batch shape and the event shape of z. `encode` is the VAE's map from x to q(z|x), for priors that
    are made of posteriors, as `Vamp` is.

    Example:
        >>> class Laplace(pv.priors.Prior):
        ...     def forward(self, encode):
        ...         return pyro.distributions.Laplace(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5), prior=Laplace())
        >>> vae.sample(5).shape
        torch.Size([5, 3])
    """

    is_real_vector = True
    """False if z is discrete or has several sites, so that p(x) is not an integral over R^L."""

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        """Returns p(z), with an empty batch shape and the event shape of z; `encode` maps x to q(z|x)."""
        raise InputError(f"prior {type(self).__name__} must define forward(encode)")

    def sample(self, encode: Encode) -> Tensor:
        """Samples the model's latent sites within its data plate, and returns the z that the decoder takes.

        By default there is one site, `"z"`.
        """
        return pyro.sample("z", self(encode))

    def decoded(self, z: Tensor) -> Tensor:
        """Returns the decoder's input for a value `z` of the latent site: by default `z` itself."""
        return z
