"""Posteriors of codes z, of bits or of classes, and of their relaxations."""

import pyro.distributions as dist
from torch import Tensor

from pyrovae.common import require_number, require_size
from pyrovae.models import priors
from pyrovae.models.code_distributions import (
    LogitRelaxedBernoulli,
    LogitRelaxedOneHot,
    StraightThroughBernoulli,
    StraightThroughOneHot,
)
from pyrovae.models.posteriors.posterior import Posterior


class _CodePosterior(Posterior):
    """The base of the families below: one output of the encoder for each bit, and a temperature."""

    def __init__(self, latent_dim: int, temperature: float | None) -> None:
        super().__init__(latent_dim)
        if temperature is not None:
            require_number("temperature", temperature, above=0)
        self.temperature = None if temperature is None else float(temperature)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (1, self.latent_dim)


class Bernoulli(_CodePosterior):
    """Independent bits, z_j ~ Bernoulli(sigmoid(outputs_j)).

    With a `temperature` draws have a straight-through gradient, which objectives that differentiate draws then take.
    Without one every objective but `elbo_analytic_kl` takes a score-function gradient, and `elbo_enumerated` sums over
    all values, for few bits.

    Args:
        latent_dim: The number of bits, L.
        temperature: A positive number, or None for draws without a gradient.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1, or `temperature` is not positive.

    Example:
        >>> posterior = pv.posteriors.Bernoulli(3)  # or posterior="bernoulli"
        >>> posterior(torch.zeros(1, 3)).mean
        tensor([0.5000, 0.5000, 0.5000])

    Source:
        Straight-through gradients: Bengio et al. 2013, arXiv:1308.3432; Jang et al. 2017, arXiv:1611.01144.
    """

    def __init__(self, latent_dim: int, temperature: float | None = None) -> None:
        super().__init__(latent_dim, temperature)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        logits = outputs.squeeze(-2)
        if self.temperature is None:
            return dist.Bernoulli(logits=logits).to_event(1)
        return StraightThroughBernoulli(logits, self.temperature).to_event(1)

    def usual_prior(self) -> priors.Prior:
        return priors.Bernoulli(self.latent_dim)


class Categorical(Bernoulli):
    """Independent classes: z_j is one-hot with probabilities softmax(outputs_j).

    z has the shape `(batch, latent_dim, num_classes)`.

    Args:
        latent_dim: The number of one-hot vectors, L.
        num_classes: The length of each.
        temperature: As in `Bernoulli`.

    Raises:
        InputError: If a size is too small, or `temperature` is not positive.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((3,), **settings, posterior=pv.posteriors.Categorical(2, num_classes=4))
        >>> vae.encode(torch.randn(7, 3)).sample().sum(-1).unique()
        tensor([1.])
    """

    def __init__(self, latent_dim: int, num_classes: int, temperature: float | None = None) -> None:
        super().__init__(latent_dim, temperature)
        require_size("num_classes", num_classes, 2)
        self.num_classes = num_classes

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_dim, self.num_classes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.latent_shape

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        if self.temperature is None:
            return dist.OneHotCategorical(logits=outputs).to_event(1)
        return StraightThroughOneHot(outputs, self.temperature).to_event(1)

    def usual_prior(self) -> priors.Prior:
        return priors.Categorical(self.latent_dim, self.num_classes)


class RelaxedBernoulli(_CodePosterior):
    """Independent relaxed bits between 0 and 1; z holds their logits.

    The relaxed model differs from the model of bits, and its bounds are its own. The same networks with `Bernoulli` as
    posterior and prior are a model of bits, and `load_state_dict` gives it what the relaxed model has learned.

    Args:
        latent_dim: The number of bits, L.
        temperature: A positive number; the lower it is, the closer the bits come to 0 and 1.

    Raises:
        InputError: If `latent_dim` is not a whole number >= 1, or `temperature` is not positive.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> relaxed = pv.VAE((3,), **settings, posterior=pv.posteriors.RelaxedBernoulli(2, temperature=0.3))
        >>> bits = pv.VAE((3,), **settings, posterior="bernoulli")
        >>> bits.load_state_dict(relaxed.state_dict())
        <All keys matched successfully>

    Source:
        Maddison et al. 2017, arXiv:1611.00712; Jang et al. 2017, arXiv:1611.01144.
    """

    temperature: float

    def __init__(self, latent_dim: int, temperature: float = 0.5) -> None:
        require_number("temperature", temperature, above=0)
        super().__init__(latent_dim, temperature)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return LogitRelaxedBernoulli(outputs.squeeze(-2), self.temperature).to_event(1)

    def usual_prior(self) -> priors.Prior:
        return priors.RelaxedBernoulli(self.latent_dim, self.temperature)


class RelaxedCategorical(RelaxedBernoulli):
    """Independent Gumbel-softmax vectors; z holds their logits, `(batch, latent_dim, num_classes - 1)`.

    It relaxes `Categorical` as `RelaxedBernoulli` relaxes `Bernoulli`.

    Args:
        latent_dim: The number of vectors, L.
        num_classes: The length of each.
        temperature: A positive number; the lower it is, the closer the vectors come to one-hot.

    Raises:
        InputError: If a size is too small, or `temperature` is not positive.

    Example:
        >>> settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(0.5)}
        >>> vae = pv.VAE((3,), **settings, posterior=pv.posteriors.RelaxedCategorical(2, num_classes=4))
        >>> vae.encode(torch.randn(7, 3)).sample().shape
        torch.Size([7, 2, 3])

    Source:
        Maddison et al. 2017, arXiv:1611.00712; Jang et al. 2017, arXiv:1611.01144.
    """

    def __init__(self, latent_dim: int, num_classes: int, temperature: float = 0.5) -> None:
        super().__init__(latent_dim, temperature)
        require_size("num_classes", num_classes, 2)
        self.num_classes = num_classes

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.latent_dim, self.num_classes - 1)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.latent_dim, self.num_classes)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        return LogitRelaxedOneHot(outputs, self.temperature).to_event(1)

    def usual_prior(self) -> priors.Prior:
        return priors.RelaxedCategorical(self.latent_dim, self.num_classes, self.temperature)
