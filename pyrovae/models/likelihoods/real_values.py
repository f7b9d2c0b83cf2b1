"""Likelihoods of real numbers."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.common import require_number
from pyrovae.models.gaussian_distributions import IsotropicNormal
from pyrovae.models.likelihoods.base import Likelihood


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
