"""Objectives: estimators of log p(x) and of its gradient, each a Pyro ELBO and a small frozen value."""

from pyrovae.objectives.analytic_kl_elbo import AnalyticKLELBO
from pyrovae.objectives.base import Objective
from pyrovae.objectives.elbo import ELBO, StickingTheLanding
from pyrovae.objectives.enumerated_elbo import EnumeratedELBO
from pyrovae.objectives.iwae import IWAE, DReG
from pyrovae.objectives.miwae import CIWAE, MIWAE, PIWAE
from pyrovae.objectives.registry import OBJECTIVES, from_name
from pyrovae.objectives.renyi import Renyi
from pyrovae.objectives.score_function import VIMCO, ScoreFunction
from pyrovae.objectives.thermodynamic import ThermodynamicVO
from pyrovae.objectives.wake_sleep import ReweightedWakeSleep
from pyrovae.programs.weights import log_weights

__all__ = [
    "Objective",
    "ELBO",
    "AnalyticKLELBO",
    "EnumeratedELBO",
    "StickingTheLanding",
    "IWAE",
    "DReG",
    "Renyi",
    "MIWAE",
    "PIWAE",
    "CIWAE",
    "ReweightedWakeSleep",
    "VIMCO",
    "ScoreFunction",
    "ThermodynamicVO",
    "OBJECTIVES",
    "from_name",
    "log_weights",
]
