"""Posteriors of real vectors z: Gaussians, their mixtures, flows, and the single point of an autoencoder."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import AffineTransform

from pyrovae.common import require_choice, require_size
from pyrovae.models.flows import FLOWS, FlowDistribution
from pyrovae.models.gaussian_distributions import diagonal_normal
from pyrovae.models.posteriors.posterior import Posterior


class Diagonal(Posterior):
    """The diagonal Gaussian q(z|x) = N(loc, diag(exp(log_variance))), from outputs `(loc, log_variance)`.

    Args:
        latent_dim: The number of elements of z, L.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1.

    Example:
        >>> posterior = pv.posteriors.Diagonal(2)
        >>> q = posterior(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        >>> q.mean, q.variance
        (tensor([ 1., -1.]), tensor([1., 1.]))
    """

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return diagonal_normal(outputs)


class FullCovariance(Posterior):
    """The Gaussian q(z|x) = N(loc, T T^T) with a full covariance, from outputs `(loc, r)`.

    T is lower triangular, with exp(0.5 r_ii) on its diagonal and r_ij below it.

    Args:
        latent_dim: The number of elements of z, L.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1.

    Example:
        >>> posterior = pv.posteriors.FullCovariance(2)
        >>> q = posterior(torch.tensor([[1.0, -1.0], [0.0, 0.0], [3.0, 0.0]]))  # loc, then the rows of r
        >>> q.covariance_matrix
        tensor([[ 1.,  3.],
                [ 3., 10.]])
    """

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (1 + self.latent_dim, self.latent_dim)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        loc, raw = outputs[..., 0, :], outputs[..., 1:, :]
        scale = (0.5 * raw.diagonal(dim1=-2, dim2=-1)).exp()
        return dist.MultivariateNormal(loc, scale_tril=raw.tril(-1) + torch.diag_embed(scale))


class Flow(Posterior):
    """A normalising flow, z = loc + exp(0.5 log_variance) f(e; features) with e ~ N(0, I).

    The encoder's output is `(loc, log_variance, features)` in one row. f is a `CouplingFlow` or an inverse
    `AutoregressiveFlow`, and starts as the identity. The density of a coupling flow is fast at every point. Choose it
    if z is weighed elsewhere than where it was drawn: for DReG, STL, annealed importance sampling and a VampPrior.

    Args:
        latent_dim: The number of elements of z, L.
        num_transforms: The number of layers of f.
        hidden: The units of each hidden layer of a layer's network.
        num_features: The number of features that the encoder gives to these networks.
        kind: `"coupling"` or `"autoregressive"`.

    Raises:
        InputError: If a size or `kind` is not valid, or L is 1 for an autoregressive flow.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((3,), **settings, posterior=pv.posteriors.Flow(2, num_transforms=2))
        >>> vae.encode(torch.randn(7, 3)).sample().shape
        torch.Size([7, 2])

    Source:
        Rezende and Mohamed 2015, arXiv:1505.05770; Durkan et al. 2019, arXiv:1906.04032; Kingma et al. 2016,
        arXiv:1606.04934.
    """

    def __init__(
        self,
        latent_dim: int,
        num_transforms: int = 4,
        hidden: Sequence[int] = (64,),
        num_features: int = 32,
        kind: str = "coupling",
    ) -> None:
        super().__init__(latent_dim)
        require_choice("kind", kind, FLOWS)
        require_size("num_features", num_features)
        self.num_features = num_features
        self.flow = FLOWS[kind](latent_dim, num_features, num_transforms, hidden)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (2 * self.latent_dim + self.num_features,)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        loc, log_variance, features = outputs.split((self.latent_dim, self.latent_dim, self.num_features), -1)
        noise = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        last = AffineTransform(loc, (0.5 * log_variance).exp(), event_dim=1, cache_size=1)
        return FlowDistribution(noise, [*self.flow(features), last])


class Mixture(Posterior):
    """The mixture q(z|x) = sum_k a_k N(loc_k, diag(exp(log_variance_k))) of S diagonal Gaussians.

    Each row of the outputs, `(num_components, 2 latent_dim + 1)`, is `(loc_k, log_variance_k, l_k)`; a = softmax(l).
    An ordinary draw has no `rsample`: `SIWAE` and `MISELBO` among the objectives draw from each component, with paths.

    Args:
        latent_dim: The number of elements of z, L.
        num_components: The number of Gaussians, S.

    Raises:
        InputError: If a size is not a whole number >= 1.

    Example:
        >>> posterior = pv.posteriors.Mixture(2, num_components=3)
        >>> q = posterior(torch.zeros(7, *posterior.output_shape))
        >>> q.mean.shape, q.mixture_distribution.probs[0]
        (torch.Size([7, 2]), tensor([0.3333, 0.3333, 0.3333]))

    Source:
        Morningstar et al. 2021, arXiv:2003.01687.
    """

    def __init__(self, latent_dim: int, num_components: int = 4) -> None:
        super().__init__(latent_dim)
        require_size("num_components", num_components)
        self.num_components = num_components

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.num_components, 2 * self.latent_dim + 1)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        components = diagonal_normal(outputs[..., :-1].unflatten(-1, (2, self.latent_dim)))
        return dist.MixtureSameFamily(dist.Categorical(logits=outputs[..., -1]), components)


class Point(Posterior):
    """The single point z = encoder(x): the VAE becomes a plain autoencoder, without KL and without log p(x).

    Args:
        latent_dim: The number of elements of z, L.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae, x = pv.VAE((3,), **settings, posterior="delta"), torch.randn(7, 3)
        >>> torch.equal(vae.encode(x).sample(), vae.encode(x).mean)
        True
    """

    has_density = False

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (1, self.latent_dim)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Delta(outputs.squeeze(-2), event_dim=1)
