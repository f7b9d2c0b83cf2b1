"""The variational Renyi bound: 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import require_number
from pyrovae.objectives.base import Objective
from pyrovae.objectives.coefficients import Coefficients
from pyrovae.programs import log_mean_exp


@dataclass(frozen=True)
class Renyi(Objective):
    """Estimates the variational Renyi bound: IWAE at alpha = 0, the ELBO at alpha = 1.

        1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha)

    Its limit in K falls with alpha: above log p(x) for alpha < 0, log p(x) itself at 0, below it for alpha > 0, and
    below the ELBO for alpha > 1, perhaps at -inf. At K = 1 its expectation is the ELBO for every alpha. As K grows, it
    moves from there to the limit: upwards for alpha < 1, downwards for alpha > 1. So it is a lower bound on log p(x)
    for alpha >= 0 at any K; for alpha < 0 it is one at small K, and none at large K.

    A weight of 0 counts as 0 for alpha < 1, and takes the bound to -inf from alpha = 1 on.

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        alpha: The order, any finite number.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: `alpha` is not a finite number.

    Example:
        >>> pv.objectives.Renyi(2, alpha=0.5).bound(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.6238])

    Source: Li and Turner 2016, arXiv:1602.02311.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("alpha", self.alpha)

    def bound(self, log_weights: Tensor) -> Tensor:
        if self.alpha == 1:
            return log_weights.mean(0)
        largest, powers = self._powers(log_weights)
        # Near alpha = 1 the mean of w^(1 - alpha) is nearly 1. Its distance from 1 is summed, so that it is not lost.
        small = powers.abs().amax(0) < 1
        log_mean = torch.where(small, torch.log1p(torch.expm1(powers).mean(0)), log_mean_exp(powers))
        return largest + log_mean / (1 - self.alpha)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        if self.alpha == 1:
            return Coefficients.total(torch.full_like(log_weights, 1 / len(log_weights)), beta)
        # The softmax of infinite powers would be nan. For alpha > 1 the weights of 0 then decide alone.
        powers = self._powers(log_weights)[1].clamp(max=torch.finfo(log_weights.dtype).max)
        return Coefficients.total(powers.softmax(0), beta)

    def _powers(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the largest log-weight, and (1 - alpha) times the distance of each from it; 0 if all are -inf."""
        largest = log_weights.amax(0)
        distance = torch.where(log_weights == largest, 0.0, log_weights - largest)
        return largest, (1 - self.alpha) * distance
