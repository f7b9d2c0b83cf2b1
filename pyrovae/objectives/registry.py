"""Makes objectives from their names, or from texts such as `dreg(num_particles=64)`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pyro.infer import ELBO as PyroELBO

from pyrovae.common import parse_call, require, require_choice, shown
from pyrovae.objectives.analytic_kl_elbo import AnalyticKLELBO
from pyrovae.objectives.base import DifferentiableELBO, Objective
from pyrovae.objectives.elbo import ELBO, StickingTheLanding
from pyrovae.objectives.enumerated_elbo import EnumeratedELBO
from pyrovae.objectives.gdreg import GDReG
from pyrovae.objectives.iwae import IWAE, DReG
from pyrovae.objectives.miwae import CIWAE, MIWAE, PIWAE
from pyrovae.objectives.ovis import OVIS
from pyrovae.objectives.renyi import Renyi
from pyrovae.objectives.score_function import VIMCO, ScoreFunction
from pyrovae.objectives.stratified import MISELBO, SIWAE
from pyrovae.objectives.thermodynamic import ThermodynamicVO
from pyrovae.objectives.wake_sleep import ReweightedWakeSleep

# The classes of objectives by the names that `fit`, `compare`, `race` and the command line take.
OBJECTIVES: dict[str, type[Objective | AnalyticKLELBO | EnumeratedELBO]] = {
    "elbo": ELBO,
    "elbo_analytic_kl": AnalyticKLELBO,
    "elbo_enumerated": EnumeratedELBO,
    "sticking_the_landing": StickingTheLanding,
    "iwae": IWAE,
    "dreg": DReG,
    "gdreg": GDReG,
    "renyi": Renyi,
    "miwae": MIWAE,
    "piwae": PIWAE,
    "ciwae": CIWAE,
    "siwae": SIWAE,
    "miselbo": MISELBO,
    "reweighted_wake_sleep": ReweightedWakeSleep,
    "vimco": VIMCO,
    "ovis": OVIS,
    "score_function": ScoreFunction,
    "thermodynamic": ThermodynamicVO,
}
# The objectives that are the ELBO with one particle: by name they must be given `num_particles`.
NEED_NUM_PARTICLES = ("iwae", "dreg", "gdreg", "renyi", "miwae", "piwae", "ciwae")

# The settings of objectives that `fit`, `race` and the command line take beside the name of an objective.
SHORTHANDS = ("num_particles", "alpha", "num_batches", "free_bits")


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
    return _made(name, settings)


def _made(name: str, settings: dict[str, Any]) -> DifferentiableELBO:
    require_choice("objective", name, OBJECTIVES)
    known = [field.name for field in fields(OBJECTIVES[name])]
    for setting, value in settings.items():
        rule = f"must be one of {', '.join(known)}" if known else "must not be given"
        require(setting in known, f"{setting} {rule} with objective {name}; got {shown(value)}")
    made = OBJECTIVES[name](**settings)
    said = name not in NEED_NUM_PARTICLES or "num_particles" in settings
    require(said, f"num_particles must be given with objective {name}: with one it is the elbo")
    return made


def parse(text: str) -> tuple[str, dict[str, object]]:
    """Returns the name and the settings in a text, which is a name or a call with keywords.

    Args:
        text: For example `elbo` or `score_function(num_particles=8, baseline="leave_one_out")`. The quotes of a string
            may be left out.

    Returns:
        The name, one of `OBJECTIVES`, and the settings by name.

    Raises:
        InputError: The text has another form, or the name is unknown.

    Example:
        >>> pv.objectives.registry.parse("miwae(num_batches=4, num_particles=8)")
        ('miwae', {'num_batches': 4, 'num_particles': 8})
    """
    return parse_call("objective", text, OBJECTIVES)


def from_text(text: str, **shorthands: object) -> DifferentiableELBO:
    """Returns the objective that a text describes: a name, or `name(setting=value, ...)`.

    Args:
        text: The name and the settings, for example `miwae(num_batches=4, num_particles=4)`.
        **shorthands: Settings that the text leaves out.

    Returns:
        The objective, as from `from_name`.

    Raises:
        InputError: The text has another form, a setting is given twice, or `from_name` refuses what it says.

    Example:
        >>> pv.objectives.from_text("miwae(num_batches=4)", num_particles=8)
        MIWAE(num_particles=8, chunk_size=None, num_batches=4)
    """
    name, settings = parse(text)
    for setting, value in shorthands.items():
        rule = f"{setting} must be given once"
        require(setting not in settings, f"{rule}, got {text} and {setting}={shown(value)} beside it")
    return _made(name, {**settings, **shorthands})


def resolve(objective: str | PyroELBO, settings: dict[str, object]) -> PyroELBO:
    """Returns an objective as it is, or the one that a text and the settings beside it describe.

    Args:
        objective: What `from_text` takes, or any `pyro.infer.ELBO`.
        settings: Further settings of the described objective; those that are None are left out.

    Returns:
        The objective.

    Raises:
        InputError: `from_text` refuses the text or a setting, or an object comes with settings.

    Example:
        >>> pv.objectives.resolve("iwae", {"num_particles": 8, "alpha": None})
        IWAE(num_particles=8, chunk_size=None)
    """
    require(isinstance(settings, Mapping), f"settings must be a dict, got {shown(settings)}")
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(objective, str):
        return from_text(objective, **given)
    require(isinstance(objective, PyroELBO), f"objective must be a name or a pyro.infer.ELBO, got {shown(objective)}")
    require(not given, f"{', '.join(given)} must go with an objective's name; an object has settings of its own")
    return objective
