"""Variational autoencoders as Pyro programs."""

from pyrovae import objectives, plots
from pyrovae.config import RunConfig
from pyrovae.data import Dataset, load
from pyrovae.errors import InputError
from pyrovae.likelihoods import Bernoulli, Gaussian, Likelihood
from pyrovae.linear_gaussian import LinearGaussianVAE
from pyrovae.marginal import Estimate, MarginalLikelihood, importance_bound, log_marginal, quadrature_log_marginal
from pyrovae.networks import MLP
from pyrovae.objectives.pair import log_weights
from pyrovae.runs import Run, load_run
from pyrovae.training import History, fit
from pyrovae.vae import VAE

__all__ = [
    "Dataset",
    "load",
    "MLP",
    "Bernoulli",
    "Gaussian",
    "Likelihood",
    "VAE",
    "LinearGaussianVAE",
    "objectives",
    "log_weights",
    "History",
    "fit",
    "Estimate",
    "MarginalLikelihood",
    "importance_bound",
    "log_marginal",
    "quadrature_log_marginal",
    "plots",
    "RunConfig",
    "Run",
    "load_run",
    "InputError",
]
