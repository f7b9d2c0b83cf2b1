"""Likelihoods of real numbers: of all, of the positive ones, and of those between 0 and 1."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.common import require_flag, require_number
from pyrovae.models import pixel_distributions
from pyrovae.models.gaussian_distributions import IsotropicNormal
from pyrovae.models.likelihoods.base import Likelihood, bounded_exp, require_all


class _WithScale(Likelihood):
    """A likelihood with one scale for all coordinates, fixed or learned."""

    log_scale: Tensor

    def __init__(self, scale: float, learn_scale: bool) -> None:
        super().__init__()
        require_number("scale", scale, above=0)
        require_flag("learn_scale", learn_scale)
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()


class Gaussian(_WithScale):
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
        super().__init__(scale, learn_scale)

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
        self.min_scale = float(min_scale)

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return (2, *event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        return torch.stack((mean, torch.zeros_like(mean)))

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        loc, raw_scale = outputs.unbind(-event_dim - 1)
        return dist.Normal(loc, self.min_scale + softplus(raw_scale)).to_event(event_dim)


class StudentT(_WithScale):
    """Student's t likelihood, x_i ~ StudentT(df, loc=outputs_i, scale), for real numbers with outliers.

    Args:
        df: The degrees of freedom, above 1: with fewer there is no mean. The standard deviation is
            scale sqrt(df / (df - 2)), which is infinite up to 2.
        scale: The scale, in the units of x.
        learn_scale: True makes the logarithm of the scale a parameter, which starts at log(`scale`).

    Raises:
        InputError: If `df` is not a number > 1, or `scale` is not a positive number.

    Example:
        >>> p = pv.StudentT(df=3.0, scale=0.5)(torch.tensor([1.0, 2.0]), event_dim=1)
        >>> p.mean
        tensor([1., 2.])
    """

    def __init__(self, df: float, scale: float, learn_scale: bool = False) -> None:
        require_number("df", df, above=1)
        super().__init__(scale, learn_scale)
        self.df = float(df)

    def output_bias(self, mean: Tensor) -> Tensor:
        return mean

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        return dist.StudentT(self.df, outputs, self.scale).to_event(event_dim)


class LogNormal(_WithScale):
    """The log-normal likelihood, log x_i ~ N(outputs_i, scale^2), for positive numbers.

    The encoder sees log x. The mean of x_i is exp(outputs_i + scale^2 / 2).

    Args:
        scale: The standard deviation of log x.
        learn_scale: True makes the logarithm of the scale a parameter, which starts at log(`scale`).

    Raises:
        InputError: If `scale` is not a positive number.

    Example:
        >>> likelihood = pv.LogNormal(0.5)
        >>> bias = likelihood.output_bias(torch.tensor([1.0, 2.0]))
        >>> likelihood(bias, event_dim=1).mean
        tensor([1., 2.])
    """

    filler = 1.0

    def __init__(self, scale: float, learn_scale: bool = False) -> None:
        super().__init__(scale, learn_scale)

    def output_bias(self, mean: Tensor) -> Tensor:
        return mean.log() - 0.5 * self.scale.detach().square()

    def encoder_input(self, x: Tensor, event_dim: int) -> Tensor:
        return x.log()

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        return dist.LogNormal(outputs, self.scale).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        require_all(x > 0, x, "x must be > 0 under LogNormal")


class Beta(Likelihood):
    """The Beta likelihood, x_i ~ Beta(concentration1_i, concentration0_i), for numbers strictly between 0 and 1.

        concentration1 = exp(outputs_0),  concentration0 = exp(outputs_1)

    The decoder's output has shape `(2, *event_shape)`. Each concentration is kept between 3e-7 and 3e6.

    Example:
        >>> likelihood = pv.Beta()
        >>> likelihood.output_shape((3,))
        (2, 3)
        >>> p = likelihood(torch.zeros(2, 3), event_dim=1)  # concentrations of 1: uniform
        >>> torch.equal(p.log_prob(torch.rand(3)), torch.tensor(0.0))
        True
    """

    filler = 0.5

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return (2, *event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        mean = mean.clamp(0.001, 0.999)
        return torch.stack((2 * mean, 2 * (1 - mean))).log()

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        one, zero = bounded_exp(outputs).unbind(-event_dim - 1)
        return pixel_distributions.Beta(one, zero).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        require_all((x > 0) & (x < 1), x, "x must lie strictly between 0 and 1 under Beta")
