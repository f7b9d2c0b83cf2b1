"""Families of posteriors q(z|x), from an encoder's output to a distribution: each file holds one kind of z."""

from pyrovae.models.posteriors.codes import Bernoulli, Categorical, RelaxedBernoulli, RelaxedCategorical
from pyrovae.models.posteriors.continuous import Diagonal, Flow, FullCovariance, Mixture, Point
from pyrovae.models.posteriors.layered import Layered
from pyrovae.models.posteriors.posterior import Posterior

# The posteriors by the names that `pv.VAE` and the command line take.
POSTERIORS: dict[str, type[Posterior]] = {
    "diagonal": Diagonal,
    "full_covariance": FullCovariance,
    "flow": Flow,
    "mixture": Mixture,
    "bernoulli": Bernoulli,
    "relaxed_bernoulli": RelaxedBernoulli,
    "delta": Point,
}

__all__ = [
    "POSTERIORS",
    "Bernoulli",
    "Categorical",
    "Diagonal",
    "Flow",
    "FullCovariance",
    "Layered",
    "Mixture",
    "Point",
    "Posterior",
    "RelaxedBernoulli",
    "RelaxedCategorical",
]
