"""Objectives: estimators of log p(x) and of its gradient, each a Pyro ELBO and a small frozen value."""

from pyrovae.objectives.analytic_kl_elbo import AnalyticKLELBO
from pyrovae.objectives.base import DifferentiableELBO, Objective, log_mean_exp
from pyrovae.objectives.elbo import ELBO, StickingTheLanding
from pyrovae.objectives.enumerated_elbo import MAX_STATES, EnumeratedELBO, states
from pyrovae.objectives.iwae import IWAE, DReG
from pyrovae.objectives.miwae import CIWAE, MIWAE, PIWAE
from pyrovae.objectives.registry import ABOUT_MANY, OBJECTIVES, check_objective, from_name, resolve
from pyrovae.objectives.renyi import Renyi
from pyrovae.objectives.score_function import VIMCO, ScoreFunction
from pyrovae.objectives.thermodynamic import ThermodynamicVO
from pyrovae.objectives.wake_sleep import ReweightedWakeSleep
from pyrovae.programs import log_weights

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
    "ABOUT_MANY",
    "MAX_STATES",
    "DifferentiableELBO",
    "check_objective",
    "log_mean_exp",
    "resolve",
    "states",
    "from_name",
    "log_weights",
]
