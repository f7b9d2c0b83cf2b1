"""Distributions of discrete codes and of their relaxations, with gradients for draws."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, one_hot
from torch.types import _size


class StraightThroughBernoulli(dist.Bernoulli):
    """Bernoulli(logits) whose draws, 0 or 1, have the gradient of sigmoid((logits + logistic noise) / temperature).

    The mass is that of a Bernoulli, so a bound computed with it is a bound of the discrete model. Only the gradient is
    biased.

    Source: Bengio et al. 2013, arXiv:1308.3432; Jang et al. 2017, arXiv:1611.01144.
    """

    has_rsample = True
    has_biased_rsample = True

    def __init__(self, logits: Tensor, temperature: float, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: dist.Bernoulli | None = None) -> dist.Bernoulli:
        return StraightThroughBernoulli(self.logits.expand(batch_shape), self.temperature, self._validate_args)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        noisy = self.logits + _uniform(self._extended_shape(sample_shape), self.logits).logit()
        soft = (noisy / self.temperature).sigmoid()
        return (noisy > 0).to(soft) + (soft - soft.detach())


class StraightThroughOneHot(dist.OneHotCategorical):
    """OneHotCategorical(logits) whose draws have the gradient of softmax((logits + Gumbel noise) / temperature).

    As in `StraightThroughBernoulli`, values are hard and gradients soft: this is the straight-through Gumbel-softmax.
    """

    has_rsample = True
    has_biased_rsample = True

    def __init__(self, logits: Tensor, temperature: float, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: dist.OneHotCategorical | None = None) -> dist.OneHotCategorical:
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return StraightThroughOneHot(logits, self.temperature, self._validate_args)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        noisy = self.logits - (-_uniform(self._extended_shape(sample_shape), self.logits).log()).log()
        soft = (noisy / self.temperature).softmax(-1)
        hard = one_hot(noisy.argmax(-1), noisy.shape[-1]).to(soft)
        return hard + (soft - soft.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-mass `(...)`; unlike PyTorch's, which looks up an index, it has a gradient in `value`."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


class LogitRelaxedBernoulli(TorchDistribution):
    """The logit z = (logits + logistic noise) / temperature of a relaxed bit sigmoid(z).

        p(z) = T s(m) s(-m),  m = logits - T z,  with s the sigmoid and T the temperature

    Float32 rounds a bit that is close to 0 or 1 to that value, whereas its logit keeps all of its digits. PyTorch's
    density of the logit overflows where |m| > 88; this one does not.

    Source: Maddison et al. 2017, arXiv:1611.00712.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, validate_args: bool | None = None) -> None:
        self.logits, self.temperature = logits, temperature
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> TorchDistribution:
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

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        noise = _uniform(self._extended_shape(sample_shape), self.logits).logit()
        return (self.logits + noise) / self.temperature


class LogitRelaxedOneHot(TorchDistribution):
    """The K - 1 logits z of a relaxed one-hot vector softmax(z_1, ..., z_K-1, 0), for `logits` l of shape `(..., K)`.

        z_k = (l_k + g_k - l_K - g_K) / T  with Gumbel noise g
        p(z) = (K - 1)! T^(K-1) prod_k softmax(m)_k  with m_k = l_k - T z_k, z_K = 0

    This is the concrete or Gumbel-softmax distribution in coordinates that have a density on all of R^(K-1). K = 2 is
    `LogitRelaxedBernoulli`.

    Source: Maddison et al. 2017, arXiv:1611.00712; Jang et al. 2017, arXiv:1611.01144.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, validate_args: bool | None = None) -> None:
        self.logits, self.temperature = logits, temperature
        super().__init__(logits.shape[:-1], torch.Size((logits.shape[-1] - 1,)), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> TorchDistribution:
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

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        noisy = self.logits - (-_uniform((*sample_shape, *self.logits.shape), self.logits).log()).log()
        return (noisy[..., :-1] - noisy[..., -1:]) / self.temperature


class NearestCode(TorchDistribution):
    """All mass on the one-hot vector of the code nearest to each token: log q is 0 there and -inf elsewhere.

    `encoded` has shape `(batch, num_tokens, code_dim)`, `codebook` `(num_codes, code_dim)`, and an event
    `(num_tokens, num_codes)`. A draw has no noise and is a step function of `encoded`: `rsample` is exact, and its
    gradient is 0.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.one_hot, 1)
    has_rsample = True

    def __init__(self, encoded: Tensor, codebook: Tensor) -> None:
        encoded, codebook = encoded.detach(), codebook.detach()
        distance = codebook.square().sum(-1) - 2 * encoded @ codebook.mT  # squared, less |encoded|^2
        self.code = one_hot(distance.argmin(-1), len(codebook)).to(codebook.dtype)
        super().__init__(self.code.shape[:-2], self.code.shape[-2:])

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> TorchDistribution:
        new = self._get_checked_instance(NearestCode, _instance)
        new.code = self.code.expand(*batch_shape, *self.event_shape)
        super(NearestCode, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.code

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        return self.code.expand(*sample_shape, *self.code.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        same = (value == self.code).all(-1).all(-1)
        return torch.zeros_like(value[..., 0, 0]).masked_fill(~same, -torch.inf)


def _uniform(shape: Sequence[int], like: Tensor) -> Tensor:
    """Returns uniform draws with the dtype and device of `like`, kept off 0 and 1, where logit and log are infinite."""
    limits = torch.finfo(like.dtype)
    return torch.rand(shape, dtype=like.dtype, device=like.device).clamp(limits.tiny, 1 - limits.eps)
