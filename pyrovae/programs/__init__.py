"""A (model, guide) pair: runs it, reads its sites, checks it and returns its log-weights. Knows no VAE."""

from pyrovae.programs import gate, proposals
from pyrovae.programs.calling import is_pair, takes_model, takes_pair
from pyrovae.programs.checked_structures import checking_again
from pyrovae.programs.contract import check_observed
from pyrovae.programs.data_counts import counted_otherwise, subsampled_outside
from pyrovae.programs.data_plates import DataPlate, inner_scale, size_at
from pyrovae.programs.data_values import check_finite_data, refuse_dtypes
from pyrovae.programs.differentiable_ais import DifferentiableAIS
from pyrovae.programs.distribution_supports import bijection_of, has_real_support, support_of
from pyrovae.programs.enumerated_guide import EnumeratedPair, mark_of
from pyrovae.programs.enumerated_runs import is_marked
from pyrovae.programs.enumeration import MAX_STATES, enumerated_states
from pyrovae.programs.gate import Needs, Weights
from pyrovae.programs.known_layouts import known_layout
from pyrovae.programs.layout import PARTICLES, Layout, Reading, frames_of, read_layout
from pyrovae.programs.mask_checks import density_of, differ, require_no_autoencoder, require_no_masks
from pyrovae.programs.observed_parts import check_guide_sees_parts, observing_parts, takes_mask
from pyrovae.programs.one_way_transforms import NoInverse, one_way_site
from pyrovae.programs.pair import Pair, PairTerms, ProgramPair
from pyrovae.programs.part_checks import check_model_sees_parts
from pyrovae.programs.random_choices import (
    Choices,
    Playback,
    common_choices,
    is_traced,
    random_mark,
    restore_generators,
    saved_generators,
)
from pyrovae.programs.repeated_draws import require_new_draws, require_no_seed
from pyrovae.programs.reruns import (
    at_every_datum,
    drawn_anew,
    guide_draws,
    log_joint,
    model_alone,
    not_finite,
    pair_at,
    pair_of_sites,
    simple_pair,
    simulated,
)
from pyrovae.programs.running import AS_IT_COMES, Given, particles, run_pair, with_all_states
from pyrovae.programs.running_statistics import kept_statistics, restore_statistics, saved_statistics
from pyrovae.programs.sides import SIDES, sides_of
from pyrovae.programs.sites import (
    base_of,
    drawn_sites,
    is_autoencoder,
    is_masked,
    outside_support,
    sample_sites,
    seen,
    without_mask,
    without_masks_of_latents,
)
from pyrovae.programs.stored_parameters import not_in_store, own_and_stored
from pyrovae.programs.stratified_guide import (
    Stratified,
    component_logits,
    log_shares,
    mixture_of,
    num_components,
)
from pyrovae.programs.support_checks import check_no_zero_weights, never_drawn, warn_of_never_drawn
from pyrovae.programs.supports import base_support, interior
from pyrovae.programs.weights import log_mean_exp, log_weights

__all__ = [
    "AS_IT_COMES",
    "SIDES",
    "sides_of",
    "DataPlate",
    "DifferentiableAIS",
    "inner_scale",
    "Layout",
    "Reading",
    "kept_statistics",
    "known_layout",
    "model_alone",
    "simple_pair",
    "size_at",
    "particles",
    "is_pair",
    "takes_model",
    "takes_mask",
    "takes_pair",
    "Choices",
    "EnumeratedPair",
    "MAX_STATES",
    "Needs",
    "PARTICLES",
    "Pair",
    "PairTerms",
    "Playback",
    "ProgramPair",
    "Stratified",
    "Weights",
    "at_every_datum",
    "check_guide_sees_parts",
    "check_model_sees_parts",
    "base_of",
    "base_support",
    "bijection_of",
    "check_finite_data",
    "check_no_zero_weights",
    "check_observed",
    "common_choices",
    "component_logits",
    "counted_otherwise",
    "density_of",
    "differ",
    "drawn_anew",
    "enumerated_states",
    "frames_of",
    "Given",
    "read_layout",
    "refuse_dtypes",
    "checking_again",
    "gate",
    "guide_draws",
    "has_real_support",
    "interior",
    "is_autoencoder",
    "is_marked",
    "is_masked",
    "is_traced",
    "log_joint",
    "log_mean_exp",
    "log_shares",
    "log_weights",
    "mark_of",
    "mixture_of",
    "never_drawn",
    "not_in_store",
    "observing_parts",
    "not_finite",
    "num_components",
    "own_and_stored",
    "outside_support",
    "NoInverse",
    "one_way_site",
    "pair_at",
    "pair_of_sites",
    "proposals",
    "random_mark",
    "require_new_draws",
    "require_no_autoencoder",
    "require_no_masks",
    "require_no_seed",
    "restore_generators",
    "restore_statistics",
    "saved_statistics",
    "run_pair",
    "drawn_sites",
    "sample_sites",
    "saved_generators",
    "seen",
    "simulated",
    "subsampled_outside",
    "support_of",
    "warn_of_never_drawn",
    "with_all_states",
    "without_mask",
    "without_masks_of_latents",
]
