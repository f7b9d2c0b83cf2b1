"""Variational autoencoders as Pyro programs."""

from pyrovae import diagnostics, objectives, plots, schedules
from pyrovae.compiled import CompiledSVI
from pyrovae.conditions import Condition, Embedding, OneHot
from pyrovae.config import RunConfig
from pyrovae.data import Dataset, load
from pyrovae.errors import InputError
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
from pyrovae.marginal import Estimate, MarginalLikelihood, importance_bound, log_marginal, quadrature_log_marginal
from pyrovae.networks import MLP, ConvDecoder, ConvEncoder
from pyrovae.objectives.pair import log_weights
from pyrovae.runs import Run, load_run
from pyrovae.training import History, fit
from pyrovae.vae import VAE

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
    "VAE",
    "LinearGaussianVAE",
    "objectives",
    "log_weights",
    "schedules",
    "CompiledSVI",
    "History",
    "fit",
    "Estimate",
    "MarginalLikelihood",
    "importance_bound",
    "log_marginal",
    "quadrature_log_marginal",
    "diagnostics",
    "plots",
    "RunConfig",
    "Run",
    "load_run",
    "InputError",
]
