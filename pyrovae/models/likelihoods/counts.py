"""Likelihoods of counts. Their decoders predict the logarithm of the mean, to which a size factor adds its own."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.models import count_distributions
from pyrovae.models.likelihoods.base import Likelihood, bounded_exp, require_all


class _Counts(Likelihood):
    """A likelihood of the counts 0, 1, 2, ..., which the encoder sees as log(1 + x)."""

    takes_size_factor = True

    def encoder_input(self, x: Tensor, event_dim: int) -> Tensor:
        return x.log1p()

    def check(self, x: Tensor) -> None:
        require_all((x >= 0) & (x == x.round()), x, f"x must be a whole number >= 0 under {type(self).__name__}")

    def forward(self, outputs: Tensor, event_dim: int, size_factor: Tensor | None = None) -> dist.TorchDistribution:
        raise NotImplementedError


class Poisson(_Counts):
    """The Poisson likelihood of counts, x_i ~ Poisson(rate_i) with rate_i = size_factor exp(outputs_i).

    The encoder sees log(1 + x). The size factor is 1 unless the VAE has the condition `SizeFactor`.

    Example:
        >>> p = pv.Poisson()(torch.zeros(3), event_dim=1)
        >>> p.mean
        tensor([1., 1., 1.])
        >>> pv.Poisson().check(torch.tensor([2.0, 0.5]))
        Traceback (most recent call last):
        pyrovae...InputError: x must be a whole number >= 0 under Poisson, got 0.5 at index (1,)
    """

    def output_bias(self, mean: Tensor) -> Tensor:
        return _log_mean(mean)

    def forward(self, outputs: Tensor, event_dim: int, size_factor: Tensor | None = None) -> dist.TorchDistribution:
        return count_distributions.Poisson(_scaled(outputs, size_factor, event_dim)).to_event(event_dim)


class NegativeBinomial(_Counts):
    """The negative binomial likelihood, for counts that vary more than under a Poisson.

        x_i ~ NegativeBinomial(total_count_i, logits=log(mean_i / total_count_i))
        mean_i = size_factor exp(outputs_0i),  total_count_i = exp(outputs_1i)

    The variance is mean + mean^2 / total_count; as total_count grows, the family becomes the Poisson. It is kept
    between 3e-7 and 3e6. The decoder's output has shape `(2, *event_shape)`, and the encoder sees log(1 + x). The size
    factor is 1 unless the VAE has the condition `SizeFactor`.

    Example:
        >>> likelihood = pv.NegativeBinomial()
        >>> likelihood.output_shape((3,))
        (2, 3)
        >>> p = likelihood(torch.zeros(2, 3), event_dim=1)
        >>> p.mean, p.variance
        (tensor([1., 1., 1.]), tensor([2., 2., 2.]))
    """

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return (2, *event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        return torch.stack((_log_mean(mean), torch.zeros_like(mean)))

    def forward(self, outputs: Tensor, event_dim: int, size_factor: Tensor | None = None) -> dist.TorchDistribution:
        log_mean, log_total_count = outputs.unbind(-event_dim - 1)
        return _negative_binomial(_scaled(log_mean, size_factor, event_dim), log_total_count).to_event(event_dim)


class ZeroInflatedNegativeBinomial(_Counts):
    """The negative binomial likelihood with extra zeros, which come with probability gate_i.

        P(x_i = 0) = gate_i + (1 - gate_i) NB(0),  P(x_i) = (1 - gate_i) NB(x_i) else
        gate_i = sigmoid(outputs_2i)

    NB is that of `NegativeBinomial`, with the mean of outputs_0 and the total_count of outputs_1. The decoder's output
    has shape `(3, *event_shape)`, and the encoder sees log(1 + x). The size factor is 1 unless the VAE has the
    condition `SizeFactor`.

    Example:
        >>> p = pv.ZeroInflatedNegativeBinomial()(torch.zeros(3, 2), event_dim=1)
        >>> p.mean
        tensor([0.5000, 0.5000])

    Source:
        Lopez et al. 2018, Deep generative modeling for single-cell transcriptomics.
    """

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        return (3, *event_shape)

    def output_bias(self, mean: Tensor) -> Tensor:
        # Half of all are extra zeros at first, and the others have twice the mean.
        return torch.stack((_log_mean(2 * mean), torch.zeros_like(mean), torch.zeros_like(mean)))

    def forward(self, outputs: Tensor, event_dim: int, size_factor: Tensor | None = None) -> dist.TorchDistribution:
        log_mean, log_total_count, gate_logits = outputs.unbind(-event_dim - 1)
        counts = _negative_binomial(_scaled(log_mean, size_factor, event_dim), log_total_count)
        return count_distributions.ZeroInflated(counts, gate_logits=gate_logits).to_event(event_dim)


def _negative_binomial(log_mean: Tensor, log_total_count: Tensor) -> dist.TorchDistribution:
    total_count = bounded_exp(log_total_count)
    return count_distributions.NegativeBinomial(total_count, logits=log_mean - total_count.log())


def _scaled(log_mean: Tensor, size_factor: Tensor | None, event_dim: int) -> Tensor:
    """Returns log(size_factor exp(log_mean)), for size factors `(batch,)` and means `(..., batch, *event_shape)`."""
    if size_factor is None:
        return log_mean
    log_size = size_factor.to(log_mean.dtype).log()
    return log_mean + log_size.reshape(*log_size.shape, *(1,) * event_dim)


def _log_mean(mean: Tensor) -> Tensor:
    """Returns the logarithm of the mean of data that may all be 0."""
    return mean.clamp(min=0.001).log()
