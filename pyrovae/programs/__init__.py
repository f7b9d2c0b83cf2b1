"""A (model, guide) pair: runs it, reads its sites, checks it and returns its log-weights. Knows no VAE."""

from pyrovae.programs import gate, proposals
from pyrovae.programs.gate import Weights, check_no_zero_weights, warn_of_never_drawn
from pyrovae.programs.pair import (
    PARTICLES,
    Pair,
    PairTerms,
    at_every_datum,
    base_of,
    check_masks,
    guide_draws,
    has_real_support,
    is_masked,
    log_joint,
    not_finite,
    outside_support,
    pair_at,
    run_pair,
    sample_sites,
    simulated,
)
from pyrovae.programs.random_choices import (
    Choices,
    Playback,
    common_choices,
    is_traced,
    random_mark,
    set_states,
    states,
)
from pyrovae.programs.weights import log_weights

__all__ = [
    "Choices",
    "PARTICLES",
    "Pair",
    "PairTerms",
    "Playback",
    "Weights",
    "at_every_datum",
    "base_of",
    "check_masks",
    "check_no_zero_weights",
    "common_choices",
    "gate",
    "guide_draws",
    "has_real_support",
    "is_masked",
    "is_traced",
    "log_joint",
    "log_weights",
    "not_finite",
    "outside_support",
    "pair_at",
    "proposals",
    "random_mark",
    "run_pair",
    "sample_sites",
    "set_states",
    "simulated",
    "states",
    "warn_of_never_drawn",
]
