"""Variational autoencoders as Pyro programs."""

from pyrovae import diagnostics, objectives, plots, posteriors, priors, proposals, schedules
from pyrovae.annealed import AnnealedEstimate, annealed_log_marginal, bidirectional_gap
from pyrovae.calibration import simulation_based_calibration
from pyrovae.checkpoints import Checkpoints
from pyrovae.comparison import Comparison, compare
from pyrovae.compiled import CompiledSVI
from pyrovae.conditions import Condition, Embedding, OneHot
from pyrovae.config import RunConfig
from pyrovae.data import Dataset, load
from pyrovae.errors import InputError
from pyrovae.evaluation import Evaluation, evaluate
from pyrovae.exact import enumerated_log_marginal, quadrature_log_marginal
from pyrovae.gaps import inference_gaps
from pyrovae.history import History
from pyrovae.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
)
from pyrovae.linear_gaussian import LinearGaussianVAE
from pyrovae.marginal import Estimate, MarginalLikelihood, importance_bound, log_marginal
from pyrovae.networks import MLP, ConvDecoder, ConvEncoder
from pyrovae.objectives.weights import log_weights
from pyrovae.racing import race
from pyrovae.runs import Run, load_run
from pyrovae.standings import Race, RaceRun
from pyrovae.surgery import elbo_surgery
from pyrovae.training import fit
from pyrovae.vae import VAE
from pyrovae.vq import VQVAE

__all__ = [
    "Dataset",
    "load",
    "MLP",
    "ConvEncoder",
    "ConvDecoder",
    "Condition",
    "OneHot",
    "Embedding",
    "Likelihood",
    "Bernoulli",
    "ContinuousBernoulli",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Categorical",
    "DiscretizedLogistic",
    "posteriors",
    "priors",
    "VAE",
    "VQVAE",
    "LinearGaussianVAE",
    "objectives",
    "log_weights",
    "schedules",
    "CompiledSVI",
    "Checkpoints",
    "History",
    "fit",
    "Estimate",
    "MarginalLikelihood",
    "importance_bound",
    "log_marginal",
    "quadrature_log_marginal",
    "enumerated_log_marginal",
    "proposals",
    "AnnealedEstimate",
    "annealed_log_marginal",
    "bidirectional_gap",
    "Evaluation",
    "evaluate",
    "Comparison",
    "compare",
    "Race",
    "RaceRun",
    "race",
    "diagnostics",
    "elbo_surgery",
    "inference_gaps",
    "simulation_based_calibration",
    "plots",
    "RunConfig",
    "Run",
    "load_run",
    "InputError",
]
