"""Every combination of settings that a run's config accepts, and few of them in which all go together in twos."""

import itertools

from pyrovae.runs.usual_settings import LIKELIHOODS_BY_KIND

# By kind of data, the fields that ask for it. Points have one latent dimension, so that their quadrature is a line.
KINDS = {
    "points": {"dataset": "ring", "latent_dim": 1, "batch_size": 2_000},
    "static": {"dataset": "mnist", "binarize": "static"},
    "dynamic": {"dataset": "mnist", "binarize": "dynamic"},
    "grey": {"dataset": "mnist", "binarize": "none"},
    "dequantised": {"dataset": "mnist", "binarize": "dequantise"},
    "count": {"dataset": "counts.csv", "label_column": "group"},
    "mixed": {"dataset": "people.csv", "label_column": "group"},
}
IMAGES = ("static", "dynamic", "grey", "dequantised")
# tanh, as relu may leave none of so few units that trains.
NETWORK_FIELDS = {
    "mlp": {"hidden": (5,), "activation": "tanh"},
    "conv": {"hidden": (3, 2), "activation": "tanh"},
    # In the first step the first layer of a residual block gets no gradient, as its last layer starts at 0.
    "resnet": {"hidden": (3, 2), "activation": "tanh", "epochs": 3},
}
OBJECTIVES = {
    "elbo": {"objective": "elbo", "num_particles": 2, "beta": 2.0, "beta_schedule": "linear"},
    "elbo_analytic_kl": {"objective": "elbo_analytic_kl", "beta": 0.5},
    "free_bits": {"objective": "elbo_analytic_kl", "free_bits": 0.1},
    "iwae": {"objective": "iwae", "num_particles": 2},
    "renyi": {"objective": "renyi", "num_particles": 2, "alpha": 0.5},
}
# Likelihoods that are trained with the ELBO alone, as residual networks are.
WITH_ELBO = ("student_t", *LIKELIHOODS_BY_KIND["count"], "columns")


def likelihoods_of(kind: str) -> tuple[str, ...]:
    fitting = LIKELIHOODS_BY_KIND["binary" if kind in ("static", "dynamic") else kind]
    return (*fitting, "columns") if kind in ("count", "mixed") else fitting


def supported() -> dict[str, dict]:
    """Returns every combination that a config accepts, by a readable name."""
    found = {}
    for kind, network in itertools.product(KINDS, NETWORK_FIELDS):
        if kind not in IMAGES and network != "mlp":
            continue
        for likelihood, conditional in itertools.product(likelihoods_of(kind), (False, True)):
            crossed = [*((name, "diagonal") for name in OBJECTIVES), ("elbo", "delta")]
            for objective, posterior in crossed[:1] if likelihood in WITH_ELBO or network == "resnet" else crossed:
                name = [kind, network, likelihood, objective, posterior, "labels" if conditional else "no labels"]
                fields = {**KINDS[kind], **NETWORK_FIELDS[network], **OBJECTIVES[objective], "network": network}
                fields |= {"likelihood": likelihood, "posterior": posterior, "conditional": conditional}
                found[" | ".join(name)] = fields
    return found


SUPPORTED = supported()


FIELDS = ("kind", "network", "likelihood", "objective", "posterior", "labels")
# An objective gets log-densities and sees none of what they are of; labels go into the networks, not the likelihood.
APART = {("kind", "objective"), ("network", "objective"), ("likelihood", "objective"), ("likelihood", "labels")}


def twos(name: str) -> set[tuple]:
    """Returns every two of a combination's values that meet, each with its field."""
    values = zip(FIELDS, name.split(" | "), strict=True)
    return {two for two in itertools.combinations(values, 2) if (two[0][0], two[1][0]) not in APART}


def covering() -> list[str]:
    """Returns names in which every two values that meet do so at least once: 34 of 282.

    A run's fields meet in twos: a network must take a likelihood's parameters, labels, or a kind of data. Each of the
    282 is made into a VAE by a test of its own, and tests/models has all parts with each other and every objective.
    """
    left, found = set().union(*map(twos, SUPPORTED)), []
    while left:
        found.append(max(SUPPORTED, key=lambda name: len(twos(name) & left)))
        left -= twos(found[-1])
    return found
