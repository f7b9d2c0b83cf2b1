"""The base class of posteriors."""

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyrovae.common import InputError, require_size
from pyrovae.models import priors
from pyrovae.models.param_store import Module


class Posterior(Module):
    """The base class of posteriors: a subclass defines `forward`, from the encoder's output to q(z|x).

    The encoder's output has shape `(..., *output_shape)` and q(z|x) the event shape `latent_shape`. By default
    `latent_shape` is `(latent_dim,)` and `output_shape` `(2, latent_dim)`, two numbers for each element of z.

    Args:
        latent_dim: The number of elements of z, L.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1.

    Example:
        >>> class Student(pv.posteriors.Posterior):
        ...     def forward(self, outputs):
        ...         loc, log_scale = outputs.unbind(-2)
        ...         return pyro.distributions.StudentT(5.0, loc, log_scale.exp()).to_event(1)
        >>> vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5), posterior=Student(2))
        >>> vae.encode(torch.randn(7, 3)).sample().shape
        torch.Size([7, 2])
    """

    has_density = True
    """False if q is a single point: z is then a code, and there is no KL and no log p(x)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        require_size("latent_dim", latent_dim)
        self.latent_dim = latent_dim

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of z."""
        return (self.latent_dim,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the encoder's output for one datum."""
        return (2, self.latent_dim)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """Returns q(z|x), with event shape `latent_shape`, for the encoder's output, `(..., *output_shape)`."""
        raise InputError(f"posterior {type(self).__name__} must define forward(outputs)")

    def usual_prior(self) -> priors.Prior:
        """Returns the prior of a VAE that is given none: by default N(0, I)."""
        return priors.Standard(self.latent_dim)

    def sample(self, q: dist.TorchDistribution) -> None:
        """Samples the guide's latent sites within its data plate from `q`, which `forward` returned.

        By default there is one site, `"z"`.
        """
        pyro.sample("z", q)
