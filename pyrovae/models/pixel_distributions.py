"""Distributions of pixel values in [0, 1] that PyTorch lacks or normalises only approximately."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid
from torch.types import _size


class _Univariate(TorchDistribution):
    """A distribution of one number whose parameters, named in `arg_constraints`, all have the batch shape."""

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        new = self._get_checked_instance(type(self), _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(type(self), new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new


class ContinuousBernoulli(_Univariate):
    """p(x) = exp(x l) l / (exp(l) - 1) on [0, 1], with logits l.

    PyTorch's class computes the normaliser from probabilities clipped to [1e-7, 1 - 1e-7]. For |l| > 16, which decoders
    of images reach, its density does not integrate to 1. This one is exact for every l.

    Source: Loaiza-Ganem and Cunningham 2019, arXiv:1907.06845.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # log of the integral of exp(x l) = l / 2 + log(sinh(a) / a) with a = |l| / 2; a series where a is small.
        small, near, far = _near_and_far(0.5 * self.logits.abs())
        series = near.square() / 6 - near.pow(4) / 180 + near.pow(6) / 2835
        log_sinhc = torch.where(small, series, far + torch.log1p(-(-2 * far).exp()) - (2 * far).log())
        return (value - 0.5) * self.logits - log_sinhc

    @property
    def mean(self) -> Tensor:
        small, near, far = _near_and_far(0.5 * self.logits)
        series = near / 3 - near.pow(3) / 45 + 2 * near.pow(5) / 945
        return 0.5 + 0.5 * torch.where(small, series, 1 / far.tanh() - 1 / far)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        uniform = torch.rand(self._extended_shape(sample_shape)).to(self.logits)
        # The inverse distribution function at -|l|, where nothing overflows, then mirrored; near 0 it is linear in l.
        slope, small = -self.logits.abs(), self.logits.abs() < 1e-4
        safe = torch.where(small, torch.full_like(slope, -1.0), slope)
        x = torch.log1p(uniform * torch.expm1(safe)) / safe
        x = torch.where(self.logits > 0, 1 - x, x)
        return torch.where(small, uniform + 0.5 * self.logits * uniform * (1 - uniform), x)


def _near_and_far(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns where `a` is so small that a series is needed, and the arguments of the series and of the closed form.

    Each gets only values that it can take, so that the gradient of the branch not taken is finite.
    """
    small = a.abs() < 0.05
    return small, torch.where(small, a, torch.zeros_like(a)), torch.where(small, torch.ones_like(a), a)


class _Levels(constraints.Constraint):
    """The values 0, top / (num - 1), ..., top."""

    is_discrete = True

    def __init__(self, num: int, top: float = 1.0) -> None:
        self.num, self.top = num, top

    def check(self, value: Tensor) -> Tensor:
        index = value * ((self.num - 1) / self.top)
        return (value >= 0) & (value <= self.top) & ((index - index.round()).abs() < 1e-3)


class DiscretizedLogistic(_Univariate):
    """The mass that a logistic distribution gives to each of 256 levels in [0, 1].

        P(x = k / 255) = F((k + 1/2) / 255) - F((k - 1/2) / 255)

    F is the logistic distribution function with location `loc` and scale exp(`log_scale`). The first and the last level
    take the tails, so that the masses sum to 1.

    Source: Kingma et al. 2016, arXiv:1606.04934.
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}  # noqa: RUF012
    support = _Levels(256)

    def __init__(self, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inverse_scale, half = (-self.log_scale).exp(), 0.5 / 255
        below, above = (value - half - self.loc) * inverse_scale, (value + half - self.loc) * inverse_scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), without cancellation
        to_above, from_below = logsigmoid(above), logsigmoid(-below)
        inside = to_above + from_below + torch.log(-torch.expm1(-2 * half * inverse_scale))
        return torch.where(value < half, to_above, torch.where(value > 1 - half, from_below, inside))

    @property
    def mean(self) -> Tensor:
        """E[x] = 1/255 sum_k P(x >= k / 255), which near 0 and 1 is not the location: the end levels take the tails."""
        inverse_scale, total = (-self.log_scale).exp(), torch.zeros_like(self.loc)
        for level in range(1, 256):  # one after another, as all at once would take 255 times the memory
            total = total + ((self.loc - (level - 0.5) / 255) * inverse_scale).sigmoid()
        return total / 255

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            uniform = torch.rand(self._extended_shape(sample_shape)).to(self.loc).clamp(1e-7, 1 - 1e-7)
            x = self.loc + self.log_scale.exp() * torch.logit(uniform)
            return (x * 255).round().clamp(0, 255) / 255


class CategoricalLevels(TorchDistribution):
    """P(x = k top / (K - 1)) = softmax(logits)_k: K levels in [0, top], each with its own mass.

    `logits` is `(..., K)`. With a `top` of K - 1 the levels are the digits 0 ... K - 1.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012

    def __init__(self, logits: Tensor, top: float = 1.0, validate_args: bool | None = None) -> None:
        self.logits, self.top = logits, top
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return _Levels(self.logits.shape[-1], self.top)

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        new = self._get_checked_instance(CategoricalLevels, _instance)
        new.logits, new.top = self.logits.expand(*batch_shape, self.logits.shape[-1]), self.top
        super(CategoricalLevels, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        level = (value * ((self.logits.shape[-1] - 1) / self.top)).round().long()
        level, logits = torch.broadcast_tensors(level.unsqueeze(-1), self.logits[..., :1])[0], self.logits
        chosen = logits.expand(*level.shape[:-1], logits.shape[-1]).gather(-1, level).squeeze(-1)
        return chosen - logits.logsumexp(-1)

    @property
    def mean(self) -> Tensor:
        levels = torch.linspace(0, self.top, self.logits.shape[-1], dtype=torch.float64).to(self.logits)
        return self.logits.softmax(-1) @ levels

    @property
    def mode(self) -> Tensor:
        """The level of the largest mass."""
        return self._value_of(self.logits.argmax(-1))

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        return self._value_of(dist.Categorical(logits=self.logits).sample(sample_shape))

    def _value_of(self, level: Tensor) -> Tensor:
        return level.to(self.logits) * self.top / (self.logits.shape[-1] - 1)


class Beta(dist.Beta):
    """The Beta distribution, whose log-density is computed in float64.

    PyTorch computes the normaliser as a small difference of logarithms of the gamma function. In float32 its error is
    0.01 nats at concentrations of 10,000.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        one, zero, x = self.concentration1.double(), self.concentration0.double(), value.double()
        log_normaliser = one.lgamma() + zero.lgamma() - (one + zero).lgamma()
        return (torch.xlogy(one - 1, x) + torch.xlogy(zero - 1, 1 - x) - log_normaliser).to(self.concentration1.dtype)
