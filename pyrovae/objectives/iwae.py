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
    (Rainforth et al. 2018): see `DReG`. Sites c of the guide without `rsample` get VIMCO's term,
    (L - L_-k - beta w~_k) d log q(c_k|upstream), which goes through reparameterised draws upstream, too.

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        joint, plate, vectorize_particles: As in `Objective`.

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

    With sites c of the guide without `rsample`, upstream or downstream of z, that step leaves another term. The two
    ways to differentiate E[f] at held f, by the score function alone and through the draws z(phi), are equal:

        E[f d log q(z|.) + f d log q(c|.)] at held z  =  E[df/dz dz/dphi + f D log q(c|.)]

    with D the total derivative, through z(phi). So with f = w~_k the score terms -beta w~_k d log q at held z become
    the path term above and -beta w~_k D log q(c_k|upstream), and the whole factor of D log q(c_k|upstream) is
    L - L_-k - beta w~_k, as in `IWAE`. Here beta / K is added to it: the mean of D log q is 0, and at the exact
    posterior the factor is then 0.

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        joint, plate, vectorize_particles: As in `Objective`.

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

    def without_rsample(self, log_weights: Tensor, beta: Tensor) -> Tensor:
        signal = self._learning_signal(self.bound, log_weights)
        return signal - beta * (log_weights.softmax(0) - 1 / len(log_weights))
