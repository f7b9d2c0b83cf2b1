"""Likelihoods of pixels: bits, levels, and numbers between 0 and 1."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common import require_flag, require_number, require_size
from pyrovae.models import pixel_distributions
from pyrovae.models.likelihoods.base import Likelihood, invert, require_all


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
        require_flag("allow_grey", allow_grey)
        self.allow_grey = allow_grey

    def output_bias(self, mean: Tensor) -> Tensor:
        # A pixel that is never on would start at minus infinity. Burda et al.'s code clips in the same way.
        return torch.logit(mean.clamp(0.001, 0.999))

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        validate = False if self.allow_grey else None
        return dist.Bernoulli(logits=outputs, validate_args=validate).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        if self.allow_grey:
            require_all((x >= 0) & (x <= 1), x, "x must lie in [0, 1]")
        else:
            hint = "; binarize it, or say Bernoulli(allow_grey=True)"
            require_all((x == 0) | (x == 1), x, "x must be 0 or 1 under Bernoulli", hint)

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
        return invert(lambda logits: pixel_distributions.ContinuousBernoulli(logits).mean, mean.clamp(0.001, 0.999))

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        return pixel_distributions.ContinuousBernoulli(outputs).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        require_all((x >= 0) & (x <= 1), x, "x must lie in [0, 1]")


class Categorical(Likelihood):
    """The categorical likelihood, P(x_i = value_k) = softmax(outputs_i)_k, with the digits 0, 1, ... as values.

    Without `num_categories` the values are the 256 grey levels k / 255. The negative logarithm is the cross-entropy of
    the classes. The decoder's output has shape `(num_categories, *event_shape)`. The encoder sees digits as one-hot
    vectors, joined along the first dimension of an event: `(num_categories * channels, height, width)` for images. Grey
    levels it sees as they are. The mean is that of the values, which says little of categories without an order:
    `mode` is the most probable one.

    Args:
        num_categories: The number of digits; None stands for the 256 grey levels.

    Raises:
        InputError: If `num_categories` is not a whole number >= 2.

    Example:
        >>> likelihood = pv.Categorical()
        >>> likelihood.output_shape((1, 28, 28))
        (256, 1, 28, 28)
        >>> p = likelihood(torch.zeros(256, 1), event_dim=1)  # all levels equally probable
        >>> torch.allclose(p.log_prob(torch.tensor([7 / 255])).exp(), torch.tensor(1 / 256))
        True
        >>> pv.Categorical(3).encoder_input(torch.tensor([[2.0, 0.0]]), event_dim=1)  # a bit per digit and element
        tensor([[0., 1., 0., 0., 1., 0.]])
    """

    def __init__(self, num_categories: int | None = None) -> None:
        super().__init__()
        if num_categories is not None:
            require_size("num_categories", num_categories, 2)
        self.num_categories = num_categories
        self.num_levels = num_categories or 256
        self.top = 1.0 if num_categories is None else num_categories - 1.0

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return (self.num_levels, *event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        # Masses proportional to exp(t k) have the largest entropy of all masses with this mean.
        levels = torch.linspace(0, 1, self.num_levels, dtype=torch.float64).to(mean)
        target = (mean / self.top).clamp(0.001, 0.999)
        tilt = invert(lambda t: pixel_distributions.CategoricalLevels(t.unsqueeze(-1) * levels).mean, target)
        return (tilt.unsqueeze(-1) * levels).movedim(-1, 0)

    def encoder_input(self, x: Tensor, event_dim: int) -> Tensor:
        if self.num_categories is None:
            return x
        digits = torch.arange(self.num_categories, device=x.device)
        one_hot = (x.unsqueeze(-1) == digits).to(x.dtype).movedim(-1, -event_dim - 1)  # of NaN all are 0
        return one_hot.flatten(-event_dim - 1, -event_dim) if event_dim else one_hot

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        logits = outputs.movedim(-event_dim - 1, -1)
        return pixel_distributions.CategoricalLevels(logits, self.top).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        if self.num_categories is None:
            _require_levels(x)
        else:
            most = self.num_categories - 1
            good = (x >= 0) & (x <= most) & (x == x.round())
            require_all(good, x, f"x must be a whole number 0 ... {most} under Categorical({self.num_categories})")


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
        log_scale = self.log_scale.detach().to(mean.device)
        family = pixel_distributions.DiscretizedLogistic
        return invert(lambda loc: family(loc, log_scale).mean, mean.clamp(0.001, 0.999))

    def forward(self, outputs: Tensor, event_dim: int) -> dist.TorchDistribution:
        return pixel_distributions.DiscretizedLogistic(outputs, self.log_scale).to_event(event_dim)

    def check(self, x: Tensor) -> None:
        _require_levels(x)


def _require_levels(x: Tensor) -> None:
    good = pixel_distributions.CategoricalLevels(torch.zeros(256, device=x.device)).support.check(x)
    require_all(good, x, "x must be one of the 256 grey levels k / 255")
