"""Networks, distributions, likelihoods, priors and posteriors, and the VAEs that are built from them."""

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
from pyrovae.models.networks import ACTIVATIONS, MLP, NETWORKS, ConvDecoder, ConvEncoder, ResNetDecoder, ResNetEncoder
from pyrovae.models.posteriors import POSTERIORS, Diagonal
from pyrovae.models.priors import PRIORS, Standard
from pyrovae.models.vae import VAE, mean_of
from pyrovae.models.vqvae import VQVAE

__all__ = [
    "ACTIVATIONS",
    "Bernoulli",
    "Categorical",
    "Condition",
    "ContinuousBernoulli",
    "ConvDecoder",
    "ConvEncoder",
    "Diagonal",
    "DiscretizedLogistic",
    "Embedding",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Likelihood",
    "LinearGaussianVAE",
    "MLP",
    "NETWORKS",
    "OneHot",
    "POSTERIORS",
    "PRIORS",
    "ResNetDecoder",
    "ResNetEncoder",
    "Standard",
    "VAE",
    "VQVAE",
    "mean_of",
    "posteriors",
    "priors",
]
