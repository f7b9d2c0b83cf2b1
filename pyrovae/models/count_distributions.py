"""Distributions of counts whose log-densities neither underflow nor cancel."""

import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.types import _size


class Poisson(dist.Poisson):
    """Poisson(exp(log_rate)), with a log-density that is computed in float64 and does not take the rate's logarithm.

    In PyTorch's class a rate that underflows to 0 has a gradient of 0 / 0. Its formula is a small difference of large
    numbers, whose error in float32 is 0.3 nats at a count of a million.
    """

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: dist.Poisson | None = None) -> dist.Poisson:
        expanded = super().expand(batch_shape, self._get_checked_instance(Poisson, _instance))
        expanded.log_rate = self.log_rate.expand(batch_shape)
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_rate, count = self.log_rate.double(), value.double()
        return (count * log_rate - log_rate.exp() - (count + 1).lgamma()).to(self.log_rate.dtype)


class NegativeBinomial(dist.NegativeBinomial):
    """The negative binomial distribution, with a log-density that is computed in float64.

        P(x) = Gamma(x + total_count) / (Gamma(total_count) x!) (1 - p)^total_count p^x,    p = sigmoid(logits)

    PyTorch's formula is a small difference of logarithms of the gamma function. In float32 its error is 1 nat at a
    `total_count` of a million, where counts that vary as under a Poisson lead.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        total, logits, count = self.total_count.double(), self.logits.double(), value.double()
        log_ways = (total + count).lgamma() - total.lgamma() - (count + 1).lgamma()
        return (log_ways + total * logsigmoid(-logits) + count * logsigmoid(logits)).to(self.logits.dtype)


class ZeroInflated(dist.ZeroInflatedDistribution):
    """A mixture of zeros, with probability sigmoid(gate_logits), and of counts under another distribution.

    Pyro's class remembers the gate once it was asked for, as by its mean. It then cannot be expanded any more, and its
    log-density takes the logarithm of a probability that may underflow.
    """

    @property
    def gate(self) -> Tensor:
        return self.gate_logits.sigmoid()
