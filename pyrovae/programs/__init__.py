"""A (model, guide) pair: runs it, reads its sites, checks it and returns its log-weights. Knows no VAE."""

from pyrovae.programs import gate, proposals
from pyrovae.programs.calling import is_pair, takes_model, takes_pair
from pyrovae.programs.contract import PARTICLES
from pyrovae.programs.enumerated_guide import AllValues, EnumeratedPair, is_marked
from pyrovae.programs.enumeration import MAX_STATES, enumerated_states
from pyrovae.programs.gate import Needs, Weights
from pyrovae.programs.pair import Pair, PairTerms, ProgramPair
from pyrovae.programs.random_choices import (
    Choices,
    Playback,
    common_choices,
    is_traced,
    random_mark,
    restore_generators,
    saved_generators,
)
from pyrovae.programs.running import at_every_datum, guide_draws, log_joint, not_finite, pair_at, run_pair, simulated
from pyrovae.programs.sites import base_of, has_real_support, is_masked, outside_support, sample_sites, without_mask
from pyrovae.programs.support_checks import check_no_zero_weights, warn_of_never_drawn
from pyrovae.programs.weights import log_mean_exp, log_weights

__all__ = [
    "is_pair",
    "takes_model",
    "takes_pair",
    "AllValues",
    "Choices",
    "EnumeratedPair",
    "MAX_STATES",
    "Needs",
    "PARTICLES",
    "Pair",
    "PairTerms",
    "Playback",
    "ProgramPair",
    "Weights",
    "at_every_datum",
    "base_of",
    "check_no_zero_weights",
    "common_choices",
    "enumerated_states",
    "gate",
    "guide_draws",
    "has_real_support",
    "is_marked",
    "is_masked",
    "is_traced",
    "log_joint",
    "log_mean_exp",
    "log_weights",
    "not_finite",
    "outside_support",
    "pair_at",
    "proposals",
    "random_mark",
    "restore_generators",
    "run_pair",
    "sample_sites",
    "saved_generators",
    "simulated",
    "warn_of_never_drawn",
    "without_mask",
]
