"""Priors of real vectors z: the standard Gaussian, mixtures and flows."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraint_registry import biject_to

from pyrovae.common import require, require_choice, require_finite, require_size
from pyrovae.models.flows import FLOWS, FlowDistribution
from pyrovae.models.gaussian_distributions import IsotropicNormal, diagonal_normal, mixture_of
from pyrovae.models.priors.prior import Encode, Prior

# What the values of the pseudo-inputs of a Vamp prior may be, by name.
CONSTRAINTS = {"real": constraints.real, "unit_interval": constraints.unit_interval}


class Standard(Prior):
    """The standard Gaussian prior p(z) = N(0, I).

    Args:
        latent_dim: The number of elements of z, L.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((3,), **settings, prior=pv.priors.Standard(2))  # or prior="standard"
        >>> vae.prior.mean
        tensor([0., 0.])
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        require_size("latent_dim", latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("log_scale", torch.zeros(()), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return IsotropicNormal(self.loc, self.log_scale).to_event(1)


class Mixture(Prior):
    """A mixture of Gaussians, p(z) = sum_c w_c N(loc_c, diag(exp(log_variance_c))), with all parameters learned.

    The weights start equal, the locations at draws of N(0, I), and the variances at 1.

    Args:
        latent_dim: The number of elements of z, L.
        num_components: The number of Gaussians.

    Raises:
        InputError: If a size is not a whole number >= 1.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((3,), **settings, prior=pv.priors.Mixture(2, num_components=20))
        >>> vae.prior_family.loc.shape
        torch.Size([20, 2])
    """

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        require_size("latent_dim", latent_dim)
        require_size("num_components", num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_variance = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        components = diagonal_normal(torch.stack((self.loc, self.log_variance), -2))
        return mixture_of(dist.Categorical(logits=self.logits), components)


class Vamp(Prior):
    """The VampPrior, p(z) = 1/C sum_c q(z|u_c): a mixture of the posteriors of learned pseudo-inputs u_c.

    The density at one point takes C densities of q, which is little work for a diagonal Gaussian and much for a flow.

    Args:
        pseudo_inputs: The values that the u_c start from, `(C, *event_shape)`, for example training data.
        constraint: `"real"`, or `"unit_interval"` to keep the u_c between 0 and 1. They then start no closer to either
            end than 0.01.

    Raises:
        InputError: If `pseudo_inputs` has fewer than two dimensions or a value that is not finite, or `constraint` is
            unknown.

    Example:
        >>> x = torch.randn(100, 3)
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((3,), **settings, prior=pv.priors.Vamp(x[:20]))
        >>> torch.equal(vae.prior_family.pseudo_inputs, x[:20])
        True

    Source:
        Tomczak and Welling 2018, arXiv:1705.07120.
    """

    def __init__(self, pseudo_inputs: Tensor, constraint: str = "real") -> None:
        super().__init__()
        require_finite("pseudo_inputs", pseudo_inputs)
        require(pseudo_inputs.dim() >= 2, f"pseudo_inputs must have shape (C, *event_shape), got {pseudo_inputs.shape}")
        require_choice("constraint", constraint, CONSTRAINTS)
        self.constraint = constraint
        if constraint == "unit_interval":
            pseudo_inputs = pseudo_inputs.clamp(0.01, 0.99)
        self.unconstrained = nn.Parameter(biject_to(CONSTRAINTS[constraint]).inv(pseudo_inputs).clone())

    @property
    def pseudo_inputs(self) -> Tensor:
        """The u_c, `(C, *event_shape)`."""
        return biject_to(CONSTRAINTS[self.constraint])(self.unconstrained)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        posteriors = encode(self.pseudo_inputs)
        weights = dist.Categorical(logits=self.unconstrained.new_zeros(len(self.unconstrained)))
        return mixture_of(weights, posteriors)


class Flow(Prior):
    """A normalising flow, z = f(e) with e ~ N(0, I) and f as in `posteriors.Flow`; f starts as the identity.

    Args:
        latent_dim: The number of elements of z, L.
        num_transforms: The number of layers of f.
        hidden: The units of each hidden layer of a layer's network.
        kind: `"coupling"` or `"autoregressive"`.

    Raises:
        InputError: If a size or `kind` is not valid, or L is 1 for an autoregressive flow.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((3,), **settings, prior=pv.priors.Flow(2))
        >>> z = torch.tensor([0.3, -0.2])
        >>> torch.allclose(vae.prior.log_prob(z), pv.priors.Standard(2)(vae.encode).log_prob(z))  # not trained yet
        True

    Source:
        See `posteriors.Flow`.
    """

    loc: Tensor

    def __init__(
        self, latent_dim: int, num_transforms: int = 4, hidden: Sequence[int] = (64,), kind: str = "coupling"
    ) -> None:
        super().__init__()
        require_size("latent_dim", latent_dim)
        require_choice("kind", kind, FLOWS)
        self.flow = FLOWS[kind](latent_dim, 1, num_transforms, hidden)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        noise = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        return FlowDistribution(noise, self.flow(self.loc.new_ones(1)))
