"""Families of likelihoods p(x|z), from a decoder's output to a Pyro distribution over events."""

from pyrovae.models.likelihoods.base import Likelihood
from pyrovae.models.likelihoods.pixels import Bernoulli, Categorical, ContinuousBernoulli, DiscretizedLogistic
from pyrovae.models.likelihoods.real_values import Gaussian, HeteroscedasticGaussian

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
]
