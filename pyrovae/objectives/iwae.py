"""The importance-weighted bound: log 1/K sum_k w_k, with its total and with its doubly reparameterised gradient."""

from dataclasses import dataclass

from torch import Tensor

from pyrovae.objectives.base import Objective
from pyrovae.objectives.coefficients import Coefficients
from pyrovae.programs import log_mean_exp


@dataclass(frozen=True)
class IWAE(Objective):
    """Estimates the importance-weighted bound, a lower bound on log p(x) that rises with K.

        log 1/K sum_k w_k,  z_k ~ q(z|x)

    Its gradient is sum_k w~_k d log w_k, with the normalised weights w~. The guide's part loses its signal as K^-1/2
    (Rainforth et al. 2018): see `DReG`.

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.

    Example:
        >>> pv.objectives.IWAE(2).bound(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.6931])

    Source: Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519.
    """

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        return Coefficients.total(log_weights.softmax(0), beta)


@dataclass(frozen=True)
class DReG(IWAE):
    """Estimates IWAE's bound with a doubly reparameterised gradient of the guide.

        sum_k w~_k^2 d log w_k/dz_k  dz_k/dphi

    It has the mean of IWAE's, without its score term: the signal-to-noise ratio rises with K, and at the exact
    posterior the gradient is 0 without variance. Under a beta on the latents the coefficient is
    w~_k ((1 - beta) + beta w~_k): reparameterisation turns IWAE's score term -beta w~_k d log q into
    -beta w~_k (1 - w~_k) d log w_k/dz_k.

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.

    Example:
        >>> log_w = torch.tensor([[1.0], [3.0]]).log()
        >>> pv.objectives.DReG(2).coefficients(log_w, torch.ones(())).path.flatten()
        tensor([0.0625, 0.5625])

    Source: Tucker, Lawson, Gu and Maddison 2019, arXiv:1810.04152.
    """

    reference = IWAE

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        weights = log_weights.softmax(0)
        return Coefficients(weights, path=weights * ((1 - beta) + beta * weights))
