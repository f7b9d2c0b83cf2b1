"""Families of likelihoods p(x|z), from a decoder's output to a Pyro distribution over events."""

import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.common import InputError, require_number
from pyrovae.models import pixel_distributions
from pyrovae.models.gaussian_distributions import IsotropicNormal
from pyrovae.models.param_store import Module


class Likelihood(Module):
    """The base class of likelihoods: a subclass defines `forward`, from the decoder's output to p(x|z).

    `likelihood(outputs, event_dim)` returns a distribution whose `event_dim` rightmost dimensions are an event. A VAE
    started from the mean of the data also needs `output_bias`.

    Example:
        >>> class Laplace(pv.Likelihood):
        ...     def forward(self, outputs, event_dim):
        ...         return pyro.distributions.Laplace(outputs, 0.5).to_event(event_dim)
        >>> vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=Laplace())
        >>> vae.sample(5).shape
        torch.Size([5, 3])
    """

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the decoder's output for one event of shape `event_shape`."""
        return tuple(event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        """Returns the decoder's output, `output_shape`, for which p(x|z) has the mean `mean`, `event_shape`."""
        raise NotImplementedError

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Raises `InputError` unless this family can be trained on every element of `x`; all of them are finite."""

    def has_density(self, x: Tensor) -> bool:
        """Returns whether p(x|z) is a density or a mass at this `x`; if it is neither, there is no log p(x)."""
        return True


class Bernoulli(Likelihood):
    """The Bernoulli likelihood, x_i ~ Bernoulli(sigmoid(outputs_i)), for pixels that are 0 or 1.

    Args:
        allow_grey: True also accepts levels in [0, 1]. The log-likelihood is then minus a cross-entropy,
            x log p + (1 - x) log(1 - p). It is a loss to train with but not a density, and `log_marginal` refuses it.

    Example:
        >>> p = pv.Bernoulli()(torch.zeros(3), event_dim=1)
        >>> p.mean
        tensor([0.5000, 0.5000, 0.5000])
        >>> pv.Bernoulli().check(torch.tensor([0.0, 0.5]))
        Traceback (most recent call last):
        pyrovae...InputError: x must be 0 or 1 under Bernoulli, got 0.5 at index (1,); binarize it, or say
        Bernoulli(allow_grey=True)
    """

    def __init__(self, allow_grey: bool = False) -> None:
        super().__init__()
        self.allow_grey = allow_grey

    def output_bias(self, mean: Tensor) -> Tensor:
        # A pixel that is never on would start at minus infinity. Burda et al.'s code clips in the same way.
        return torch.logit(mean.clamp(0.001, 0.999))

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        validate = False if self.allow_grey else None
        return dist.Bernoulli(logits=outputs, validate_args=validate).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        if self.allow_grey:
            _require_all((x >= 0) & (x <= 1), x, "x must lie in [0, 1]")
        else:
            hint = "; binarize it, or say Bernoulli(allow_grey=True)"
            _require_all((x == 0) | (x == 1), x, "x must be 0 or 1 under Bernoulli", hint)

    def has_density(self, x: Tensor) -> bool:
        return bool(((x == 0) | (x == 1)).all())


class ContinuousBernoulli(Likelihood):
    """The continuous Bernoulli likelihood, for x_i in [0, 1], with a density proportional to exp(x_i outputs_i).

    Example:
        >>> p = pv.ContinuousBernoulli()(torch.zeros(3), event_dim=1)  # uniform at outputs of 0
        >>> p.mean
        tensor([0.5000, 0.5000, 0.5000])
        >>> torch.equal(p.log_prob(torch.rand(3)), torch.tensor(0.0))
        True

    Source:
        Loaiza-Ganem and Cunningham 2019, arXiv:1907.06845.
    """

    def output_bias(self, mean: Tensor) -> Tensor:
        return _invert(lambda logits: pixel_distributions.ContinuousBernoulli(logits).mean, mean.clamp(0.001, 0.999))

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        return pixel_distributions.ContinuousBernoulli(outputs).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        _require_all((x >= 0) & (x <= 1), x, "x must lie in [0, 1]")


class Gaussian(Likelihood):
    """The Gaussian likelihood, x_i ~ N(outputs_i, scale^2), with one standard deviation for all coordinates.

    Args:
        scale: The standard deviation, in the units of x.
        learn_scale: True makes the logarithm of the scale a parameter, which starts at log(`scale`).

    Raises:
        InputError: If `scale` is not a positive number.

    Example:
        >>> p = pv.Gaussian(0.5)(torch.tensor([1.0, 2.0]), event_dim=1)
        >>> p.mean, p.stddev
        (tensor([1., 2.]), tensor([0.5000, 0.5000]))
    """

    def __init__(self, scale: float, learn_scale: bool = False) -> None:
        super().__init__()
        require_number("scale", scale, above=0)
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def output_bias(self, mean: Tensor) -> Tensor:
        return mean

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        return IsotropicNormal(outputs, self.log_scale).to_event(event_dim)


class HeteroscedasticGaussian(Likelihood):
    """The Gaussian likelihood with a predicted scale, x_i ~ N(loc_i, scale_i^2).

        scale_i = min_scale + softplus(raw_scale_i)

    The decoder's output is `(loc, raw_scale)`, `(2, *event_shape)`. The floor is necessary: if a coordinate is constant
    in the data, as on the border of an image, the density grows without bound as the scale vanishes, and so does the
    ELBO.

    Args:
        min_scale: The floor of the standard deviation, in the units of x.

    Raises:
        InputError: If `min_scale` is not a positive number.

    Example:
        >>> likelihood = pv.HeteroscedasticGaussian(min_scale=0.1)
        >>> likelihood.output_shape((1, 28, 28))
        (2, 1, 28, 28)
        >>> p = likelihood(torch.tensor([[1.0, 2.0], [-1e3, -1e3]]), event_dim=1)
        >>> p.mean, p.stddev
        (tensor([1., 2.]), tensor([0.1000, 0.1000]))
    """

    def __init__(self, min_scale: float) -> None:
        super().__init__()
        require_number("min_scale", min_scale, above=0)
        self.min_scale = min_scale

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return (2, *event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        return torch.stack((mean, torch.zeros_like(mean)))

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        loc, raw_scale = outputs.unbind(-event_dim - 1)
        return dist.Normal(loc, self.min_scale + softplus(raw_scale)).to_event(event_dim)


class Categorical(Likelihood):
    """The categorical likelihood of grey levels: x_i = k / 255 with probability softmax(outputs_i)_k, k = 0 ... 255.

    Its negative logarithm is the cross-entropy of 256 classes. The decoder's output has shape `(256, *event_shape)`.

    Example:
        >>> likelihood = pv.Categorical()
        >>> likelihood.output_shape((1, 28, 28))
        (256, 1, 28, 28)
        >>> p = likelihood(torch.zeros(256, 1), event_dim=1)  # all levels equally probable
        >>> torch.allclose(p.log_prob(torch.tensor([7 / 255])).exp(), torch.tensor(1 / 256))
        True
    """

    num_levels = 256

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return (self.num_levels, *event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        # Masses proportional to exp(t k) have the largest entropy of all masses with this mean.
        levels = torch.linspace(0, 1, self.num_levels, dtype=torch.float64).to(mean)
        tilt = _invert(
            lambda t: pixel_distributions.CategoricalLevels(t.unsqueeze(-1) * levels).mean, mean.clamp(0.001, 0.999)
        )
        return (tilt.unsqueeze(-1) * levels).movedim(-1, 0)

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        return pixel_distributions.CategoricalLevels(outputs.movedim(-event_dim - 1, -1)).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        _require_levels(x)


class DiscretizedLogistic(Likelihood):
    """The discretized logistic likelihood: the mass of a logistic distribution around each of 256 grey levels k / 255.

        P(x_i = k / 255) = F((k + 1/2) / 255) - F((k - 1/2) / 255)

    F is the logistic distribution function whose location is the decoder's output. The first and the last level take
    the tails. One learned scale serves all pixels.

    Args:
        scale: The value that the scale starts from.

    Raises:
        InputError: If `scale` is not a positive number.

    Example:
        >>> p = pv.DiscretizedLogistic()(torch.tensor([0.4]), event_dim=1)
        >>> masses = p.log_prob(torch.arange(256.0)[:, None] / 255).exp()
        >>> torch.allclose(masses.sum(), torch.tensor(1.0))
        True

    Source:
        Kingma et al. 2016, arXiv:1606.04934.
    """

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        require_number("scale", scale, above=0)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def output_bias(self, mean: Tensor) -> Tensor:
        return mean

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        return pixel_distributions.DiscretizedLogistic(outputs, self.log_scale).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        _require_levels(x)


def _require_all(good: Tensor, x: Tensor, rule: str, hint: str = "") -> None:
    """Raises `InputError` with the first element of `x` that is not `good`, and its index."""
    if not good.all():
        index = tuple((~good).nonzero()[0].tolist())
        raise InputError(f"{rule}, got {x[index].item():g} at index {index}{hint}")


def _require_levels(x: Tensor) -> None:
    good = pixel_distributions.CategoricalLevels(torch.zeros(256, device=x.device)).support.check(x)
    _require_all(good, x, "x must be one of the 256 grey levels k / 255")


def _invert(increasing: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Returns the arguments for which an increasing elementwise function has the values `target`, by bisection."""
    low, high = torch.full_like(target, -2_000.0), torch.full_like(target, 2_000.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = increasing(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
