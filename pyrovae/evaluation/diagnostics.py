"""What the latent space does: ELBO terms per datum, KL per dimension, active units, posterior collapse, diversity."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.common import evaluates, require, require_count
from pyrovae.models import VAE, Diagonal, Standard
from pyrovae.programs import PairTerms, gate, run_pair

ACTIVE_VARIANCE = 0.01
DRAWS, CHUNK = 32, 256


@evaluates
@torch.no_grad()
def elbo_terms(model: Callable, guide: Callable, *args: Tensor, num_particles: int = 1) -> dict[str, Tensor]:
    """`elbo`, `reconstruction` and `kl` for each datum, `(batch,)`, in nats, at beta = 1: elbo = reconstruction - kl.

    reconstruction = E_q[log p(x|z)] and kl = E_q[log q(z|x) - log p(z)], Monte Carlo means over `num_particles` draws.
    """
    pair = run_pair(model, guide, *args, num_particles=num_particles)
    gate.check_once(model, guide, None, pair, args, {})
    terms: PairTerms = pair.terms()
    reconstruction, kl = terms.log_likelihood.mean(0), (terms.log_posterior - terms.log_prior).mean(0)
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


@evaluates
@torch.no_grad()
def kl_per_dimension(vae: VAE, *args: Tensor) -> Tensor:
    """KL(q(z_j|x) || p(z_j)) in closed form, `(batch, latent_dim)`, in nats, of a diagonal posterior and prior."""
    require(has_kl_per_dimension(vae), "a KL per dimension needs posterior diagonal and prior standard")
    return kl_divergence(vae.encode(*args).base_dist, vae.prior.base_dist)


def has_kl_per_dimension(vae: VAE) -> bool:
    return isinstance(vae.posterior_family, Diagonal) and isinstance(vae.prior_family, Standard)


@dataclass(frozen=True)
class LatentUse:
    """What each latent dimension says about the data, `(latent_dim,)`.

    `variance` is Cov_x(E_q[z_j|x]), the variance over data of the posterior mean; `kl` the mean over data of
    KL(q(z_j|x) || p(z_j)) in nats. A unit is active where `variance` > 0.01 (Burda et al. 2016, arXiv:1509.00519).
    """

    variance: Tensor
    kl: Tensor

    @property
    def active(self) -> Tensor:
        return self.variance > ACTIVE_VARIANCE

    @property
    def num_active(self) -> int:
        return int(self.active.sum())

    @property
    def warning(self) -> str | None:
        """Names the dimensions that have collapsed to the prior, counted from 1; None where all are active."""
        collapsed = (~self.active).nonzero().flatten()
        if len(collapsed) == 0:
            return None
        names = ", ".join(str(int(j) + 1) for j in collapsed)
        share = f"{len(collapsed)} of {len(self.variance)}"
        return (
            f"posterior collapse: latent dimensions {names} ({share}) say nothing about the data "
            f"(variance of E[z|x] <= {ACTIVE_VARIANCE}, KL {self.kl[collapsed].sum().item():.3g} nats in all)"
        )


@evaluates
@torch.no_grad()
def latent_use(vae: VAE, *args: Tensor) -> LatentUse:
    """The use of each latent dimension over these data (all of them at once: it is a variance over data)."""
    require(len(args[0]) > 1, "a variance over data needs at least 2, got 1")
    return LatentUse(vae.encode(*args).mean.var(0), kl_per_dimension(vae, *args).mean(0))


@evaluates
@torch.no_grad()
def active_units(model: Callable, guide: Callable, *args: Tensor) -> int:
    """The number of latent coordinates, over all sites, with Cov_x(E_q[z_j|x]) > 0.01, for any pair.

    The variance over data of the guide's mean (Burda et al. 2016, arXiv:1509.00519). Where a site's distribution has no
    mean, or depends on another draw, E_q is the average of 32 draws (of fewer than 200 data, 512), and what they add to
    the variance is taken off.
    """
    require(len(args[0]) > 1, "a variance over data needs at least 2, got 1")
    means, noise, num_draws = [], 0.0, DRAWS if len(args[0]) >= 200 else 16 * DRAWS
    for chunk in zip(*(arg.split(CHUNK) for arg in args), strict=True):
        pair = run_pair(model, guide, *chunk, num_particles=num_draws)
        gate.check_once(model, guide, None, pair, chunk, {})
        sites = pair.guide_sites.values()
        draws = torch.cat([_mean_or_draw(site) for site in sites], -1)
        means.append(draws.mean(0))
        noise = noise + draws.var(0).sum(0) / (num_draws * len(args[0]))
    return int((torch.cat(means).var(0) - noise > ACTIVE_VARIANCE).sum())


def _mean_or_draw(site: dict) -> Tensor:
    """`(particles, batch, coordinates)`."""
    value = site["value"]
    try:
        mean = site["fn"].mean
    except (NotImplementedError, AttributeError):
        mean = value
    mean = mean if bool(mean.isfinite().all()) else value
    return mean.expand_as(value).double().reshape(*value.shape[:2], -1)


@evaluates
def sample_diversity(vae: VAE, num_samples: int, y: Tensor | tuple[Tensor, ...] = ()) -> float:
    """Mean over coordinates of the variance of E[x|z, y] over z ~ p(z) (and over the given y): 0 where all are one."""
    require_count("num_samples", num_samples, 2)
    return vae.sample(num_samples, y, mean=True).var(0).mean().item()
