"""Families of likelihoods p(x|z), from a decoder's output to a Pyro distribution over events."""

from pyrovae.models.likelihoods.base import Likelihood, check_likelihood, distribution_of
from pyrovae.models.likelihoods.columns import Columns
from pyrovae.models.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyrovae.models.likelihoods.pixels import Bernoulli, Categorical, ContinuousBernoulli, DiscretizedLogistic
from pyrovae.models.likelihoods.real_values import Beta, Gaussian, HeteroscedasticGaussian, LogNormal, StudentT

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "LogNormal",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "check_likelihood",
    "distribution_of",
]
