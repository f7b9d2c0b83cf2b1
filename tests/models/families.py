"""Every likelihood of single numbers, with data of its kind, and a table that has a column of each."""

import torch
from torch import Tensor

import pyrovae as pv

LIKELIHOODS = {
    "bernoulli": pv.Bernoulli,
    "bernoulli, grey": lambda: pv.Bernoulli(allow_grey=True),
    "continuous_bernoulli": pv.ContinuousBernoulli,
    "gaussian": lambda: pv.Gaussian(0.5),
    "gaussian, learned": lambda: pv.Gaussian(0.5, learn_scale=True),
    "gaussian, predicted": lambda: pv.HeteroscedasticGaussian(min_scale=0.1),
    "student": lambda: pv.StudentT(3.0, 0.5),
    "student, learned": lambda: pv.StudentT(3.0, 0.5, learn_scale=True),
    "log_normal": lambda: pv.LogNormal(0.5),
    "log_normal, learned": lambda: pv.LogNormal(0.5, learn_scale=True),
    "beta": pv.Beta,
    "categorical": pv.Categorical,
    "categorical, digits": lambda: pv.Categorical(5),
    "discretized_logistic": pv.DiscretizedLogistic,
    "poisson": pv.Poisson,
    "negative_binomial": pv.NegativeBinomial,
    "zero_inflated": pv.ZeroInflatedNegativeBinomial,
}
COUNTS = ("poisson", "negative_binomial", "zero_inflated")


def data_of(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Data inside the support, of many values."""
    unit = 0.01 + 0.98 * torch.rand(*shape, dtype=dtype)
    if name in COUNTS:
        return (12 * unit**2).floor()
    if name == "categorical, digits":
        return (5 * unit).floor()
    if name in ("categorical", "discretized_logistic"):
        return (255 * unit).round() / 255
    if name.startswith("bernoulli"):
        return unit.round()
    return 4 * unit - 2 if name.startswith(("gaussian", "student")) else unit


def table() -> pv.Columns:
    """A column of each family, and a block of three counts of one family."""
    families: dict = {name: make() for name, make in LIKELIHOODS.items()}
    return pv.Columns({**families, ("first", "second", "third"): pv.NegativeBinomial()})


def table_data(num: int, dtype: torch.dtype = torch.float32) -> Tensor:
    kinds = (*LIKELIHOODS, *["negative_binomial"] * 3)
    return torch.stack([data_of(name, num, dtype=dtype) for name in kinds], -1)


def with_holes(x: Tensor, share: float = 0.4) -> Tensor:
    """The data with some cells missing, of the first datum all."""
    holes = torch.rand(x.shape) < share
    holes[0] = True
    return x.masked_fill(holes, torch.nan)
