"""Priors of codes z, of bits or of classes, and of their relaxations; each is uniform."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.common import require_number, require_size
from pyrovae.models.code_distributions import LogitRelaxedBernoulli, LogitRelaxedOneHot
from pyrovae.models.priors.prior import Encode, Prior


class Bernoulli(Prior):
    """Independent fair bits: each z_j is 1 with probability 1/2.

    Args:
        latent_dim: The number of bits, L.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1.

    Example:
        >>> vae = pv.VAE((3,), latent_dim=4, hidden=(8,), likelihood=pv.Gaussian(0.5), posterior="bernoulli")
        >>> vae.prior.mean  # this prior, by default
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    is_real_vector = False
    logits: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        require_size("latent_dim", latent_dim)
        self.register_buffer("logits", torch.zeros(latent_dim), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.logits).to_event(1)


class Categorical(Prior):
    """Independent classes: each z_j is a one-hot vector of `num_classes`, all equally probable.

    Args:
        latent_dim: The number of one-hot vectors, L.
        num_classes: The length of each.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1, or `num_classes` one >= 2.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((3,), **settings, posterior=pv.posteriors.Categorical(2, num_classes=4))
        >>> vae.prior.sample().shape  # this prior, by default
        torch.Size([2, 4])
    """

    is_real_vector = False
    logits: Tensor

    def __init__(self, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        require_size("latent_dim", latent_dim)
        require_size("num_classes", num_classes, 2)
        self.register_buffer("logits", torch.zeros(latent_dim, num_classes), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return dist.OneHotCategorical(logits=self.logits).to_event(1)


class RelaxedBernoulli(Prior):
    """Independent relaxed fair bits between 0 and 1; z holds their logits, as in `posteriors.RelaxedBernoulli`.

    Args:
        latent_dim: The number of bits, L.
        temperature: A positive number; it may differ from the posterior's.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1, or `temperature` is not positive.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((3,), **settings, posterior="relaxed_bernoulli", prior=pv.priors.RelaxedBernoulli(2, 0.8))
        >>> z = torch.tensor([0.0, 30.0])
        >>> vae.prior_family.decoded(z)
        tensor([0.5000, 1.0000])
    """

    logits: Tensor

    def __init__(self, latent_dim: int, temperature: float) -> None:
        super().__init__()
        require_size("latent_dim", latent_dim)
        require_number("temperature", temperature, above=0)
        self.temperature = float(temperature)
        self.register_buffer("logits", torch.zeros(latent_dim), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return LogitRelaxedBernoulli(self.logits, self.temperature).to_event(1)

    def decoded(self, z: Tensor) -> Tensor:
        return z.sigmoid()


class RelaxedCategorical(Prior):
    """Independent Gumbel-softmax vectors of `num_classes`, all classes equally probable; z holds their logits.

    Args:
        latent_dim: The number of vectors, L.
        num_classes: The length of each, K; z has the shape `(L, K - 1)`.
        temperature: A positive number; it may differ from the posterior's.

    Raises:
        InputError: If a size is too small, or `temperature` is not positive.

    Example:
        >>> prior = pv.priors.RelaxedCategorical(2, num_classes=4, temperature=0.5)
        >>> prior.decoded(torch.zeros(2, 3))  # the decoder's input
        tensor([[0.2500, 0.2500, 0.2500, 0.2500],
                [0.2500, 0.2500, 0.2500, 0.2500]])
    """

    logits: Tensor

    def __init__(self, latent_dim: int, num_classes: int, temperature: float) -> None:
        super().__init__()
        require_size("latent_dim", latent_dim)
        require_size("num_classes", num_classes, 2)
        require_number("temperature", temperature, above=0)
        self.temperature = float(temperature)
        self.register_buffer("logits", torch.zeros(latent_dim, num_classes), persistent=False)

    def forward(self, encode: Encode) -> dist.TorchDistribution:
        return LogitRelaxedOneHot(self.logits, self.temperature).to_event(1)

    def decoded(self, z: Tensor) -> Tensor:
        return torch.cat((z, torch.zeros_like(z[..., :1])), -1).softmax(-1)
