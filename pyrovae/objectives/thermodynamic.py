"""The thermodynamic variational objective: sum_i (t_i+1 - t_i) E_{pi_t_i}[log w]."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import require_number, require_size
from pyrovae.objectives.base import Objective
from pyrovae.objectives.coefficients import Coefficients


@dataclass(frozen=True)
class ThermodynamicVO(Objective):
    """Estimates the left Riemann sum of an integral that is log p(x).

        log p(x) = int_0^1 E_{pi_t}[log w] dt,  pi_t proportional to q(z|x)^(1-t) p(x, z)^t

    E_{pi_t} is estimated from the same K draws of q with normalised weights w^t, at t_0 = 0 and `num_partitions` - 1
    points spaced evenly in log t from `first` to 1 exclusive. The integrand rises with t, so that
    left sum <= log 1/K sum_k w_k <= right sum on any draws; with one partition the left sum is the ELBO.

    The gradient is the covariance estimator: d E_{pi_t}[log w] = E[d log w] + Cov[d log pi~_t, log w], with
    d log pi~_t = t d log p(x, z) + (1 - t) d log q(z|x) at fixed z, so that it serves discrete latents too. It is not
    defined for a beta on the latents.

    Args:
        num_particles: K >= 2, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        num_partitions: The number of intervals of t.
        first: The first point after 0, between 0 and 1, exclusive.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: A setting is out of its range.

    Example:
        >>> objective = pv.objectives.ThermodynamicVO(2, num_partitions=2, first=0.5)
        >>> objective.points()
        (0.0, 0.5, 1.0)
        >>> left, right = objective.sums(torch.tensor([[1.0], [3.0]]).log())
        >>> left < torch.tensor(2.0).log() < right  # of log 1/K sum_k w_k
        tensor([True])

    Source: Masrani, Le and Wood 2019, arXiv:1907.00031.
    """

    num_particles: int = 10
    num_partitions: int = 2
    first: float = 0.025

    min_particles = 2
    takes_beta = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_size("num_partitions", self.num_partitions)
        require_number("first", self.first, above=0, below=1)

    def points(self) -> tuple[float, ...]:
        """Returns 0 = t_0 < t_1 < ... < t_P = 1, with P = `num_partitions`."""
        last = self.num_partitions - 1
        return (0.0, *(self.first ** (1 - i / last) for i in range(last)), 1.0)

    def sums(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the left and the right Riemann sum for each datum, `(batch,)`, on these draws."""
        t = self.points()
        means = torch.stack([self._mean(log_weights, point) for point in t])
        widths = log_weights.new_tensor(t).diff().unsqueeze(-1)
        return (widths * means[:-1]).sum(0), (widths * means[1:]).sum(0)

    def _mean(self, log_weights: Tensor, point: float) -> Tensor:
        """Returns E_{pi_t}[log w]; a weight of 0 makes it -inf at t = 0, and has no part in it at t > 0."""
        if point == 0:
            return log_weights.mean(0)
        weights = (point * log_weights).softmax(0)
        mean = torch.where(weights == 0, 0.0, weights * log_weights).sum(0)
        return torch.where((log_weights == -math.inf).all(0), -math.inf, mean)

    def bound(self, log_weights: Tensor) -> Tensor:
        return self.sums(log_weights)[0]

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        model, score = torch.zeros_like(log_weights), torch.zeros_like(log_weights)
        for point, after in itertools.pairwise(self.points()):
            width = after - point
            weights = (point * log_weights).softmax(0) if point else torch.full_like(log_weights, 1 / len(log_weights))
            centred = weights * (log_weights - self._mean(log_weights, point))
            if point == 0 and len(log_weights) > 1:
                centred = centred * len(log_weights) / (len(log_weights) - 1)  # the covariance under q itself, unbiased
            # E[d log w] and the covariance with t d log p + (1 - t) d log q
            model = model + width * (weights + point * centred)
            score = score + width * (-weights + (1 - point) * centred)
        return Coefficients(model, score=score)
