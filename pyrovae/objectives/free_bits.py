"""The ELBO with free bits: a KL below lambda in a latent dimension costs no more than lambda."""

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.errors import require_number
from pyrovae.objectives.pair import Pair, run_pair


class FreeBits(ELBO):
    """sum_b E_q[log p(x_b|z)] - B sum_j max(lambda, 1/B sum_b KL_j(q(z_j|x_b) || p(z_j))), KL in closed form.

    Kingma et al. 2016, arXiv:1606.04934, equation 15, per latent dimension and over the minibatch; `free_bits` is
    lambda, in nats per dimension. A beta on the latents multiplies the KL term, floor and all. Not a bound on log p(x):
    where the floor holds it lies below the ELBO, and its gradient leaves that dimension alone.

    Needs latents whose dimensions are independent in model and guide; anything else is refused.
    """

    def __init__(self, free_bits: float) -> None:
        require_number("free_bits", free_bits, above=0)
        self.free_bits = free_bits
        super().__init__(num_particles=1, max_plate_nesting=1)

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        pair = run_pair(model, guide, *args, **kwargs)
        loss = -pair.terms().log_likelihood.sum()
        for name, kl in kl_per_dimension(pair).items():
            scale = pair.latent[name]["scale"]
            loss = loss + scale * len(kl) * kl.mean(0).clamp(min=self.free_bits).sum()
        return loss

    def loss(self, model, guide, *args, **kwargs) -> float:
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def _get_trace(self, model, guide, args, kwargs):
        raise NotImplementedError("FreeBits runs the pair by itself")


def kl_per_dimension(pair: Pair) -> dict[str, Tensor]:
    """KL(q(z_j|x) || p(z_j)) in closed form, `(batch, dim)` for each latent site, of a pair with one particle."""
    kls = {}
    for name, prior in pair.latent.items():
        q, p = (site["fn"] for site in (pair.guide_sites[name], prior))
        # Under to_event the base distributions are those of the single dimensions.
        kls[name] = kl_divergence(q.base_dist, p.base_dist).squeeze(0)
    return kls
