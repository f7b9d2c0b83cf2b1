"""Posteriors and priors by their names, as `VAE` takes them."""

import inspect
from types import ModuleType

from pyrovae.common import InputError, require, require_choice, shown
from pyrovae.models import posteriors, priors
from pyrovae.models.posteriors import POSTERIORS, Posterior
from pyrovae.models.priors import PRIORS, Prior


def posterior_of(posterior: Posterior | str, latent_dim: int) -> Posterior:
    """Returns the posterior of this name, or the one that was given, which must have `latent_dim` elements."""
    if not isinstance(posterior, Posterior):
        _require_name("posterior", posterior, POSTERIORS, posteriors)
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
    _require_name("prior", prior, PRIORS, priors)
    require(prior != "vamp", "prior vamp needs its pseudo-inputs: priors.Vamp(data.train_x[:500])")
    return PRIORS[prior](posterior.latent_dim)


def _require_name(role: str, value: object, names: dict[str, type], room: ModuleType) -> None:
    """Raises `InputError` unless `value` is one of `names`; families that need settings are made, and have no name."""
    said = value.lower() if isinstance(value, str) else None
    wanted = (said or type(value).__name__.lower()).replace("_", "")
    kinds = {name.lower(): getattr(room, name) for name in room.__all__ if name.lower() != role}
    if said not in [*names] and isinstance(kind := kinds.get(wanted), type):
        settings = inspect.signature(kind).parameters.values()
        needed = ", ".join(one.name for one in settings if one.default is one.empty)
        made = f"pv.{room.__name__.rpartition('.')[2]}.{kind.__name__}({needed})"
        raise InputError(f"{role} must be made as {made}, got {shown(value)}")
    require_choice(role, value, names)
