"""Distributions that PyTorch has not, or has with a density that is not one everywhere."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid


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


def normal_of(outputs: Tensor) -> dist.TorchDistribution:
    """N(loc, diag(exp(log_variance))) from `(..., 2, dim)`."""
    loc, log_variance = outputs.unbind(-2)
    return dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1)


class NormalMixture(dist.MixtureSameFamily):
    """sum_c w_c N(loc_c, diag(scale_c^2)), of a `Categorical` and as many `Normal(loc, scale).to_event(1)`.

    `MixtureSameFamily` takes each difference of a value and a component; here the square is multiplied out, and all of
    them are one product of matrices. That product is in float64, as its terms are larger than their sum: what is lost
    is (loc / scale)^2 1e-16, which is nothing beside float32's own error down to a scale of 1e-5 loc.
    """

    def __init__(
        self, weights: dist.Categorical, components: dist.Independent, validate_args: bool | None = None
    ) -> None:
        super().__init__(weights, components, validate_args=validate_args)
        loc, scale = components.base_dist.loc.double(), components.base_dist.scale.double()
        precision = scale.pow(-2)
        # log w_c N(z; loc_c, ...) = (z^2, z) . factor_c + constant_c
        self.factor = torch.cat((-0.5 * precision, precision * loc), -1).mT
        constant = 0.5 * (precision * loc.square()).sum(-1) + scale.log().sum(-1)
        self.constant = weights.logits.double() - constant - 0.5 * math.log(2 * math.pi) * loc.shape[-1]

    def expand(self, batch_shape: torch.Size, _instance: dist.Distribution | None = None) -> dist.MixtureSameFamily:
        expanded = super().expand(batch_shape, self._get_checked_instance(NormalMixture, _instance))
        expanded.factor, expanded.constant = self.factor, self.constant
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        wide = value.double()
        terms = torch.cat((wide.square(), wide), -1) @ self.factor + self.constant
        log_prob = terms.to(value.dtype).logsumexp(-1)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


def mixture_of(weights: dist.Categorical, components: dist.TorchDistribution) -> dist.MixtureSameFamily:
    """The mixture of `components` along their last batch dimension; a fast one of diagonal Gaussians in float32."""
    base = components.base_dist if isinstance(components, dist.Independent) else None
    plain = type(base) is dist.Normal and base.loc.dtype is torch.float32  # a class made of it has another density
    if plain and len(components.event_shape) == len(components.batch_shape) == 1:
        return NormalMixture(weights, components)
    return dist.MixtureSameFamily(weights, components)


class StraightThroughBernoulli(dist.Bernoulli):
    """Bernoulli(logits) with draws of 0 or 1 and the gradient of sigmoid((logits + logistic noise) / temperature).

    The mass is Bernoulli's, and so a bound under it is the discrete model's; what is biased is the gradient alone
    (Bengio et al. 2013, arXiv:1308.3432; Jang et al. 2017, arXiv:1611.01144).
    """

    has_rsample = True
    has_biased_rsample = True

    def __init__(self, logits: Tensor, temperature: float, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: dist.Bernoulli | None = None) -> dist.Bernoulli:
        return StraightThroughBernoulli(self.logits.expand(batch_shape), self.temperature, self._validate_args)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        noisy = self.logits + _inside(uniform).logit()
        soft = (noisy / self.temperature).sigmoid()
        return (noisy > 0).to(soft) + (soft - soft.detach())


class StraightThroughOneHot(dist.OneHotCategorical):
    """OneHotCategorical(logits) with the gradient of softmax((logits + Gumbel noise) / temperature): Gumbel-softmax.

    Hard forwards and soft backwards, as `StraightThroughBernoulli`.
    """

    has_rsample = True
    has_biased_rsample = True

    def __init__(self, logits: Tensor, temperature: float, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size, _instance: dist.OneHotCategorical | None = None
    ) -> dist.OneHotCategorical:
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return StraightThroughOneHot(logits, self.temperature, self._validate_args)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        noisy = self.logits - (-_inside(uniform).log()).log()
        soft = (noisy / self.temperature).softmax(-1)
        hard = torch.nn.functional.one_hot(noisy.argmax(-1), noisy.shape[-1]).to(soft)
        return hard + (soft - soft.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """With a gradient in `value`, which that of PyTorch, by the largest element's index, has not."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


class _Expandable(TorchDistribution):
    """A univariate family whose parameters, named in `arg_constraints`, all have the batch shape."""

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        new = self._get_checked_instance(type(self), _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(type(self), new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new


class LogitRelaxedBernoulli(TorchDistribution):
    """The logit z of a relaxed bit sigmoid(z): z = (logits + logistic noise) / temperature, a real number.

    p(z) = T s(m) s(-m), m = logits - T z, s the sigmoid (Maddison et al. 2017, arXiv:1611.00712). A bit itself comes so
    near to 0 and 1 that float32 cannot tell; its logit does not, and PyTorch's density of it overflows where |m| > 88.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, validate_args: bool | None = None) -> None:
        self.logits, self.temperature = logits, temperature
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        return LogitRelaxedBernoulli(self.logits.expand(batch_shape), self.temperature, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        m = self.logits - self.temperature * value
        return math.log(self.temperature) + logsigmoid(m) + logsigmoid(-m)

    @property
    def mean(self) -> Tensor:
        return self.logits / self.temperature

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self.logits, (math.pi / self.temperature) ** 2 / 3)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits + _inside(uniform).logit()) / self.temperature


class LogitRelaxedOneHot(TorchDistribution):
    """The logits z of a relaxed one-hot vector softmax(z_1, ..., z_K-1, 0): K - 1 real numbers, `logits` `(..., K)`.

    z_k = (l_k + g_k - l_K - g_K) / T with Gumbel noise g: the concrete or Gumbel-softmax distribution (Maddison et al.
    2017, arXiv:1611.00712; Jang et al. 2017, arXiv:1611.01144), in coordinates that have a density on all of R^(K-1):
    p(z) = (K - 1)! T^(K-1) prod_k softmax(m)_k with m_k = l_k - T z_k, z_K = 0. `LogitRelaxedBernoulli` is K = 2.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, validate_args: bool | None = None) -> None:
        self.logits, self.temperature = logits, temperature
        super().__init__(logits.shape[:-1], (logits.shape[-1] - 1,), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return LogitRelaxedOneHot(logits, self.temperature, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        m = self.logits - self.temperature * torch.cat((value, torch.zeros_like(value[..., :1])), -1)
        free = self.event_shape[0]
        return m.log_softmax(-1).sum(-1) + math.lgamma(free + 1) + free * math.log(self.temperature)

    @property
    def mean(self) -> Tensor:
        return (self.logits[..., :-1] - self.logits[..., -1:]) / self.temperature

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self.mean, (math.pi / self.temperature) ** 2 / 3)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = (*sample_shape, *self.logits.shape)
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        noisy = self.logits - (-_inside(uniform).log()).log()
        return (noisy[..., :-1] - noisy[..., -1:]) / self.temperature


def _inside(uniform: Tensor) -> Tensor:
    """Off the ends, where a logarithm has no value."""
    tiny = torch.finfo(uniform.dtype).tiny
    return uniform.clamp(tiny, 1 - torch.finfo(uniform.dtype).eps)


class ContinuousBernoulli(_Expandable):
    """p(x) = exp(x l) l / (exp(l) - 1) on [0, 1], with logits l (Loaiza-Ganem and Cunningham 2019, arXiv:1907.06845).

    PyTorch's takes its normaliser at probabilities clipped to [1e-7, 1 - 1e-7], so that for |l| > 16, where decoders of
    images go, its density does not integrate to 1. This one is exact for every l.
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
        # Each branch gets values that it is made for, so that the gradient of the one not taken is finite.
        a = 0.5 * self.logits.abs()
        small = a < 0.05
        near, far = torch.where(small, a, torch.zeros_like(a)), torch.where(small, torch.ones_like(a), a)
        series = near.square() / 6 - near.pow(4) / 180 + near.pow(6) / 2835
        log_sinhc = torch.where(small, series, far + torch.log1p(-(-2 * far).exp()) - (2 * far).log())
        return (value - 0.5) * self.logits - log_sinhc

    @property
    def mean(self) -> Tensor:
        a = 0.5 * self.logits
        small = a.abs() < 0.05
        near, far = torch.where(small, a, torch.zeros_like(a)), torch.where(small, torch.ones_like(a), a)
        series = near / 3 - near.pow(3) / 45 + 2 * near.pow(5) / 945
        return 0.5 + 0.5 * torch.where(small, series, 1 / far.tanh() - 1 / far)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        uniform = torch.rand(self._extended_shape(sample_shape)).to(self.logits)
        # The inverse distribution function, taken at -|l| where nothing overflows and mirrored; linear in l at 0.
        slope, small = -self.logits.abs(), self.logits.abs() < 1e-4
        safe = torch.where(small, torch.full_like(slope, -1.0), slope)
        x = torch.log1p(uniform * torch.expm1(safe)) / safe
        x = torch.where(self.logits > 0, 1 - x, x)
        return torch.where(small, uniform + 0.5 * self.logits * uniform * (1 - uniform), x)


class _Levels(constraints.Constraint):
    """The `num` levels 0, 1 / (num - 1), ..., 1."""

    is_discrete = True

    def __init__(self, num: int) -> None:
        self.num = num

    def check(self, value: Tensor) -> Tensor:
        index = value * (self.num - 1)
        return (value >= 0) & (value <= 1) & ((index - index.round()).abs() < 1e-3)


class DiscretizedLogistic(_Expandable):
    """The mass that a logistic distribution gives to each of 256 levels in [0, 1] (Kingma et al. 2016,
    arXiv:1606.04934).

    P(x = k / 255) = F((k + 1/2) / 255) - F((k - 1/2) / 255), F the logistic distribution function with `loc` and
    scale exp(`log_scale`); the first and the last level take the tails, so that the masses sum to 1.
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
        """Of the logistic itself, clipped to [0, 1]: a picture of the distribution, off its mean at the ends."""
        return self.loc.clamp(0, 1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            uniform = torch.rand(self._extended_shape(sample_shape)).to(self.loc).clamp(1e-7, 1 - 1e-7)
            x = self.loc + self.log_scale.exp() * torch.logit(uniform)
            return (x * 255).round().clamp(0, 255) / 255


class CategoricalLevels(TorchDistribution):
    """P(x = k / (K - 1)) = softmax(logits)_k: K levels in [0, 1] with free masses; `logits` is `(..., K)`."""

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return _Levels(self.logits.shape[-1])

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        new = self._get_checked_instance(CategoricalLevels, _instance)
        new.logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        super(CategoricalLevels, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        level = (value * (self.logits.shape[-1] - 1)).round().long()
        level, logits = torch.broadcast_tensors(level.unsqueeze(-1), self.logits[..., :1])[0], self.logits
        chosen = logits.expand(*level.shape[:-1], logits.shape[-1]).gather(-1, level).squeeze(-1)
        return chosen - logits.logsumexp(-1)

    @property
    def mean(self) -> Tensor:
        levels = torch.linspace(0, 1, self.logits.shape[-1], dtype=torch.float64).to(self.logits)
        return self.logits.softmax(-1) @ levels

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        level = dist.Categorical(logits=self.logits).sample(sample_shape)
        return level.to(self.logits) / (self.logits.shape[-1] - 1)
