"""Checks the fields of a run's configuration, alone and together, and fills in the usual values."""

from dataclasses import fields

import numpy as np

from pyrovae.common import (
    if_given,
    require,
    require_choice,
    require_count,
    require_flag,
    require_number,
    require_seed,
    require_size,
    require_sizes,
    shown,
)
from pyrovae.runs.choices import (
    ACTIVATIONS,
    BETA_SCHEDULES,
    BINARIZE,
    IMAGE_SETS,
    IN_COLOUR,
    LEARNING_RATE_SCHEDULES,
    MAX_STATES,
    NETWORKS,
    NONFINITE,
    POSTERIORS,
    PRIORS,
    TRAIN,
)
from pyrovae.runs.config_fields import ConfigFields
from pyrovae.runs.own_sources import SOURCES, check_own, is_own, require_nothing_of_own
from pyrovae.runs.usual_settings import KIND_BY_BINARIZE, NUM_LEVELS, require_likelihood, usual_settings

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
# Objectives that do not differentiate the draws of z.
WITHOUT_PATH_GRADIENTS = (
    "score_function",
    "vimco",
    "ovis",
    "reweighted_wake_sleep",
    "thermodynamic",
    "elbo_enumerated",
)
POSTERIORS_OF_BITS = ("bernoulli", "relaxed_bernoulli")
USUAL_NUM_COMPONENTS = {"mixture": 10, "vamp": 500}
USUAL_POSTERIOR_COMPONENTS = 4
OF_MIXTURES = ("siwae", "miselbo")  # objectives that draw from each component of a mixture in the guide


def check_config(config: ConfigFields) -> None:
    """Fills in the fields of `config` that are None and have a usual value, and checks all of them.

    Raises:
        InputError: a field has a wrong type or value, or two fields do not go together
    """
    _check_data(config)
    _check_types_and_ranges(config)
    _check_combinations(config)
    _check_objective(config)  # last, because it imports torch


def _check_data(config: ConfigFields) -> None:
    """Checks the fields that go with the data set, and fills in those that it decides.

    Of data of one's own, the kind is known when they are read: `with_usual_settings` does the rest then.
    """
    require(isinstance(config.dataset, str), f"dataset must be one of {SOURCES}; got {shown(config.dataset)}")
    if config.network is not None:
        require_choice("network", config.network, NETWORKS)
    if is_own(config.dataset):
        check_own(config)
        return
    require_nothing_of_own(config)
    are_images, in_colour = config.dataset in IMAGE_SETS, config.dataset in IN_COLOUR
    if are_images:
        _fill_in(config, binarize="none" if in_colour else "dynamic")
        require_choice("binarize", config.binarize, BINARIZE)
        kind = KIND_BY_BINARIZE[config.binarize]
    else:
        holds = "whole numbers" if config.dataset in NUM_LEVELS else "points"
        wrong = config.binarize is not None
        require(not wrong, f"binarize {shown(config.binarize)} is for image sets, and {config.dataset} holds {holds}")
        kind = "levels" if config.dataset in NUM_LEVELS else "points"
    if kind == "points":
        wrong = config.network not in (None, "mlp")
        require(not wrong, f"network {shown(config.network)} is for image sets, and {config.dataset} holds points")
    _fill_in(config, **usual_settings(kind, config.network, kind != "points", in_colour))
    require_likelihood(config.likelihood, kind)


def _check_types_and_ranges(config: ConfigFields) -> None:
    for name in ("data_root", "device"):
        value = getattr(config, name)
        optional = value is None and name == "data_root"
        require(optional or isinstance(value, str), f"{name} must be a string, got {shown(value)}")
    for name in ("hidden", "layers"):
        value = getattr(config, name)
        if name == "hidden" and value is None:  # of data of one's own, before they are read
            continue
        require(isinstance(value, list | tuple), f"{name} must be whole numbers >= 1, got {shown(value)}")
        object.__setattr__(config, name, tuple(value))
        require_sizes(name, getattr(config, name))
    if_given(require_size, "latent_dim", config.latent_dim)
    if_given(require_size, "num_particles", config.num_particles)
    for name in ("epochs", "batch_size", "guide_steps"):
        require_count(name, getattr(config, name))
    require_seed(config.seed)
    for name in ("scale", "beta", "lr"):
        require_number(name, value := getattr(config, name), above=0)
        most = f"at most {LARGEST_FLOAT32:.3g}"
        require(value <= LARGEST_FLOAT32, f"{name} must be a float32, {most}, got {value:.3g}")
    for name in ("max_grad_norm", "guide_max_grad_norm", "guide_lr"):
        if_given(require_number, name, getattr(config, name), 0)
    require_choice("train", config.train, TRAIN)
    if_given(require_count, "patience", config.patience)
    require_flag("conditional", config.conditional)
    require_choice("activation", config.activation, ACTIVATIONS)
    require_choice("posterior", config.posterior, POSTERIORS)
    require_choice("prior", config.prior, PRIORS)
    require_choice("schedule", config.schedule, LEARNING_RATE_SCHEDULES)
    require_choice("nonfinite", config.nonfinite, NONFINITE)
    require_choice("beta_schedule", config.beta_schedule, BETA_SCHEDULES)


def _check_objective(config: ConfigFields) -> None:
    from pyrovae.objectives import NEED_NUM_PARTICLES, OBJECTIVES, parse, resolve

    name, settings = parse(config.objective)
    if name not in NEED_NUM_PARTICLES and "num_particles" not in settings:
        defaults = {field.name: field.default for field in fields(OBJECTIVES[name])}
        _fill_in(config, num_particles=defaults.get("num_particles", 1))
    resolve(config.objective, config.objective_settings())


def _check_combinations(config: ConfigFields) -> None:
    """Checks that posterior, prior, layers, condition and objective go together."""
    posterior, prior, objective = config.posterior, config.prior, config.objective_name
    if config.temperature is not None:
        require_number("temperature", config.temperature, above=0)
        is_part_of_density = posterior == "relaxed_bernoulli"  # which every objective then needs
        require(
            is_part_of_density or objective not in WITHOUT_PATH_GRADIENTS,
            f"temperature is for objectives that differentiate draws, and {objective} does not",
        )
        of_bits = " or ".join(POSTERIORS_OF_BITS)
        require(posterior in POSTERIORS_OF_BITS, f"temperature is for posterior {of_bits}, got {posterior}")
    if posterior == "relaxed_bernoulli":
        _fill_in(config, temperature=0.5)
    if posterior in POSTERIORS_OF_BITS:
        require(prior == "standard", f"posterior {posterior} has a prior of its own, got {prior}")
    if posterior == "delta":
        require(objective == "elbo", f"posterior delta (an autoencoder) needs objective elbo, got {objective}")
        require(prior == "standard", f"posterior delta (an autoencoder) needs prior standard, got {prior}")
    if objective in OF_MIXTURES:
        require(posterior == "mixture", f"objective {objective} needs posterior mixture, got {posterior}")
    plain = (posterior, prior) == ("diagonal", "standard")
    require(
        plain or not config.layers,
        f"layers need posterior diagonal and prior standard, whose place they take, got {posterior} and {prior}",
    )
    require(prior != "vamp" or not config.conditional, "prior vamp needs a VAE that is not conditional")
    by_side = {"guide_lr": None, "guide_max_grad_norm": None, "guide_steps": 1, "train": "both"}
    asked = [name for name, usual in by_side.items() if getattr(config, name) != usual]
    apart = prior != "vamp" or not asked
    require(apart, f"{''.join(asked[:1])} needs a prior that shares nothing with the guide, and vamp has its encoder")
    for name in ("guide_lr", "guide_max_grad_norm"):
        idle = config.train == "model" and getattr(config, name) is not None
        require(not idle, f"{name} is for a guide that is trained, and the model alone is")
    alone = config.train != "both" and config.guide_steps > 1
    require(not alone, f"guide_steps must be 1 where the {config.train} alone is trained, got {config.guide_steps}")
    if objective == "elbo_enumerated":
        most = MAX_STATES.bit_length() - 1
        require(
            posterior == "bernoulli" and (config.latent_dim is None or config.latent_dim <= most),
            f"objective elbo_enumerated needs posterior bernoulli and latent_dim <= {most}, "
            f"got {posterior} and {config.latent_dim}",
        )
    if objective == "elbo_analytic_kl":
        require(
            plain and not config.layers,
            "objective elbo_analytic_kl needs a KL in closed form, of posterior diagonal and prior standard",
        )
    if config.num_components is not None:
        require_size("num_components", config.num_components)
        require(prior in USUAL_NUM_COMPONENTS, f"num_components is for prior mixture or vamp, got {prior}")
    _fill_in(config, num_components=USUAL_NUM_COMPONENTS.get(prior))
    _check_posterior_components(config)


def _check_posterior_components(config: ConfigFields) -> None:
    """Checks the components of a mixture posterior; objectives that draw from each take one draw if none are given."""
    if_given(require_size, "posterior_components", config.posterior_components)
    if config.posterior != "mixture":
        given = config.posterior_components is not None
        require(not given, f"posterior_components is for posterior mixture, got {config.posterior}")
        return
    _fill_in(config, posterior_components=USUAL_POSTERIOR_COMPONENTS)
    if config.objective_name in OF_MIXTURES and "num_particles" not in config.objective:
        _fill_in(config, num_particles=config.posterior_components)


def _fill_in(config: ConfigFields, **values: object) -> None:
    """Gives fields that are None these values."""
    for name, value in values.items():
        if getattr(config, name) is None:
            object.__setattr__(config, name, value)
