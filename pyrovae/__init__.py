"""Variational autoencoders as Pyro programs."""

from pyrovae import objectives, plots
from pyrovae.common.errors import InputError
from pyrovae.data.dataset import Dataset, load
from pyrovae.evaluation import diagnostics
from pyrovae.evaluation.annealed_importance_sampling import AnnealedEstimate, annealed_log_marginal, bidirectional_gap
from pyrovae.evaluation.calibration import simulation_based_calibration
from pyrovae.evaluation.elbo_decomposition import elbo_surgery
from pyrovae.evaluation.evaluation import Evaluation, evaluate
from pyrovae.evaluation.exact import enumerated_log_marginal, quadrature_log_marginal
from pyrovae.evaluation.importance_sampling import Estimate, MarginalLikelihood, importance_bound, log_marginal
from pyrovae.evaluation.inference_gap import inference_gaps
from pyrovae.lab.comparison import Comparison, compare
from pyrovae.lab.race_result import Race, RaceRun
from pyrovae.lab.racing import race
from pyrovae.models import posteriors, priors
from pyrovae.models.conditions import Condition, Embedding, OneHot
from pyrovae.models.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
)
from pyrovae.models.linear_gaussian import LinearGaussianVAE
from pyrovae.models.networks import MLP, ConvDecoder, ConvEncoder
from pyrovae.models.vae import VAE
from pyrovae.models.vqvae import VQVAE
from pyrovae.programs import proposals
from pyrovae.programs.weights import log_weights
from pyrovae.runs.config import RunConfig
from pyrovae.runs.run import Run, load_run
from pyrovae.training import schedules
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.compiled_svi import CompiledSVI
from pyrovae.training.fitting import fit
from pyrovae.training.history import History

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
