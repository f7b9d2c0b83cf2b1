"""IWAE's bound with doubly reparameterised gradients of the guide and of the priors."""

from dataclasses import dataclass, replace

from torch import Tensor

from pyrovae.common import require
from pyrovae.objectives.coefficients import Coefficients
from pyrovae.objectives.iwae import DReG
from pyrovae.objectives.prior_paths import moving_draws
from pyrovae.programs import Pair, never_drawn


@dataclass(frozen=True)
class GDReG(DReG):
    """Estimates IWAE's bound with the guide's gradient of `DReG`, and with one of the same kind for the priors.

    A prior p(z_l|z_>l; theta) in the model, of one layer or of several, has the plain gradient
    sum_k w~_k d log p(z_kl|z_k,>l) in `IWAE` and `DReG`. Here the draw z_kl ~ q is taken for one of the prior, z_kl =
    T(e; theta), at the noise e that the prior would have needed for it, and moves with theta:

        sum_k (w~_k d/dz_kl [log p(x, z_k) - log p(z_kl|z_k,>l)] - w~_k^2 d log w_k/dz_kl) dT/dtheta

    The mean is that of the plain gradient. With a likelihood that does not depend on z_l, and its prior as the guide,
    this gradient is 0 without noise, and little noise is left where the data say little about z_l: layers far from
    the data. Where the data say more than the prior does, the plain gradient of `DReG` has less noise.

    A site has the new gradient if its prior is a location and a scale (Normal, Laplace, Cauchy, Gumbel, Logistic), a
    multivariate Normal, or a bijection of one of them (`TransformedDistribution`: LogNormal, flows), and if the guide
    draws it with `rsample`. All other parameters have that of `DReG`, which is unbiased for them, too. The guide must
    reach all that the prior can give. Under a beta on the latents, w~_k^2 is w~_k ((1 - beta) + beta w~_k).

    Args:
        num_particles: K, the draws of z per datum.
        chunk_size: How many particles are run at a time; None runs all at once.
        joint, plate, vectorize_particles: As in `Objective`.

    Raises:
        InputError: At a loss, no site has a prior of these kinds, or the guide never draws a part of a prior.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5), prior=pv.priors.Flow(2))
        >>> svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.objectives.GDReG(8))
        >>> svi.step(torch.zeros(8, 2)) > 0
        True

    Source: Bauer and Mnih 2021, arXiv:2101.11046; the derivation is our own.
    """

    def coefficients(self, log_weights: Tensor, beta: Tensor) -> Coefficients:
        found = super().coefficients(log_weights, beta)
        assert found.path is not None
        return replace(found, prior_path=-found.path)

    def check(self, pair: Pair) -> None:
        name, missing = type(self).__name__, never_drawn(pair)
        require(missing is None, f"{name} needs a guide that reaches all that the prior can give: {missing}; use dreg")
        super().check(pair)
        require(
            len(moving_draws(pair)) > 0,
            f"{name} needs a latent of each datum that the guide draws with rsample and whose prior is a location and "
            "a scale or a bijection of one, and there is none: use dreg",
        )
