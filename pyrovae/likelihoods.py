"""Families of p(x|z): from a decoder's output to a Pyro distribution over events."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import InputError, require_number


class Likelihood(nn.Module):
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
            _require_all((x >= 0) & (x <= 1), x, "x must lie in [0, 1]", "")
        else:
            hint = "; binarize it, or say Bernoulli(allow_grey=True)"
            _require_all((x == 0) | (x == 1), x, "x must be 0 or 1 under Bernoulli", hint)


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


class IsotropicNormal(dist.Normal):
    """N(loc, exp(log_scale)^2) with a 0-dim `log_scale`.

    `Normal` takes the logarithm of a scale once per element of `loc`, and that costs more than all the rest of a
    Gaussian's log-density: half the time of a quadrature on points.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        self.log_scale = log_scale
        super().__init__(loc, log_scale.exp())

    def expand(self, batch_shape: torch.Size, _instance: dist.Normal | None = None) -> dist.Normal:
        expanded = super().expand(batch_shape, self._get_checked_instance(IsotropicNormal, _instance))
        expanded.log_scale = self.log_scale
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        standardised = (value - self.loc) * (-self.log_scale).exp()
        return -0.5 * standardised.square() - (self.log_scale + 0.5 * math.log(2 * math.pi))


def _require_all(good: Tensor, x: Tensor, rule: str, hint: str) -> None:
    if not good.all():
        index = tuple((~good).nonzero()[0].tolist())
        raise InputError(f"{rule}, got {x[index].item():g} at index {index}{hint}")
