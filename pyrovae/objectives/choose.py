"""Objectives by name, and what must hold of a pair before one is trained through."""

import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyrovae.errors import InputError, require, require_choice, require_count, require_number
from pyrovae.objectives.pair import Pair

OBJECTIVES = ("elbo", "elbo_analytic_kl", "iwae", "renyi")


def from_name(name: str, *, num_particles: int = 1, alpha: float | None = None) -> ELBO:
    """A Pyro ELBO for pairs that keep the contract, with its particles vectorised.

    `elbo`: Monte Carlo (`Trace_ELBO`). `elbo_analytic_kl`: the KL in closed form (`TraceMeanField_ELBO`). `iwae`: the
    importance-weighted bound log 1/K sum_k w_k of Burda et al. 2016 (`RenyiELBO` at alpha = 0). `renyi`: Li and Turner
    2016, arXiv:1602.02311, log (1/K sum_k w_k^(1 - alpha)) / (1 - alpha), at the given `alpha`.
    """
    require_choice("objective", name, OBJECTIVES)
    require_count("num_particles", num_particles)
    require((alpha is not None) == (name == "renyi"), f"alpha must be given for renyi and for it only, got {alpha!r}")
    # The data plate is at dim -1. Said here, so that Pyro does not guess it in a run of its own and then keep it.
    settings = {"num_particles": num_particles, "vectorize_particles": num_particles > 1, "max_plate_nesting": 1}
    if name == "elbo":
        return Trace_ELBO(**settings)
    if name == "elbo_analytic_kl":
        return TraceMeanField_ELBO(**settings)
    if name == "iwae":
        return RenyiELBO(alpha=0, **settings)
    require_number("alpha", alpha)
    require(alpha != 1, "alpha must not be 1: at 1 the Renyi bound is the ELBO, objective elbo")
    return RenyiELBO(alpha=alpha, **settings)


def check_objective(objective: ELBO, pair: Pair) -> None:
    """Raises `InputError` where Pyro would train through `objective` to a silently wrong gradient or bound."""
    if isinstance(objective, RenyiELBO):
        _check_renyi(pair)
    elif isinstance(objective, TraceMeanField_ELBO):
        _check_analytic_kl(pair)


def _check_renyi(pair: Pair) -> None:
    for name, site in (*pair.model_sites.items(), *pair.guide_sites.items()):
        scale = torch.as_tensor(site["scale"])
        if not bool((scale == 1).all()):
            raise InputError(
                f"an importance-weighted objective needs scale 1 at every site, got {scale.tolist()} at site "
                f'"{name}": a scale (beta, or a subsampled plate) inside the logsumexp gives no bound on log p(x); '
                f"use objective elbo"
            )
    for name, site in pair.guide_sites.items():
        if not site["fn"].has_rsample:
            raise InputError(
                f'an importance-weighted objective needs a reparameterised guide: "{name}" has no rsample, and Pyro '
                f"gives its guide a wrong gradient; use objective elbo"
            )


def _check_analytic_kl(pair: Pair) -> None:
    for name, site in pair.guide_sites.items():
        try:
            kl_divergence(site["fn"], pair.latent[name]["fn"])
        except (NotImplementedError, KeyError) as error:
            raise InputError(
                f'objective elbo_analytic_kl needs a closed-form KL at site "{name}", and none is registered for its '
                f"distributions; use objective elbo"
            ) from error


def resolve(objective: str | ELBO, *, num_particles: int | None = None, alpha: float | None = None) -> ELBO:
    """The objective itself, or the one that the name and its settings say."""
    if isinstance(objective, str):
        return from_name(objective, num_particles=1 if num_particles is None else num_particles, alpha=alpha)
    require(isinstance(objective, ELBO), f"objective must be a name or a pyro.infer.ELBO, got {objective!r}")
    require(num_particles is None and alpha is None, "num_particles and alpha go with a name; a Pyro ELBO has its own")
    return objective
