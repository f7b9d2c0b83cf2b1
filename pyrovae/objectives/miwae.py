"""Bounds that combine ELBO and IWAE, so that the guide keeps its signal: MIWAE, PIWAE, CIWAE.

Rainforth et al. 2018, arXiv:1802.04537.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import require, require_count, require_number
from pyrovae.objectives.base import Coefficients, Objective, log_mean_exp


@dataclass(frozen=True)
class MIWAE(Objective):
    """1/M sum_m log 1/K sum_k w_mk: the mean of M = `num_batches` IWAE bounds of K = `num_particles` draws each.

    MIWAE(M, 1) is the ELBO of M draws, MIWAE(1, K) is IWAE(K). Draws are ordered batch by batch.
    """

    num_batches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("num_batches", self.num_batches)

    @property
    def num_draws(self) -> int:
        return self.num_batches * self.num_particles

    def bound(self, log_weights: Tensor) -> Tensor:
        grouped = log_weights.unflatten(0, (self.num_batches, self.num_particles))
        return log_mean_exp(grouped.movedim(1, 0)).mean(0)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        return Coefficients.total(self._weights(log_weights), beta)

    def _weights(self, log_weights: Tensor) -> Tensor:
        grouped = log_weights.unflatten(0, (self.num_batches, self.num_particles))
        return grouped.softmax(1).flatten(0, 1) / self.num_batches


@dataclass(frozen=True)
class PIWAE(MIWAE):
    """The model under IWAE(M K), the guide under MIWAE(M, K), from the same draws. `bound` is the model's.

    A parameter that both share gets the sum of its gradient under the one as the model's and under the other as the
    guide's.
    """

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        guide = self._weights(log_weights)
        return Coefficients(log_weights.softmax(0), path=guide, score=-beta * guide)


@dataclass(frozen=True)
class CIWAE(Objective):
    """c 1/K sum_k log w_k + (1 - c) log 1/K sum_k w_k, c = `elbo_weight` in [0, 1]: the ELBO at 1, IWAE at 0."""

    elbo_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("elbo_weight", self.elbo_weight)
        require(0 <= self.elbo_weight <= 1, f"elbo_weight must lie in [0, 1], got {self.elbo_weight}")

    def bound(self, log_weights: Tensor) -> Tensor:
        elbo, iwae = log_weights.mean(0), log_mean_exp(log_weights)
        if self.elbo_weight in (0, 1):  # 0 times the -inf of the other would be nan
            return elbo if self.elbo_weight == 1 else iwae
        return self.elbo_weight * elbo + (1 - self.elbo_weight) * iwae

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        equal = torch.full_like(log_weights, 1 / len(log_weights))
        return Coefficients.total(self.elbo_weight * equal + (1 - self.elbo_weight) * log_weights.softmax(0), beta)
