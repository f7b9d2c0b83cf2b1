"""The usual settings for a kind of data: its likelihoods and the sizes of its networks."""

from pyrovae.common import did_you_mean, require, shown

# The kind of data of known sets, by the field `binarize`, which is None for points.
KIND_BY_BINARIZE = {
    None: "points",
    "none": "grey",
    "dequantise": "dequantised",
    "static": "binary",
    "dynamic": "binary",
}
GAUSSIANS = ("gaussian", "gaussian_learned", "gaussian_predicted")
LIKELIHOODS_BY_KIND = {
    "points": (*GAUSSIANS, "student_t"),
    "binary": ("bernoulli",),
    "grey": ("bernoulli_grey", "categorical", "discretized_logistic"),
    "dequantised": ("continuous_bernoulli", *GAUSSIANS),
    "levels": ("categorical", "negative_binomial", "poisson", "zero_inflated_negative_binomial"),
    "count": ("negative_binomial", "poisson", "zero_inflated_negative_binomial"),
    "mixed": (),
}
COLUMNS = "columns"  # the likelihood of a table in which each column has the family of its kind
USUAL_LIKELIHOOD_BY_KIND = {
    "points": "gaussian_learned",
    "binary": "bernoulli",
    "grey": "bernoulli_grey",
    "dequantised": "continuous_bernoulli",
    "levels": "categorical",
    "count": "negative_binomial",
    "mixed": COLUMNS,
}
NUM_LEVELS = {"digits": 17}  # of data sets by name that hold whole numbers
LIKELIHOODS = (*dict.fromkeys(name for names in LIKELIHOODS_BY_KIND.values() for name in names), COLUMNS)


def require_likelihood(likelihood: str | None, kind: str, has_columns: bool = False) -> None:
    """Raises `InputError` unless a likelihood suits this kind of data, and a table if it has `has_columns`."""
    fitting = (*LIKELIHOODS_BY_KIND[kind], *((COLUMNS,) if has_columns else ()))
    known = isinstance(likelihood, str) and likelihood in fitting
    is_known = isinstance(likelihood, str) and likelihood in LIKELIHOODS  # then a near one may be quite another
    hint = "" if is_known else did_you_mean(likelihood, fitting)
    require(known, f"likelihood must be one of {', '.join(fitting)} for {kind} data, got {shown(likelihood)}{hint}")


def usual_settings(kind: str, network: str | None, are_images: bool, has_density: bool) -> dict[str, object]:
    """Returns the usual `likelihood`, `network`, `hidden` and `latent_dim`.

    Args:
        kind: one of those above
        network: the network, if it is given
        are_images: whether the data are images
        has_density: whether grey levels get a likelihood that is one, and images a network of convolutions: they do in
            colour, and of one's own
    """
    likelihood = "discretized_logistic" if kind == "grey" and has_density else USUAL_LIKELIHOOD_BY_KIND[kind]
    network = network or ("resnet" if are_images and has_density else "mlp")
    sizes: dict[str, object] = {"hidden": (128, 128), "latent_dim": 2}
    if are_images:
        sizes = {"hidden": (400,) if network == "mlp" else (32, 64), "latent_dim": 20}
    return {"likelihood": likelihood, "network": network, **sizes}
