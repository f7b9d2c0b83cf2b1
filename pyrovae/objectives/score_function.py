"""Gradients through the density q(z|x) and not through its draws, for discrete and any other latents.

ScoreFunction  1/K sum_k (log w_k - b_k) d log q(z_k|x)
VIMCO          sum_k (L - L_-k - beta w~_k) d log q(z_k|x)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.common import require, require_choice
from pyrovae.objectives.base import Objective
from pyrovae.objectives.coefficients import Coefficients
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.iwae import IWAE
from pyrovae.objectives.learning_signal import learning_signal
from pyrovae.programs import log_mean_exp

BASELINES = ("none", "leave_one_out")


@dataclass(frozen=True)
class ScoreFunction(Objective):
    """Estimates the ELBO with a score-function gradient of the guide (REINFORCE).

        1/K sum_k (log w_k - b_k) d log q(z_k|x)

    Args:
        num_particles: K, the draws of z per datum; with a baseline at least 2.
        chunk_size: How many particles are run at a time; None runs all at once.
        baseline: "none" for b_k = 0, or "leave_one_out" for the mean of the other particles,
            b_k = 1/(K-1) sum_{j != k} log w_j, which lowers the variance.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: The baseline is unknown, or needs more particles.

    Example:
        >>> objective = pv.objectives.ScoreFunction(2, baseline="leave_one_out")
        >>> objective.coefficients(torch.tensor([[1.0], [3.0]]), torch.ones(())).score.flatten()
        tensor([-1.,  1.])

    Source: Williams 1992; the baseline: Kool, van Hoof and Welling 2019.
    """

    baseline: str = "none"

    reference = ELBO

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("baseline", self.baseline, BASELINES)
        alone = self.baseline == "leave_one_out" and self.num_particles < 2
        require(not alone, f"num_particles must be >= 2 with baseline leave_one_out, got {self.num_particles}")

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        count = len(log_weights)
        others = 0.0 if self.baseline == "none" else (log_weights.sum(0) - log_weights) / (count - 1)
        return Coefficients(torch.full_like(log_weights, 1 / count), score=(log_weights - others) / count)


@dataclass(frozen=True)
class VIMCO(Objective):
    """Estimates IWAE's bound L with a score-function gradient of the guide that has a baseline per particle.

        sum_k (L - L_-k - beta w~_k) d log q(z_k|x)

    L_-k is L with w_k replaced by the geometric mean of the other weights. If all others are 0, it says nothing, and
    the draw has no part in the gradient.

    Args:
        num_particles: K >= 2, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: There are fewer than two particles.

    Example:
        >>> objective = pv.objectives.VIMCO(2)
        >>> objective.bound(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.6931])

    Source: Mnih and Rezende 2016, arXiv:1602.06725, for beta = 1.
    """

    num_particles: int = 2
    min_particles = 2
    reference = IWAE

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        return Coefficients(log_weights.softmax(0), score=vimco_score(log_weights, beta))


def vimco_score(log_weights: Tensor, beta: Tensor | float = 1.0) -> Tensor:
    """Returns the factors L - L_-k - beta w~_k of d log q(z_k|x), `(num_particles, batch)`."""
    return learning_signal(log_mean_exp, log_weights) - beta * log_weights.softmax(0)
