"""The score function of IWAE's bound, with control variates whose noise falls faster than the guide's gradient."""

import math
from dataclasses import dataclass

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.common import require, require_number
from pyrovae.objectives.base import Objective
from pyrovae.objectives.coefficients import Coefficients
from pyrovae.objectives.iwae import IWAE
from pyrovae.programs import log_mean_exp


@dataclass(frozen=True)
class OVIS(Objective):
    """Estimates IWAE's bound L with a score-function gradient of the guide whose signal-to-noise ratio rises with K.

        sum_k (L - w~_k - c_k) d log q(z_k|x)
        c_k = log Z_-k - gamma w~_k + (1 - gamma) log(1 - 1/K),  Z_-k = 1/(K-1) sum_{j != k} w_j

    w~_k are the normalised weights. At gamma = 0 no c_k depends on its own draw, so that the gradient has the mean of
    IWAE's. Its factor is -log(1 - w~_k) - w~_k, about w~_k^2 / 2: draws of little weight bring hardly any noise. In
    `VIMCO` each brings a factor of about -1/K. At gamma = 1 the factor is log(1 - 1/K) - log(1 - w~_k), about
    w~_k - 1/K where no weight is large. This is no gradient of the bound, but that of `ReweightedWakeSleep` with a
    baseline. In between the two are mixed.

    Global draws get the factor of gamma = 0, the bound's own. Under a beta on the latents the factor at gamma = 0 is
    -log(1 - w~_k) - beta w~_k; another gamma refuses a beta. If all other weights are 0, the draw has no part in the
    guide's gradient, as in `VIMCO`.

    Args:
        num_particles: K >= 2, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        gamma: From 0, unbiased, to 1, wake-phi with a baseline.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: There are fewer than two particles, or `gamma` lies outside [0, 1].

    Example:
        >>> log_w = torch.tensor([[1.0], [3.0]]).log()
        >>> pv.objectives.OVIS(2).coefficients(log_w, torch.ones(())).score.flatten()  # -log(3/4) - 1/4, ...
        tensor([0.0377, 0.6363])

    Source: Lievin, Dittadi, Christensen and Winther 2020, arXiv:2008.01998, for beta = 1.
    """

    num_particles: int = 2
    gamma: float = 0.0

    min_particles = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("gamma", self.gamma)
        require(0 <= self.gamma <= 1, f"gamma must lie in [0, 1], got {self.gamma}")

    @property
    def reference(self) -> type[PyroELBO] | None:
        """`IWAE` at gamma = 0; None for any other gamma, whose gradient has another mean."""
        return IWAE if self.gamma == 0 else None

    @property
    def takes_beta(self) -> bool:
        """True at gamma = 0, where the gradient is that of the bound at any beta."""
        return self.gamma == 0

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        return Coefficients(log_weights.softmax(0), score=_score(log_weights, beta, self.gamma))

    def outer_score(self, log_weights: Tensor) -> Tensor | None:
        return None if self.gamma == 0 else _score(log_weights, 1.0, 0.0)


def _score(log_weights: Tensor, beta: Tensor | float, gamma: float) -> Tensor:
    """Returns the factors of d log q(z_k|x), `(num_particles, batch)`.

    They are differences of numbers of one size, so that log L and log Z_-k are never formed: in float32 both have an
    error above w~_k^2 / 2 where log p(x) is -100 nats. A share above 1/2, which may be 1 to the last bit, takes
    log(1 - w~_k) from the logarithms of all others, and any smaller one from itself.
    """
    log_shares = log_weights.log_softmax(0)
    shares = log_shares.exp()
    is_most = shares > 0.5
    log_rest = torch.where(is_most, -math.inf, log_shares).logsumexp(0)
    log_others = torch.where(is_most, log_rest, torch.log1p(-shares))
    return -log_others - (beta - gamma) * shares + gamma * math.log1p(-1 / len(log_weights))
