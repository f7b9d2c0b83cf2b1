"""Bounds that combine ELBO and IWAE, so that the guide keeps its signal.

    MIWAE  1/M sum_m log 1/K sum_k w_mk
    PIWAE  the model under log 1/(M K) sum_mk w_mk, the guide under MIWAE
    CIWAE  c 1/K sum_k log w_k + (1 - c) log 1/K sum_k w_k

Rainforth et al. 2018, arXiv:1802.04537.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import require, require_number, require_size
from pyrovae.objectives.base import Objective
from pyrovae.objectives.coefficients import Coefficients
from pyrovae.programs import log_mean_exp


@dataclass(frozen=True)
class MIWAE(Objective):
    """Estimates the mean of M IWAE bounds of K draws each.

        1/M sum_m log 1/K sum_k w_mk

    With K = 1 it is the ELBO of M draws, with M = 1 it is IWAE. Draws are ordered batch by batch. This is not the MIWAE
    of Mattei and Frellsen 2019 (arXiv:1812.02633): they call `IWAE` so on a `VAE` with `missing="mask"`.

    Args:
        num_particles: K, the draws of z in each batch.
        chunk_size: How many particles are run at a time; None runs all at once.
        num_batches: M, the number of batches; M K draws of z are made per datum.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: A setting is not a whole number >= 1.

    Example:
        >>> log_w = torch.tensor([[1.0], [3.0], [4.0], [4.0]]).log()
        >>> pv.objectives.MIWAE(2, num_batches=2).bound(log_w)  # (log 2 + log 4) / 2
        tensor([1.0397])

    Source: Rainforth et al. 2018, arXiv:1802.04537.
    """

    num_batches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_size("num_batches", self.num_batches)

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
    """Trains the model under IWAE of M K draws and the guide under MIWAE, from the same draws.

        model  log 1/(M K) sum_mk w_mk
        guide  1/M sum_m log 1/K sum_k w_mk

    `bound` is the model's. A parameter that both share gets the sum of its gradient as the model's under the one and as
    the guide's under the other.

    Args:
        num_particles: K, the draws of z in each batch.
        chunk_size: How many particles are run at a time; None runs all at once.
        num_batches: M, the number of batches; M K draws of z are made per datum.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: A setting is not a whole number >= 1.

    Example:
        >>> log_w = torch.tensor([[1.0], [3.0], [4.0], [4.0]]).log()
        >>> gradient = pv.objectives.PIWAE(2, num_batches=2).coefficients(log_w, torch.ones(()))
        >>> gradient.model.flatten(), gradient.path.flatten()
        (tensor([0.0833, 0.2500, 0.3333, 0.3333]), tensor([0.1250, 0.3750, 0.2500, 0.2500]))

    Source: Rainforth et al. 2018, arXiv:1802.04537.
    """

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        guide = self._weights(log_weights)
        return Coefficients(log_weights.softmax(0), path=guide, score=-beta * guide)

    def without_rsample(self, log_weights: Tensor, beta: Tensor) -> Tensor:
        return self._learning_signal(super().bound, log_weights)


@dataclass(frozen=True)
class CIWAE(Objective):
    """Estimates a weighted mean of the ELBO and IWAE.

        c 1/K sum_k log w_k + (1 - c) log 1/K sum_k w_k

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        elbo_weight: c in [0, 1]: the ELBO at 1, IWAE at 0.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: `elbo_weight` lies outside [0, 1].

    Example:
        >>> pv.objectives.CIWAE(2, elbo_weight=0.5).bound(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.6212])

    Source: Rainforth et al. 2018, arXiv:1802.04537.
    """

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
