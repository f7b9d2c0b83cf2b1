"""Posteriors and priors by their names, as `VAE` takes them."""

from pyrovae.common import require, require_choice
from pyrovae.models.posteriors import POSTERIORS, Posterior
from pyrovae.models.priors import PRIORS, Prior


def posterior_of(posterior: Posterior | str, latent_dim: int) -> Posterior:
    """Returns the posterior of this name, or the one that was given, which must have `latent_dim` elements."""
    if not isinstance(posterior, Posterior):
        require_choice("posterior", posterior, POSTERIORS)
        posterior = POSTERIORS[posterior](latent_dim)
    rule = f"posterior must be of latent_dim, {latent_dim}, got one of {posterior.latent_dim}"
    require(posterior.latent_dim == latent_dim, rule)
    return posterior


def prior_of(prior: Prior | str | None, posterior: Posterior) -> Prior:
    """Returns the prior of this name, the one that was given, or the posterior's usual one."""
    if prior is None:
        return posterior.usual_prior()
    if isinstance(prior, Prior):
        return prior
    require_choice("prior", prior, PRIORS)
    require(prior != "vamp", "prior vamp needs its pseudo-inputs: priors.Vamp(data.train_x[:500])")
    return PRIORS[prior](posterior.latent_dim)
