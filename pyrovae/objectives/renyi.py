"""The variational Renyi bound."""

from dataclasses import dataclass

from torch import Tensor

from pyrovae.errors import require_number
from pyrovae.objectives.base import Coefficients, Objective, log_mean_exp


@dataclass(frozen=True)
class Renyi(Objective):
    """1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha): IWAE at alpha = 0, the ELBO at alpha = 1.

    Li and Turner 2016, arXiv:1602.02311. In the limit of K a lower bound on log p(x) for alpha > 0 and an upper one for
    alpha < 0; with finite K its expectation is below that limit.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("alpha", self.alpha)

    def bound(self, log_weights: Tensor) -> Tensor:
        if self.alpha == 1:
            return log_weights.mean(0)
        return log_mean_exp((1 - self.alpha) * log_weights) / (1 - self.alpha)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        return Coefficients.total(((1 - self.alpha) * log_weights).softmax(0), beta)
