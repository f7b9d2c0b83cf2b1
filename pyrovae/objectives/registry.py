"""Makes objectives from their names and settings."""

from dataclasses import fields
from typing import Any

from pyro.infer import ELBO as PyroELBO

from pyrovae.common import require, require_choice
from pyrovae.objectives.analytic_kl_elbo import AnalyticKLELBO
from pyrovae.objectives.base import DifferentiableELBO, Objective
from pyrovae.objectives.elbo import ELBO, StickingTheLanding
from pyrovae.objectives.enumerated_elbo import EnumeratedELBO
from pyrovae.objectives.iwae import IWAE, DReG
from pyrovae.objectives.miwae import CIWAE, MIWAE, PIWAE
from pyrovae.objectives.renyi import Renyi
from pyrovae.objectives.score_function import VIMCO, ScoreFunction
from pyrovae.objectives.thermodynamic import ThermodynamicVO
from pyrovae.objectives.wake_sleep import ReweightedWakeSleep

# The names that `fit`, `compare` and the command line take.
OBJECTIVES: dict[str, type[Objective | AnalyticKLELBO | EnumeratedELBO]] = {
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
# With one particle these are the ELBO, and whoever names one of them wants more.
NEED_NUM_PARTICLES = ("iwae", "dreg", "renyi", "miwae", "piwae", "ciwae")


def from_name(name: str, **settings: Any) -> DifferentiableELBO:
    """Returns the objective of a name with its settings.

    Args:
        name: One of `pv.objectives.OBJECTIVES`.
        **settings: The arguments of its class.

    Returns:
        An instance of the class that `OBJECTIVES` has under the name.

    Raises:
        InputError: The name is unknown, the objective does not have a setting, or `num_particles` is missing for an
            objective that with one particle is the ELBO.

    Example:
        >>> pv.objectives.from_name("dreg", num_particles=64)
        DReG(num_particles=64, chunk_size=None)
    """
    require_choice("objective", name, OBJECTIVES)
    known = [field.name for field in fields(OBJECTIVES[name])]
    for setting, value in settings.items():
        rule = f"must be one of {', '.join(known)}" if known else "must not be given"
        require(setting in known, f"{setting} {rule} with objective {name}; got {value!r}")
    made = OBJECTIVES[name](**settings)
    said = name not in NEED_NUM_PARTICLES or "num_particles" in settings
    require(said, f"num_particles must be given with objective {name}: with one it is the elbo")
    return made


def from_text(text: str, **defaults: object) -> DifferentiableELBO:
    """Returns the objective that a text describes: `name` or `name:setting=value,setting=value`.

    Args:
        text: The name and the settings, for example `miwae:num_batches=4,num_particles=4`.
        **defaults: Settings for what the text leaves out, used if the objective has them.

    Returns:
        The objective, as from `from_name`.

    Raises:
        InputError: The text has another form, or `from_name` refuses what it says.

    Example:
        >>> pv.objectives.from_text("miwae:num_batches=4", num_particles=8, alpha=0.5)
        MIWAE(num_particles=8, chunk_size=None, num_batches=4)
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
    """Returns an objective as it is, or the one of a name with its settings.

    Args:
        objective: A name of `OBJECTIVES`, or any `pyro.infer.ELBO`.
        settings: The arguments of the named class; those that are None are left out.

    Returns:
        The objective.

    Raises:
        InputError: `from_name` refuses the name or a setting, or an object comes with settings.

    Example:
        >>> pv.objectives.resolve("iwae", {"num_particles": 8, "alpha": None})
        IWAE(num_particles=8, chunk_size=None)
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(objective, str):
        return from_name(objective, **given)
    require(isinstance(objective, PyroELBO), f"objective must be a name or a pyro.infer.ELBO, got {objective!r}")
    require(not given, f"{', '.join(given)} must go with an objective's name; an object has settings of its own")
    return objective
