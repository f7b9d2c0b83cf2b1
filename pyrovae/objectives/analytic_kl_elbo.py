"""The ELBO with its KL in closed form, 1/K sum_k log p(x|z_k) - KL(q(z|x) || p(z)), and with a floor under the KL."""

from dataclasses import dataclass

import torch
from pyro.distributions import Independent
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.common import InputError, require, require_number, require_size
from pyrovae.objectives.base import DifferentiableELBO
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.kept_terms import kept_terms
from pyrovae.objectives.pair_call import PairCall
from pyrovae.objectives.scales import WeightedTerms, weighted_terms
from pyrovae.programs import (
    Pair,
    check_no_zero_weights,
    inner_scale,
    require_no_autoencoder,
    require_no_masks,
    warn_of_never_drawn,
)


@dataclass(frozen=True)
class AnalyticKLELBO(DifferentiableELBO):
    """Estimates the ELBO with the KL in closed form.

        1/K sum_k log p(x|z_k) - KL(q(z|x) || p(z)),  z_k ~ q(z|x)

    Several latent sites must come in one order in model and guide: the conditional KLs are taken at the draws of the
    sites before them. A pair for which PyTorch has no closed form is refused: there is no silent sampling. A beta on
    the latents multiplies the KL.

    With `free_bits` = lambda the KL of a minibatch of B data is

        B sum_j max(lambda, 1/B sum_b KL_j(q(z_j|x_b) || p(z_j)))

    A dimension below the floor costs lambda and has no KL gradient. Minus that loss lies below the ELBO. The latents'
    dimensions must then be independent in model and guide.

    Args:
        num_particles: K, the draws of z per datum.
        free_bits: The floor under the KL of each latent dimension, in nats, > 0; None for no floor.

    Raises:
        InputError: A setting is out of its range.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> floored = pv.objectives.AnalyticKLELBO(free_bits=10.0)  # above any KL here: 2 x 10 nats a datum
        >>> floored.loss(vae.model, vae.guide, torch.zeros(8, 2)) > 8 * 20
        True

    Source: Kingma and Welling 2014, arXiv:1312.6114; free bits: Kingma et al. 2016, arXiv:1606.04934, equation 15.
    """

    num_particles: int = 1
    free_bits: float | None = None

    @property
    def reference(self) -> type[ELBO] | None:
        """The objective whose gradient has the same mean; None with `free_bits`."""
        return ELBO if self.free_bits is None else None

    def __post_init__(self) -> None:
        require_size("num_particles", self.num_particles)
        if self.free_bits is not None:
            require_number("free_bits", self.free_bits, above=0)

    def _differentiable_loss(self, call: PairCall) -> Tensor:
        pair = call.run(self.num_particles, once=True)
        terms = weighted_terms(pair)
        self._keep(pair, terms)
        loss = -(terms.scale * terms.plain.log_likelihood.mean(0)).sum()
        for name, site in pair.latent.items():
            if pair.is_local(site):
                loss = loss + terms.beta * self._kl(pair, name, terms.scale)
            else:
                kl = kl_divergence(pair.guide_sites[name]["fn"], site["fn"])
                loss = loss + scale_and_mask(kl, site["scale"], site["mask"]).sum()
        for name, site in pair.observed.items():
            if not pair.is_local(site):
                loss = loss - site["scale"] * pair.log_density(name, site).sum()
        return loss

    def _keep(self, pair: Pair, terms: WeightedTerms) -> None:
        """Tells the reconstruction and the KL in closed form, without scales and without a floor."""
        kept = kept_terms()
        if kept is not None:
            with torch.no_grad():
                reconstruction = terms.plain.log_likelihood.sum()
                kls = (_kl_by_datum(pair, name).sum() for name, site in pair.latent.items() if pair.is_local(site))
                kept.add(
                    reconstruction, self.num_particles * sum(kls, torch.zeros_like(reconstruction)), self.num_particles
                )

    def _kl(self, pair: Pair, name: str, scale: Tensor) -> Tensor:
        """Returns the KL of one site, summed over the data."""
        if self.free_bits is None:
            return (scale * _kl_by_datum(pair, name)).sum()
        q, p = pair.guide_sites[name]["fn"], pair.latent[name]["fn"]
        # Under to_event the base distributions are those of the single dimensions.
        per_dimension = kl_divergence(q.base_dist, p.base_dist).mean(0)
        return scale * len(per_dimension) * per_dimension.mean(0).clamp(min=self.free_bits).sum()

    def check(self, pair: Pair) -> None:
        """Raises `InputError` if there is no closed form, or if the sum of the sites' KLs is not the KL."""
        weighted_terms(pair)
        require(
            pair.coupled is None or self.num_particles == 1,
            f'site "{pair.coupled}" lies outside the data plate and depends on latents inside it, so that several '
            "particles cannot give it to a datum: put it into the plate",
        )
        require_no_autoencoder(pair, "objective elbo_analytic_kl needs latents without a mask")
        if self.free_bits is not None:
            require(pair.layout.is_simple, "free_bits needs a pair with one data plate, at dim -1, around every site")
            require_no_masks(pair, "free_bits needs latents that every datum has")
            for name, site in pair.guide_sites.items():
                for fn in (site["fn"], pair.latent[name]["fn"]):
                    flat = isinstance(fn, Independent) and fn.event_dim == 1 and fn.base_dist.event_dim == 0
                    require(flat, f'free_bits needs latents of independent dimensions, got {fn} at site "{name}"')
        for group in pair.sums:
            inside = [name for name in group if name in pair.latent]
            require(
                not inside,
                f"objective elbo_analytic_kl needs priors without summed sites, and {inside} has one: use elbo",
            )
        for name in pair.guide_only:
            raise InputError(
                f"objective elbo_analytic_kl needs a guide that draws the latents themselves, and this one draws "
                f'"{name}", which they are made of; use objective elbo'
            )
        orders = [[name for name in sites if name in pair.latent] for sites in (pair.model_sites, pair.guide_sites)]
        require(
            orders[0] == orders[1],
            f"objective elbo_analytic_kl needs the latent sites in one order, got {orders[0]} in the model and "
            f"{orders[1]} in the guide: the KLs of the sites do not add up then; use elbo",
        )
        for name in pair.latent:
            require(
                pair.guide_sites[name]["fn"].has_rsample,
                f'objective elbo_analytic_kl needs a reparameterised guide, and site "{name}" has no rsample: use elbo',
            )
            try:
                kl_divergence(pair.guide_sites[name]["fn"], pair.latent[name]["fn"])
            # IndexError: torch's KL of two Bernoullis does not broadcast.
            except (NotImplementedError, AttributeError, IndexError) as error:
                raise InputError(
                    f'objective elbo_analytic_kl needs a closed-form KL at site "{name}", and none is registered for '
                    f"its distributions; use objective elbo"
                ) from error
        check_no_zero_weights(pair)
        warn_of_never_drawn(pair)


def _kl_by_datum(pair: Pair, name: str) -> Tensor:
    """Returns the KL of one site for each datum, `(batch,)`, averaged over the draws of the sites before it."""
    each = []
    for run in pair.runs:
        q, site = run.guide_sites[name]["fn"], run.latent[name]
        kl = scale_and_mask(kl_divergence(q, site["fn"]), inner_scale(site, run.plates), site["mask"])
        each.append(run.by_datum(kl, site))
    return torch.cat(each).mean(0)
