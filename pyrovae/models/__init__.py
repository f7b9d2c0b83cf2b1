"""Networks, distributions, likelihoods, priors and posteriors, and the VAEs that are built from them."""

from pyrovae.models import posteriors, priors
from pyrovae.models.conditions import Condition, Embedding, OneHot, SizeFactor
from pyrovae.models.latent_codes import mean_of
from pyrovae.models.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    Columns,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    LogNormal,
    NegativeBinomial,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
)
from pyrovae.models.linear_gaussian import LinearGaussianVAE
from pyrovae.models.networks import ACTIVATIONS, MLP, NETWORKS, ConvDecoder, ConvEncoder, ResNetDecoder, ResNetEncoder
from pyrovae.models.posteriors import POSTERIORS, Diagonal
from pyrovae.models.priors import PRIORS, Standard
from pyrovae.models.vae import VAE
from pyrovae.models.vqvae import VQVAE

__all__ = [
    "ACTIVATIONS",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Columns",
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
    "LogNormal",
    "MLP",
    "NETWORKS",
    "NegativeBinomial",
    "OneHot",
    "POSTERIORS",
    "PRIORS",
    "Poisson",
    "ResNetDecoder",
    "ResNetEncoder",
    "SizeFactor",
    "Standard",
    "StudentT",
    "VAE",
    "VQVAE",
    "ZeroInflatedNegativeBinomial",
    "mean_of",
    "posteriors",
    "priors",
]
