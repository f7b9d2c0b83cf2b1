"""The variational Renyi bound."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import require_number
from pyrovae.objectives.base import Coefficients, Objective, log_mean_exp


@dataclass(frozen=True)
class Renyi(Objective):
    """1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha): IWAE at alpha = 0, the ELBO at alpha = 1.

    Li and Turner 2016, arXiv:1602.02311. Its limit in K falls with alpha: above log p(x) for alpha < 0, log p(x) itself
    at 0, below it for alpha > 0, and below the ELBO for alpha > 1, perhaps at -inf. At K = 1 its expectation is the
    ELBO for every alpha, and goes from there to the limit as K grows: upwards for alpha < 1, downwards for alpha > 1.
    So it is a lower bound on log p(x) for alpha >= 0 at any K; for alpha < 0 it is one at small K, and none at large.

    A weight of 0 counts as 0 for alpha < 1, and takes the bound to -inf from alpha = 1 on.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("alpha", self.alpha)

    def bound(self, log_weights: Tensor) -> Tensor:
        if self.alpha == 1:
            return log_weights.mean(0)
        largest, powers = self._powers(log_weights)
        # Near alpha = 1 the mean of w^(1 - alpha) is nearly 1: its distance from 1 is summed, and not lost in the sum.
        small = powers.abs().amax(0) < 1
        log_mean = torch.where(small, torch.log1p(torch.expm1(powers).mean(0)), log_mean_exp(powers))
        return largest + log_mean / (1 - self.alpha)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        if self.alpha == 1:
            return Coefficients.total(torch.full_like(log_weights, 1 / len(log_weights)), beta)
        # Not infinite, of which a softmax is not a number: alpha > 1 goes by the weights of 0 alone.
        powers = self._powers(log_weights)[1].clamp(max=torch.finfo(log_weights.dtype).max)
        return Coefficients.total(powers.softmax(0), beta)

    def _powers(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """The largest log-weight, and (1 - alpha) times what the others are from it, which is 0 if all are -inf."""
        largest = log_weights.amax(0)
        distance = torch.where(log_weights == largest, 0.0, log_weights - largest)
        return largest, (1 - self.alpha) * distance
