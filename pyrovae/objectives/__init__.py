"""Objectives: estimators of log p(x) and of its gradient, each a Pyro ELBO and a small frozen value."""

from pyrovae.objectives.analytic_kl_elbo import AnalyticKLELBO
from pyrovae.objectives.base import DifferentiableELBO, Objective
from pyrovae.objectives.checks import check_objective, check_on_runs as check_on_runs
from pyrovae.objectives.coefficients import Coefficients
from pyrovae.objectives.elbo import ELBO, StickingTheLanding
from pyrovae.objectives.enumerated_elbo import EnumeratedELBO
from pyrovae.objectives.gdreg import GDReG
from pyrovae.objectives.iwae import IWAE, DReG
from pyrovae.objectives.kept_terms import KeptTerms as KeptTerms, keeping_terms as keeping_terms
from pyrovae.objectives.miwae import CIWAE, MIWAE, PIWAE
from pyrovae.objectives.ovis import OVIS
from pyrovae.objectives.registry import NEED_NUM_PARTICLES, OBJECTIVES, SHORTHANDS, from_name, from_text, parse, resolve
from pyrovae.objectives.renyi import Renyi
from pyrovae.objectives.score_function import VIMCO, ScoreFunction
from pyrovae.objectives.stratified import MISELBO, SIWAE
from pyrovae.objectives.thermodynamic import ThermodynamicVO
from pyrovae.objectives.wake_sleep import ReweightedWakeSleep
from pyrovae.programs import MAX_STATES, log_weights

__all__ = [
    "Objective",
    "DifferentiableELBO",
    "Coefficients",
    "ELBO",
    "AnalyticKLELBO",
    "EnumeratedELBO",
    "StickingTheLanding",
    "IWAE",
    "DReG",
    "GDReG",
    "Renyi",
    "MIWAE",
    "PIWAE",
    "CIWAE",
    "SIWAE",
    "MISELBO",
    "ReweightedWakeSleep",
    "VIMCO",
    "OVIS",
    "ScoreFunction",
    "ThermodynamicVO",
    "OBJECTIVES",
    "MAX_STATES",
    "NEED_NUM_PARTICLES",
    "check_objective",
    "from_name",
    "from_text",
    "parse",
    "resolve",
    "SHORTHANDS",
    "log_weights",
]
