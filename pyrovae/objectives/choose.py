"""Objectives by name, and what must hold of a pair before one is trained through."""

import torch
from pyro.distributions import Independent
from pyro.infer import ELBO, RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO
from torch.distributions import kl_divergence

from pyrovae.errors import InputError, require, require_choice, require_count, require_number
from pyrovae.objectives.free_bits import FreeBits
from pyrovae.objectives.pair import Pair, is_masked

JOINT = (ReweightedWakeSleep, TraceTailAdaptive_ELBO)
OBJECTIVES = ("elbo", "elbo_analytic_kl", "iwae", "renyi")


def from_name(name: str, *, num_particles: int = 1, alpha: float | None = None, free_bits: float | None = None) -> ELBO:
    """A Pyro ELBO for pairs that keep the contract, with its particles vectorised.

    `elbo`: Monte Carlo (`Trace_ELBO`). `elbo_analytic_kl`: the KL in closed form (`TraceMeanField_ELBO`). `iwae`: the
    importance-weighted bound log 1/K sum_k w_k of Burda et al. 2016 (`RenyiELBO` at alpha = 0). `renyi`: Li and Turner
    2016, arXiv:1602.02311, log (1/K sum_k w_k^(1 - alpha)) / (1 - alpha), at the given `alpha`. With `free_bits`,
    `elbo_analytic_kl` has a floor under the KL of each latent dimension (`FreeBits`).
    """
    require_choice("objective", name, OBJECTIVES)
    require_count("num_particles", num_particles)
    require(
        (alpha is not None) == (name == "renyi"),
        f"alpha must be given for renyi and for it only, got {alpha!r} with {name}",
    )
    require(
        free_bits is None or name == "elbo_analytic_kl",
        f"free_bits must be given for elbo_analytic_kl only (it needs a closed form), got {free_bits!r} with {name}",
    )
    # The data plate is at dim -1. Said here, so that Pyro does not guess it in a run of its own and then keep it.
    settings = {"num_particles": num_particles, "vectorize_particles": num_particles > 1, "max_plate_nesting": 1}
    if name == "elbo":
        return Trace_ELBO(**settings)
    if name == "elbo_analytic_kl":
        if free_bits is None:
            return TraceMeanField_ELBO(**settings)
        require(num_particles == 1, f"num_particles must be 1 with free_bits, got {num_particles}")
        return FreeBits(free_bits)
    if name == "iwae":
        return RenyiELBO(alpha=0, **settings)
    require_number("alpha", alpha)
    require(alpha != 1, "alpha must not be 1: at 1 the Renyi bound is the ELBO, objective elbo")
    return RenyiELBO(alpha=alpha, **settings)


def check_objective(objective: ELBO, pair: Pair) -> None:
    """Raises `InputError` where Pyro would train through `objective` to a silently wrong gradient or bound."""
    name = type(objective).__name__
    require(
        not isinstance(objective, JOINT),
        f"objective {name} is not for data in a plate: its weights are joint over the minibatch and not per datum",
    )
    if any(is_masked(site) for site in pair.latent.values()):
        require(type(objective) is Trace_ELBO, f"an autoencoder (masked latents) needs objective elbo, got {name}")
    if isinstance(objective, RenyiELBO):
        _check_renyi(pair)
    for site_name, site in pair.observed.items():
        scale = torch.as_tensor(site["scale"])
        require(
            bool((scale == 1).all()),
            f'fit averages over the batch itself, and needs scale 1 at the observed site "{site_name}", got '
            f"{scale.tolist()}: let the data plate be pyro.plate('data', len(x)), without a full size or poutine.scale",
        )
    if isinstance(objective, TraceMeanField_ELBO | FreeBits):
        _check_analytic_kl(pair)
    if isinstance(objective, FreeBits):
        for name, site in pair.guide_sites.items():
            for fn in (site["fn"], pair.latent[name]["fn"]):
                flat = isinstance(fn, Independent) and fn.event_dim == 1 and fn.base_dist.event_dim == 0
                require(flat, f'free_bits needs latents of independent dimensions, got {fn} at site "{name}"')


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
    orders = [[name for name in sites if name in pair.latent] for sites in (pair.model_sites, pair.guide_sites)]
    require(
        orders[0] == orders[1],
        f"objective elbo_analytic_kl needs the latent sites in one order, got {orders[0]} in the model and {orders[1]} "
        f"in the guide: where one depends on another, the sum of their KLs is not the KL; use objective elbo",
    )
    for name, site in pair.guide_sites.items():
        try:
            kl_divergence(site["fn"], pair.latent[name]["fn"])
        except (NotImplementedError, KeyError) as error:
            raise InputError(
                f'objective elbo_analytic_kl needs a closed-form KL at site "{name}", and none is registered for its '
                f"distributions; use objective elbo"
            ) from error


def resolve(
    objective: str | ELBO,
    *,
    num_particles: int | None = None,
    alpha: float | None = None,
    free_bits: float | None = None,
) -> ELBO:
    """The objective itself, or the one that the name and its settings say."""
    if isinstance(objective, str):
        num_particles = 1 if num_particles is None else num_particles
        return from_name(objective, num_particles=num_particles, alpha=alpha, free_bits=free_bits)
    require(isinstance(objective, ELBO), f"objective must be a name or a pyro.infer.ELBO, got {objective!r}")
    settings = {"num_particles": num_particles, "alpha": alpha, "free_bits": free_bits}
    given = [name for name, value in settings.items() if value is not None]
    require(not given, f"{', '.join(given)} must go with an objective's name; a Pyro ELBO has settings of its own")
    return objective
