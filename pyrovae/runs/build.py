"""Builds what a config names: the data, the untrained VAE with its parts, and the keywords of `fit`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pyrovae.common import InputError, derived_seed, device_of_worker, local_seed, require
from pyrovae.data import IMAGE_SETS, NUM_CLASSES, TABLE_FILES, Dataset, load
from pyrovae.models import (
    VAE,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    NegativeBinomial,
    OneHot,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
    posteriors,
    priors,
)
from pyrovae.runs.column_families import columns_likelihood
from pyrovae.runs.config import RunConfig
from pyrovae.runs.config_fields import filled_in
from pyrovae.runs.own_data import DataLayout, kinds_for
from pyrovae.runs.own_sources import is_function, is_own, kinds_of
from pyrovae.runs.usual_settings import COLUMNS, NUM_LEVELS

STUDENT_DF = 4.0  # degrees of freedom: few enough for outliers, and a variance that exists
LIKELIHOOD_MAKERS: dict[str, Callable[[RunConfig], Likelihood]] = {
    "bernoulli": lambda config: Bernoulli(),
    "bernoulli_grey": lambda config: Bernoulli(allow_grey=True),
    "continuous_bernoulli": lambda config: ContinuousBernoulli(),
    "gaussian": lambda config: Gaussian(config.scale),
    "gaussian_learned": lambda config: Gaussian(config.scale, learn_scale=True),
    "gaussian_predicted": lambda config: HeteroscedasticGaussian(min_scale=config.scale),
    "categorical": lambda config: Categorical(NUM_LEVELS.get(config.dataset)),
    "discretized_logistic": lambda config: DiscretizedLogistic(config.scale),
    "student_t": lambda config: StudentT(STUDENT_DF, config.scale, learn_scale=True),
    "poisson": lambda config: Poisson(),
    "negative_binomial": lambda config: NegativeBinomial(),
    "zero_inflated_negative_binomial": lambda config: ZeroInflatedNegativeBinomial(),
}


def load_data(config: RunConfig) -> Dataset:
    """Returns the data set that `config` names."""
    if not is_own(config.dataset):
        return load(config.dataset, binarize=config.binarize, data_root=config.data_root, seed=config.seed)
    kinds = kinds_of(config)
    data = _load_own(config, kinds)
    if data.columns and not is_function(config.dataset):
        used = kinds_for(config.likelihood, kinds, data.columns)
        data = data if used == kinds else _load_own(config, used)
    return data


def _load_own(config: RunConfig, kinds: Mapping[str, str] | str | None) -> Dataset:
    options: dict[str, Any] = {
        "columns": config.columns or None,
        "exclude": config.exclude or None,
        "label_column": config.label_column,
        "split_column": config.split_column,
        "header": config.header,
        "kinds": kinds,
        "missing": None if is_function(config.dataset) else config.missing,  # a function's data may have such cells
        "image_size": config.image_size,
        "binarize": config.binarize,
        "seed": config.seed,
    }
    is_table = Path(config.dataset).suffix.lower() in TABLE_FILES
    data = load(config.dataset, **options, standardise=config.standardise and is_table)
    if config.standardise and data.columns and not is_table and not is_function(config.dataset):  # arrays that are one
        data = load(config.dataset, **options, standardise=True)
    return data


def build_vae(
    config: RunConfig, event_shape: tuple[int, ...], data: Dataset | None = None, layout: DataLayout | None = None
) -> VAE:
    """Returns the untrained VAE that `config` describes; its seed and the data decide the initial parameters.

    Args:
        config: the config; for data of one's own that of `with_usual_settings`
        event_shape: the shape of one datum
        data: the training data, from which some initial parameters are taken
        layout: what the VAE must know of data of one's own (default: that of `data`)
    """
    with local_seed(derived_seed(config.seed, "initial parameters")):
        return unseeded_vae(config, event_shape, data, layout)


def unseeded_vae(
    config: RunConfig, event_shape: tuple[int, ...], data: Dataset | None = None, layout: DataLayout | None = None
) -> VAE:
    """Returns the same VAE with initial parameters from the state of torch's generator, whatever the config's seed."""
    if layout is None and data is not None:
        layout = DataLayout.of(data)
    return VAE(
        event_shape,
        latent_dim=filled_in(config.latent_dim),
        hidden=filled_in(config.hidden),
        likelihood=_likelihood_of(config, layout),
        activation=config.activation,
        network=filled_in(config.network),
        condition=OneHot(_num_classes(config, layout)) if config.conditional else (),
        posterior=_posterior_of(config),
        prior=_prior_of(config, event_shape, data),
        beta=config.beta,
        data_mean=data.train_mean if data is not None and config.network == "mlp" else None,
        missing=config.missing,
    )


def fit_settings(config: RunConfig) -> dict[str, Any]:
    """Returns the keywords of `fit` that say how `config` trains, whatever the objective."""
    names = ("beta_schedule", "batch_size", "guide_steps", "nonfinite", "patience", "schedule", "train")
    return {
        **{name: getattr(config, name) for name in names},
        "lr": _by_side(config.lr, config.guide_lr),
        "max_grad_norm": _by_side(config.max_grad_norm, config.guide_max_grad_norm),
        "device": device_of_worker(config.device),
    }


def _by_side(of_model: float | None, of_guide: float | None) -> Any:
    """Returns the one value of a setting, or those of the sides that have one, if the guide has its own."""
    if of_guide is None:
        return of_model
    return {side: value for side, value in (("model", of_model), ("guide", of_guide)) if value is not None}


def _likelihood_of(config: RunConfig, layout: DataLayout | None) -> Likelihood:
    if config.likelihood == COLUMNS:
        return columns_likelihood(() if layout is None else layout.columns, config.scale)
    return LIKELIHOOD_MAKERS[filled_in(config.likelihood)](config)


def _num_classes(config: RunConfig, layout: DataLayout | None) -> int:
    if not is_own(config.dataset):
        return NUM_CLASSES[config.dataset]
    if layout is None or layout.num_classes is None:
        raise InputError("conditional needs a label for each datum, found none: name their column with label_column")
    return layout.num_classes


def _posterior_of(config: RunConfig) -> posteriors.Posterior:
    latent_dim = filled_in(config.latent_dim)
    if config.layers:
        between = [(2 * dim, 2 * dim) for dim in config.layers]
        return posteriors.Layered((latent_dim, *config.layers), between, config.activation)
    settings: dict[str, Any] = {} if config.temperature is None else {"temperature": config.temperature}
    if config.posterior == "mixture":
        settings["num_components"] = filled_in(config.posterior_components)
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
        are_pixels = config.dataset in IMAGE_SETS or (is_own(config.dataset) and len(event_shape) == 3)
        return priors.Vamp(start, "unit_interval" if are_pixels else "real")
    return priors.PRIORS[config.prior](latent_dim)
