"""The evidence lower bound: 1/K sum_k log w_k, with its total and with its path-derivative gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.objectives.base import Objective
from pyrovae.objectives.coefficients import Coefficients


@dataclass(frozen=True)
class ELBO(Objective):
    """Estimates the evidence lower bound by a mean over draws, with the reparameterised total derivative.

        1/K sum_k log w_k,  z_k ~ q(z|x)

    Sites of the guide without `rsample` get the score function with the mean of the other draws as a baseline, those
    that are marked `infer={"enumerate": "parallel"}` are summed over, and all others get their path derivative. Points
    (`Delta`) in the guide give the maximum a posteriori.

    Args:
        num_particles: K, the draws of z per datum; more of them lower the variance and leave the bound as it is.
        chunk_size: How many particles are run at a time; None runs all at once.
        joint, plate, vectorize_particles: As in `Objective`.

    Example:
        >>> pv.objectives.ELBO(2).bound(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.5493])

        It is a loss for Pyro's SVI as it is:

        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.objectives.ELBO())
        >>> svi.step(torch.zeros(8, 2)) > 0
        True

    Source: Kingma and Welling 2014, arXiv:1312.6114.
    """

    takes_points = True
    takes_subsampled = True
    sums_marked = True

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        return Coefficients.total(torch.full_like(log_weights, 1 / len(log_weights)), beta)


@dataclass(frozen=True)
class StickingTheLanding(ELBO):
    """Estimates the ELBO with the path derivative only: the guide's gradient has no score term.

        1/K sum_k d log w_k/dz_k  dz_k/dphi

    The gradient is unbiased, as the mean of the score term is 0, and has no variance if q(z|x) is the exact posterior.
    Sites c without `rsample` get (log w_k - b_k) d log q(c_k|upstream) with the mean b_k of the other log-weights, and
    that has no variance there either, if there are two draws.

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        joint, plate, vectorize_particles: As in `Objective`.

    Example:
        >>> gradient = pv.objectives.StickingTheLanding(2).coefficients(torch.zeros(2, 1), torch.ones(()))
        >>> gradient.path.flatten(), gradient.score
        (tensor([0.5000, 0.5000]), None)

    Source: Roeder, Wu and Duvenaud 2017, arXiv:1703.09194.
    """

    takes_points = False
    sums_marked = False
    reference = ELBO

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        weights = torch.full_like(log_weights, 1 / len(log_weights))
        return Coefficients(weights, path=weights)

    def without_rsample(self, log_weights: Tensor, beta: Tensor) -> Tensor:
        return self._learning_signal(self.bound, log_weights)
