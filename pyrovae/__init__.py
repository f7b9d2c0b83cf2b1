"""Variational autoencoders as Pyro programs."""

import os
from typing import TYPE_CHECKING

from pyrovae.common import lazy_names

# A thread that has done its share of a step spins until the others have done theirs, in libgomp for 300,000 turns or
# some 10 ms before it sleeps. On a busy machine it thereby keeps its core from the very thread that it waits for. With a
# thirtieth of that, a step is as fast on a quiet machine. Torch's libraries read it when torch is imported.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"

if TYPE_CHECKING:  # the same names once more, as type checkers and editors read them
    from pyrovae import objectives as objectives, plots as plots
    from pyrovae.common import InputError as InputError, workers as workers
    from pyrovae.data import Column as Column, Dataset as Dataset, load as load
    from pyrovae.evaluation import (
        AnnealedEstimate as AnnealedEstimate,
        ConditionalLikelihood as ConditionalLikelihood,
        Estimate as Estimate,
        Evaluation as Evaluation,
        Expectation as Expectation,
        FactorInformation as FactorInformation,
        Imputation as Imputation,
        MarginalLikelihood as MarginalLikelihood,
        PredictiveCheck as PredictiveCheck,
        RateDistortion as RateDistortion,
        WeightedDraws as WeightedDraws,
        annealed_log_marginal as annealed_log_marginal,
        annealed_posterior as annealed_posterior,
        annealed_rate_distortion as annealed_rate_distortion,
        bidirectional_gap as bidirectional_gap,
        conditional_log_marginal as conditional_log_marginal,
        diagnostics as diagnostics,
        elbo_surgery as elbo_surgery,
        enumerated_log_marginal as enumerated_log_marginal,
        evaluate as evaluate,
        factor_information as factor_information,
        importance_bound as importance_bound,
        impute as impute,
        inference_gaps as inference_gaps,
        log_marginal as log_marginal,
        posterior as posterior,
        predictive_check as predictive_check,
        quadrature_log_marginal as quadrature_log_marginal,
        simulation_based_calibration as simulation_based_calibration,
    )
    from pyrovae.lab import Comparison as Comparison, Race as Race, RaceRun as RaceRun, compare as compare, race as race
    from pyrovae.models import (
        MLP as MLP,
        VAE as VAE,
        VQVAE as VQVAE,
        Bernoulli as Bernoulli,
        Beta as Beta,
        Categorical as Categorical,
        Columns as Columns,
        Condition as Condition,
        ContinuousBernoulli as ContinuousBernoulli,
        ConvDecoder as ConvDecoder,
        ConvEncoder as ConvEncoder,
        DiscretizedLogistic as DiscretizedLogistic,
        Embedding as Embedding,
        Gaussian as Gaussian,
        HeteroscedasticGaussian as HeteroscedasticGaussian,
        Likelihood as Likelihood,
        LinearGaussianVAE as LinearGaussianVAE,
        LogNormal as LogNormal,
        NegativeBinomial as NegativeBinomial,
        OneHot as OneHot,
        Poisson as Poisson,
        ResNetDecoder as ResNetDecoder,
        ResNetEncoder as ResNetEncoder,
        SizeFactor as SizeFactor,
        StudentT as StudentT,
        ZeroInflatedNegativeBinomial as ZeroInflatedNegativeBinomial,
        posteriors as posteriors,
        priors as priors,
    )
    from pyrovae.programs import (
        DifferentiableAIS as DifferentiableAIS,
        log_weights as log_weights,
        proposals as proposals,
    )
    from pyrovae.runs import Run as Run, RunConfig as RunConfig, load_run as load_run
    from pyrovae.training import (
        Checkpoints as Checkpoints,
        CompiledSVI as CompiledSVI,
        History as History,
        beta_schedules as schedules,
        fit as fit,
    )
else:  # in the order in which data flow; a room is imported when one of its names is first used
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "data": ("Column", "Dataset", "load"),
            "models": (
                "MLP",
                "ConvEncoder",
                "ConvDecoder",
                "ResNetEncoder",
                "ResNetDecoder",
                "Condition",
                "OneHot",
                "Embedding",
                "SizeFactor",
                "Likelihood",
                "Bernoulli",
                "ContinuousBernoulli",
                "Gaussian",
                "HeteroscedasticGaussian",
                "StudentT",
                "LogNormal",
                "Beta",
                "Categorical",
                "DiscretizedLogistic",
                "Poisson",
                "NegativeBinomial",
                "ZeroInflatedNegativeBinomial",
                "Columns",
                "posteriors",
                "priors",
                "VAE",
                "VQVAE",
                "LinearGaussianVAE",
            ),
            "programs": ("log_weights", "proposals", "DifferentiableAIS"),
            "objectives": (),
            "training": ("beta_schedules as schedules", "CompiledSVI", "Checkpoints", "History", "fit"),
            "evaluation": (
                "Estimate",
                "MarginalLikelihood",
                "importance_bound",
                "log_marginal",
                "quadrature_log_marginal",
                "enumerated_log_marginal",
                "AnnealedEstimate",
                "annealed_log_marginal",
                "annealed_posterior",
                "bidirectional_gap",
                "RateDistortion",
                "annealed_rate_distortion",
                "Evaluation",
                "evaluate",
                "diagnostics",
                "elbo_surgery",
                "FactorInformation",
                "factor_information",
                "inference_gaps",
                "simulation_based_calibration",
                "Expectation",
                "WeightedDraws",
                "posterior",
                "Imputation",
                "impute",
                "ConditionalLikelihood",
                "conditional_log_marginal",
                "PredictiveCheck",
                "predictive_check",
            ),
            "lab": ("Comparison", "compare", "Race", "RaceRun", "race"),
            "runs": ("RunConfig", "Run", "load_run"),
            "plots": (),
            "common": ("InputError", "workers"),
        },
    )

__version__ = "0.2.0"
