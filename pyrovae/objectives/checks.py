"""Checks a pair and an objective, ours or Pyro's, before training."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import (
    ELBO as PyroELBO,
    RenyiELBO,
    ReweightedWakeSleep as PyroReweightedWakeSleep,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)

from pyrovae.common import InputError, require
from pyrovae.objectives.analytic_kl_elbo import AnalyticKLELBO
from pyrovae.objectives.base import DifferentiableELBO
from pyrovae.programs import AS_IT_COMES, Pair, Reading, gate, is_autoencoder

JOINT_OVER_BATCH = (PyroReweightedWakeSleep, TraceTailAdaptive_ELBO)  # Pyro's whose weights are


def check_objective(objective: PyroELBO, model: Callable, guide: Callable, *args: Any) -> Pair:
    """Returns two particles of the pair, after a check that `fit` and `compare` can train it through `objective`.

    Args:
        objective: One of ours, or any `pyro.infer.ELBO`.
        model: A Pyro program that observes the data.
        guide: A Pyro program that draws the model's latent sites.
        *args: What both programs take, of any number and type.

    Returns:
        The run of the pair that was checked.

    Raises:
        InputError: Training would silently go to a wrong gradient or bound.

    Example:
        >>> vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> pair = pv.objectives.check_objective(pv.objectives.ELBO(), vae.model, vae.guide, torch.zeros(4, 2))
        >>> pair.batch_shape
        torch.Size([2, 4])
    """
    return check_on_runs(objective, model, guide, args, {})


def check_on_runs(
    objective: PyroELBO, model: Callable, guide: Callable, args: tuple, runs: dict[Reading, Pair]
) -> Pair:
    """Does what `check_objective` does, without another run of the pair where `runs` has one.

    `runs` holds runs of the pair on these arguments, by the reading under which `gate.check` returned them for some
    needs. A new run is added to it, so that a pair that is checked under many objectives runs once.
    """
    name = type(objective).__name__
    require(
        not isinstance(objective, JOINT_OVER_BATCH),
        f"objective {name} is not for data in a plate: its weights are joint over the minibatch and not per datum",
    )
    needs = _needs_of(objective)
    reading = AS_IT_COMES if needs is None else needs.reading
    if reading not in runs:
        pair = gate.check(model, guide, needs, *args)
        if needs is not None:
            runs[reading] = pair
    else:
        pair = runs[reading] if needs is None else gate.check_again(runs[reading], model, guide, needs, *args)
    if isinstance(objective, RenyiELBO):
        _check_renyi(pair)
    elif isinstance(objective, TraceMeanField_ELBO):
        AnalyticKLELBO().check(pair)
    if not isinstance(objective, DifferentiableELBO) and any(is_autoencoder(site) for site in pair.latent.values()):
        raise InputError(f"an autoencoder needs objective elbo, got {name}")
    return pair


def _needs_of(objective: PyroELBO) -> gate.Needs | None:
    """Returns what an objective asks of a pair: one of Pyro's nothing, but where it weighs each datum alone."""
    if isinstance(objective, DifferentiableELBO):
        return objective
    return gate.Weights(densities=False, everywhere=False) if isinstance(objective, RenyiELBO) else None


def _check_renyi(pair: Pair) -> None:
    """Raises `InputError` if Pyro's RenyiELBO would give this pair a wrong bound or gradient.

    It multiplies scales inside its logsumexp, and gives a guide without rsample a wrong gradient.
    """
    for name, site in (*pair.model_sites.items(), *pair.guide_sites.items()):
        scale = torch.as_tensor(site["scale"])
        require(
            bool((scale == 1).all()),
            f'RenyiELBO needs scale 1 at every site, got {scale.tolist()} at site "{name}": with another (beta, a '
            "subsampled plate) it is no bound on log p(x); use objective iwae or renyi",
        )
    for name, site in pair.model_sites.items():
        require(
            pair.is_local(site),
            f'RenyiELBO gives one bound for all data together, as site "{name}" lies outside the data plate; use '
            "objective iwae or renyi",
        )
    for name, site in pair.guide_sites.items():
        require(
            site["fn"].has_rsample,
            f'RenyiELBO needs a reparameterised guide, and site "{name}" has no rsample: use objective vimco',
        )
