"""Estimates of log p(x) with their errors, and diagnoses of a trained pair."""

from pyrovae.evaluation import diagnostics
from pyrovae.evaluation.annealed_draws import annealed_posterior
from pyrovae.evaluation.annealed_estimate import AnnealedEstimate
from pyrovae.evaluation.annealed_importance_sampling import annealed_log_marginal, bidirectional_gap
from pyrovae.evaluation.arguments import check_args, common_length, tensors_in, with_tensors
from pyrovae.evaluation.calibration import simulation_based_calibration
from pyrovae.evaluation.conditional import ConditionalLikelihood, conditional_log_marginal
from pyrovae.evaluation.diagnostics import active_units, has_kl_per_dimension, latent_use
from pyrovae.evaluation.elbo_decomposition import elbo_surgery
from pyrovae.evaluation.estimate import Estimate, MarginalLikelihood
from pyrovae.evaluation.evaluation import ELBO_DRAWS, check_methods, evaluate
from pyrovae.evaluation.evaluation_table import Evaluation
from pyrovae.evaluation.exact import enumerated_log_marginal, quadrature_log_marginal
from pyrovae.evaluation.expectation import Expectation
from pyrovae.evaluation.held_out import HeldOut, at_most, held_out_log_px, held_out_of
from pyrovae.evaluation.importance_sampling import importance_bound, log_marginal
from pyrovae.evaluation.imputation import Imputation, impute
from pyrovae.evaluation.inference_gap import inference_gaps
from pyrovae.evaluation.known_factors import FactorInformation, factor_information
from pyrovae.evaluation.posterior_expectations import posterior
from pyrovae.evaluation.predictive_checks import PredictiveCheck, predictive_check
from pyrovae.evaluation.rate_distortion import RateDistortion, annealed_rate_distortion
from pyrovae.evaluation.remedy_words import IN_IMPUTE, IN_METHODS, IN_SHELL
from pyrovae.evaluation.weighted_draws import WeightedDraws
from pyrovae.evaluation.weights_verdict import RELIABLE_PARETO_K, are_few, doubt_of

__all__ = [
    "AnnealedEstimate",
    "ConditionalLikelihood",
    "ELBO_DRAWS",
    "Estimate",
    "Evaluation",
    "Expectation",
    "FactorInformation",
    "HeldOut",
    "IN_IMPUTE",
    "IN_METHODS",
    "IN_SHELL",
    "Imputation",
    "MarginalLikelihood",
    "PredictiveCheck",
    "RELIABLE_PARETO_K",
    "RateDistortion",
    "WeightedDraws",
    "active_units",
    "annealed_log_marginal",
    "annealed_posterior",
    "annealed_rate_distortion",
    "are_few",
    "at_most",
    "bidirectional_gap",
    "check_args",
    "common_length",
    "conditional_log_marginal",
    "tensors_in",
    "with_tensors",
    "diagnostics",
    "doubt_of",
    "elbo_surgery",
    "enumerated_log_marginal",
    "check_methods",
    "evaluate",
    "factor_information",
    "has_kl_per_dimension",
    "held_out_log_px",
    "held_out_of",
    "importance_bound",
    "impute",
    "inference_gaps",
    "latent_use",
    "posterior",
    "predictive_check",
    "log_marginal",
    "quadrature_log_marginal",
    "simulation_based_calibration",
]
