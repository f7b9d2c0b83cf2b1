"""Objectives by name, and what must hold of a pair before one is trained through."""

from collections.abc import Callable
from dataclasses import fields

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import RenyiELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO
from pyro.infer import ReweightedWakeSleep as PyroReweightedWakeSleep
from torch import Tensor

from pyrovae.common import InputError, require, require_choice
from pyrovae.objectives.analytic_kl_elbo import AnalyticKLELBO
from pyrovae.objectives.base import DifferentiableELBO
from pyrovae.objectives.elbo import ELBO, StickingTheLanding
from pyrovae.objectives.enumerated_elbo import EnumeratedELBO
from pyrovae.objectives.iwae import IWAE, DReG
from pyrovae.objectives.miwae import CIWAE, MIWAE, PIWAE
from pyrovae.objectives.renyi import Renyi
from pyrovae.objectives.score_function import VIMCO, ScoreFunction
from pyrovae.objectives.thermodynamic import ThermodynamicVO
from pyrovae.objectives.wake_sleep import ReweightedWakeSleep
from pyrovae.programs import Pair, gate, is_masked

OBJECTIVES: dict[str, type[PyroELBO]] = {
    "elbo": ELBO,
    "elbo_analytic_kl": AnalyticKLELBO,
    "elbo_enumerated": EnumeratedELBO,
    "sticking_the_landing": StickingTheLanding,
    "iwae": IWAE,
    "dreg": DReG,
    "renyi": Renyi,
    "miwae": MIWAE,
    "piwae": PIWAE,
    "ciwae": CIWAE,
    "reweighted_wake_sleep": ReweightedWakeSleep,
    "vimco": VIMCO,
    "score_function": ScoreFunction,
    "thermodynamic": ThermodynamicVO,
}
# Those that with one particle are the ELBO, which nobody means who asks for them by name.
ABOUT_MANY = ("iwae", "dreg", "renyi", "miwae", "piwae", "ciwae")
# Pyro's whose weights are joint over the minibatch.
JOINT = (PyroReweightedWakeSleep, TraceTailAdaptive_ELBO)


def from_name(name: str, **settings: object) -> PyroELBO:
    """The objective of that name (see `OBJECTIVES`) with its settings: `from_name("dreg", num_particles=64)`.

    Raises `InputError` on an unknown name, on a setting that the objective does not have, and where one whose point is
    to have many particles is not told how many.
    """
    require_choice("objective", name, OBJECTIVES)
    known = [field.name for field in fields(OBJECTIVES[name])]
    for setting, value in settings.items():
        rule = f"must be one of {', '.join(known)}" if known else "must not be given"
        require(setting in known, f"{setting} {rule} with objective {name}; got {value!r}")
    made = OBJECTIVES[name](**settings)
    said = name not in ABOUT_MANY or "num_particles" in settings
    require(said, f"num_particles must be given with objective {name}: with one it is the elbo")
    return made


def from_text(text: str, **defaults: object) -> PyroELBO:
    """The objective that `name` or `name:setting=value,setting=value` says: `miwae:num_batches=4,num_particles=4`.

    `defaults` are settings that the text need not say, for those objectives that have them.
    """
    name, _, rest = text.partition(":")
    require_choice("objective", name, OBJECTIVES)
    known = [field.name for field in fields(OBJECTIVES[name])]
    settings = {setting: value for setting, value in defaults.items() if setting in known}
    for part in filter(None, rest.split(",")):
        setting, equals, value = (side.strip() for side in part.partition("="))
        require(equals == "=", f"objective must be name:setting=value,..., got {text!r}")
        try:
            settings[setting] = int(value)
        except ValueError:
            try:
                settings[setting] = float(value)
            except ValueError:
                settings[setting] = value
    return from_name(name, **settings)


def resolve(objective: str | PyroELBO, settings: dict[str, object]) -> PyroELBO:
    """The objective itself, or the one that the name and those of the settings that are not None say."""
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(objective, str):
        return from_name(objective, **given)
    require(isinstance(objective, PyroELBO), f"objective must be a name or a pyro.infer.ELBO, got {objective!r}")
    require(not given, f"{', '.join(given)} must go with an objective's name; an object has settings of its own")
    return objective


def check_objective(objective: PyroELBO, model: Callable, guide: Callable, *args: Tensor) -> Pair:
    """Returns two particles of the pair, once it is clear that `fit` and `compare` can train it through `objective`.

    Raises `InputError` where training would go to a silently wrong gradient or bound.
    """
    name = type(objective).__name__
    require(
        not isinstance(objective, JOINT),
        f"objective {name} is not for data in a plate: its weights are joint over the minibatch and not per datum",
    )
    pair = gate.check(model, guide, objective if isinstance(objective, DifferentiableELBO) else None, *args)
    if isinstance(objective, RenyiELBO):
        _check_renyi(pair)
    elif isinstance(objective, TraceMeanField_ELBO):
        AnalyticKLELBO().check(pair)
    for site_name, site in pair.observed.items():
        scale = torch.as_tensor(site["scale"])
        require(
            bool((scale == 1).all()),
            f'fit averages over the batch itself, and needs scale 1 at the observed site "{site_name}", got '
            f"{scale.tolist()}: let the data plate be pyro.plate('data', len(x)), without a full size or poutine.scale",
        )
    if not isinstance(objective, DifferentiableELBO) and any(is_masked(site) for site in pair.latent.values()):
        raise InputError(f"an autoencoder needs objective elbo, got {name}")
    return pair


def _check_renyi(pair: Pair) -> None:
    """Pyro's RenyiELBO multiplies scales inside its logsumexp, and gives a guide without rsample a wrong gradient."""
    for name, site in (*pair.model_sites.items(), *pair.guide_sites.items()):
        scale = torch.as_tensor(site["scale"])
        require(
            bool((scale == 1).all()),
            f'RenyiELBO needs scale 1 at every site, got {scale.tolist()} at site "{name}": a scale (beta, or a '
            f"subsampled plate) inside the logsumexp gives no bound on log p(x); use objective iwae or renyi",
        )
    for name, site in pair.guide_sites.items():
        require(
            site["fn"].has_rsample,
            f'RenyiELBO needs a reparameterised guide, and site "{name}" has no rsample: use objective vimco',
        )
