"""Families of p(x|z): from a decoder's output to a Pyro distribution over events."""

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
    """One family. `likelihood(outputs, event_dim)` is p(x|z), with `event_dim` rightmost dimensions in an event."""

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that the decoder must put out for one event."""
        return tuple(event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        """The decoder output, `output_shape`, at which p(x|z) has the mean `mean`, `event_shape`."""
        raise NotImplementedError

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Raises `InputError` unless every (finite) element of `x` is one that this family can be trained on."""

    def has_density(self, x: Tensor) -> bool:
        """Whether p(x|z) is a density, or a mass, at this `x`: without one there is no log p(x)."""
        return True


class Bernoulli(Likelihood):
    """x_i ~ Bernoulli(sigmoid(outputs_i)) for pixels in {0, 1}.

    `allow_grey=True` also takes levels in [0, 1]. What is then called the log-likelihood is minus a cross-entropy,
    x log p + (1 - x) log(1 - p): a loss to train with, but no density, and so `log_marginal` refuses it.
    """

    def __init__(self, allow_grey: bool = False) -> None:
        super().__init__()
        self.allow_grey = allow_grey

    def output_bias(self, mean: Tensor) -> Tensor:
        # A pixel that is never on would start at minus infinity; the clip is the one of Burda et al.'s code.
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
    """x_i in [0, 1] with density proportional to exp(x_i outputs_i) (Loaiza-Ganem and Cunningham 2019)."""

    def output_bias(self, mean: Tensor) -> Tensor:
        return _invert(lambda logits: pixel_distributions.ContinuousBernoulli(logits).mean, mean.clamp(0.001, 0.999))

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        return pixel_distributions.ContinuousBernoulli(outputs).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        _require_all((x >= 0) & (x <= 1), x, "x must lie in [0, 1]")


class Gaussian(Likelihood):
    """x_i ~ N(outputs_i, scale^2) with one standard deviation for all coordinates, fixed or learned.

    A learned scale starts at `scale`; what is learned is its logarithm.
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
    """x_i ~ N(loc_i, scale_i^2), both predicted: scale = min_scale + softplus(.) of the decoder's second output.

    The floor is needed: where a coordinate is constant in the data (the border of an image) the density at a vanishing
    scale has no bound, and neither has the ELBO.
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
    """x_i = k / 255 with probability softmax(outputs_i)_k, k = 0 ... 255: grey levels as classes, a cross-entropy."""

    num_levels = 256

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return (self.num_levels, *event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        # The masses exp(t k) that have the mean: of all such masses the ones with the most entropy.
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
    """The mass of a logistic around each of 256 grey levels, its location the decoder's output, its scale learned.

    Kingma et al. 2016, arXiv:1606.04934; the scale, one for all pixels, starts at `scale`.
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
    if not good.all():
        index = tuple((~good).nonzero()[0].tolist())
        raise InputError(f"{rule}, got {x[index].item():g} at index {index}{hint}")


def _require_levels(x: Tensor) -> None:
    good = pixel_distributions.CategoricalLevels(torch.zeros(256, device=x.device)).support.check(x)
    _require_all(good, x, "x must be one of the 256 grey levels k / 255")


def _invert(increasing: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Where an increasing elementwise function has the values `target`, by bisection."""
    low, high = torch.full_like(target, -2_000.0), torch.full_like(target, 2_000.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = increasing(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
