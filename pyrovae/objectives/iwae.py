"""The importance-weighted bound, with the total and with the doubly reparameterised gradient."""

from dataclasses import dataclass

from torch import Tensor

from pyrovae.objectives.base import Coefficients, Objective, log_mean_exp


@dataclass(frozen=True)
class IWAE(Objective):
    """log 1/K sum_k w_k, z_k ~ q(z|x): a lower bound on log p(x) that rises with K = `num_particles`.

    Burda et al. 2016, arXiv:1509.00519. Its gradient is sum_k w~_k d log w_k, w~ the normalised weights; the guide's
    part loses its signal as K^-1/2 (Rainforth et al. 2018): see `DReG`.
    """

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(log_weights)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        return Coefficients.total(log_weights.softmax(0), beta)


@dataclass(frozen=True)
class DReG(IWAE):
    """IWAE's bound; the guide's gradient is sum_k w~_k^2 d log w_k/dz_k dz_k/dphi, doubly reparameterised.

    Tucker et al. 2019, arXiv:1810.04152. The same mean as IWAE's, without its score term: the signal-to-noise ratio
    rises with K, and at the exact posterior the gradient is 0 without variance. Under a beta on the latents the
    coefficient is w~_k ((1 - beta) + beta w~_k): of IWAE's score term -beta w~_k d log q, reparameterisation gives
    -beta w~_k (1 - w~_k) d log w_k/dz_k.
    """

    reference = IWAE

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        weights = log_weights.softmax(0)
        return Coefficients(weights, path=weights * ((1 - beta) + beta * weights))
