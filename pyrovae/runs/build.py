"""Builds what a config names: the data, the untrained VAE with its parts, and the keywords of `fit`."""

from collections.abc import Callable
from typing import Any

import torch

from pyrovae.common import derived_seed, device_of_worker, local_seed, require
from pyrovae.data import IMAGE_SETS, NUM_CLASSES, Dataset, load
from pyrovae.models import (
    VAE,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    OneHot,
    posteriors,
    priors,
)
from pyrovae.runs.config import RunConfig
from pyrovae.runs.config_fields import filled_in

LIKELIHOOD_MAKERS: dict[str, Callable[[RunConfig], Likelihood]] = {
    "bernoulli": lambda config: Bernoulli(),
    "bernoulli_grey": lambda config: Bernoulli(allow_grey=True),
    "continuous_bernoulli": lambda config: ContinuousBernoulli(),
    "gaussian": lambda config: Gaussian(config.scale),
    "gaussian_learned": lambda config: Gaussian(config.scale, learn_scale=True),
    "gaussian_predicted": lambda config: HeteroscedasticGaussian(min_scale=config.scale),
    "categorical": lambda config: Categorical(),
    "discretized_logistic": lambda config: DiscretizedLogistic(config.scale),
}


def load_data(config: RunConfig) -> Dataset:
    """Returns the data set that `config` names."""
    return load(config.dataset, binarize=config.binarize, data_root=config.data_root, seed=config.seed)


def build_vae(config: RunConfig, event_shape: tuple[int, ...], data: Dataset | None = None) -> VAE:
    """Returns the untrained VAE that `config` describes; its seed and the data decide the initial parameters."""
    with local_seed(derived_seed(config.seed, "initial parameters")):
        return unseeded_vae(config, event_shape, data)


def unseeded_vae(config: RunConfig, event_shape: tuple[int, ...], data: Dataset | None = None) -> VAE:
    """Returns the same VAE with initial parameters from the state of torch's generator, whatever the config's seed."""
    return VAE(
        event_shape,
        latent_dim=filled_in(config.latent_dim),
        hidden=filled_in(config.hidden),
        likelihood=LIKELIHOOD_MAKERS[filled_in(config.likelihood)](config),
        activation=config.activation,
        network=config.network,
        condition=OneHot(NUM_CLASSES[config.dataset]) if config.conditional else (),
        posterior=_posterior_of(config),
        prior=_prior_of(config, event_shape, data),
        beta=config.beta,
        data_mean=data.train_mean if data is not None and config.network == "mlp" else None,
    )


def fit_settings(config: RunConfig) -> dict[str, Any]:
    """Returns the keywords of `fit` that say how `config` trains, whatever the objective."""
    names = ("beta_schedule", "batch_size", "lr", "schedule", "max_grad_norm", "patience", "nonfinite")
    return {**{name: getattr(config, name) for name in names}, "device": device_of_worker(config.device)}


def _posterior_of(config: RunConfig) -> posteriors.Posterior:
    latent_dim = filled_in(config.latent_dim)
    if config.layers:
        between = [(2 * dim, 2 * dim) for dim in config.layers]
        return posteriors.Layered((latent_dim, *config.layers), between, config.activation)
    settings = {} if config.temperature is None else {"temperature": config.temperature}
    return posteriors.POSTERIORS[config.posterior](latent_dim, **settings)


def _prior_of(config: RunConfig, event_shape: tuple[int, ...], data: Dataset | None) -> priors.Prior | None:
    """Returns the prior, or None for `standard`: the posterior brings that itself.

    The pseudo-inputs of `vamp` start as training data drawn at random. Without data they are zeros, to be replaced by a
    saved state.
    """
    if config.prior == "standard":
        return None
    latent_dim = filled_in(config.latent_dim)
    if config.prior == "mixture":
        return priors.Mixture(latent_dim, filled_in(config.num_components))
    if config.prior == "vamp":
        num_components = filled_in(config.num_components)
        start = torch.zeros(num_components, *event_shape)
        if data is not None:
            most = len(data.train_x)
            require(
                num_components <= most,
                f"num_components must be <= {most}, the number of training data; got {num_components}",
            )
            start = data.train_x[torch.randperm(most)[:num_components]]
        return priors.Vamp(start, "unit_interval" if config.dataset in IMAGE_SETS else "real")
    return priors.PRIORS[config.prior](latent_dim)
