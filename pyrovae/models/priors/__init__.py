"""Families of priors p(z), fixed and learned: each file holds one kind of z."""

from pyrovae.models.priors.codes import Bernoulli, Categorical, RelaxedBernoulli, RelaxedCategorical
from pyrovae.models.priors.continuous import CONSTRAINTS, Flow, Mixture, Standard, Vamp
from pyrovae.models.priors.layered import Layered, check_layers
from pyrovae.models.priors.prior import Encode, Prior

# The priors by the names that `pv.VAE` and the command line take.
PRIORS: dict[str, type[Prior]] = {"standard": Standard, "mixture": Mixture, "vamp": Vamp, "flow": Flow}

__all__ = [
    "CONSTRAINTS",
    "PRIORS",
    "Bernoulli",
    "Categorical",
    "Encode",
    "Flow",
    "Layered",
    "Mixture",
    "Prior",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "Standard",
    "Vamp",
    "check_layers",
]
