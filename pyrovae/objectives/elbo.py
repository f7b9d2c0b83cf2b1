"""The evidence lower bound, its path-derivative gradient, and its closed-form KL."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.objectives.base import Coefficients, Objective


@dataclass(frozen=True)
class ELBO(Objective):
    """1/K sum_k log w_k, z_k ~ q(z|x), by the reparameterised total derivative.

    Kingma and Welling 2014, arXiv:1312.6114. The Monte Carlo mean of `num_particles` draws.
    """

    takes_masked = True

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        return Coefficients.total(torch.full_like(log_weights, 1 / len(log_weights)), beta)


@dataclass(frozen=True)
class StickingTheLanding(ELBO):
    """The ELBO with the path derivative only: the guide's gradient is E[d log w/dz dz/dphi], its score term left out.

    Roeder et al. 2017, arXiv:1703.09194. Unbiased, for that term has mean 0, and without variance where q(z|x) is the
    exact posterior.
    """

    takes_masked = False
    reference = ELBO

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        weights = torch.full_like(log_weights, 1 / len(log_weights))
        return Coefficients(weights, path=weights)
