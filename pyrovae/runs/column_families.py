"""The usual family for each kind of column, and the likelihood of a table that they make up."""

from collections.abc import Callable, Sequence

from pyrovae.common import require
from pyrovae.data import Column
from pyrovae.models import (
    Bernoulli,
    Beta,
    Categorical,
    Columns,
    Gaussian,
    Likelihood,
    LogNormal,
    NegativeBinomial,
)

# Counts of most tables vary more than under a Poisson, which the negative binomial becomes where they do not.
FAMILIES: dict[str, Callable[[Column, float], Likelihood]] = {
    "continuous": lambda column, scale: Gaussian(scale, learn_scale=True),
    "positive": lambda column, scale: LogNormal(scale, learn_scale=True),
    "unit": lambda column, scale: Beta(),
    "count": lambda column, scale: NegativeBinomial(),
    "binary": lambda column, scale: Bernoulli(),
    "category": lambda column, scale: Categorical(len(column.categories)),
}
WITH_PARAMETERS = ("continuous", "positive")  # of the family itself, such as a scale


def columns_likelihood(columns: Sequence[Column], scale: float) -> Columns:
    """Returns the likelihood in which each column has the family of its kind.

    Real-valued columns each have a scale of their own. Families without parameters are shared, and computed together.

    Args:
        columns: the columns of the table
        scale: the standard deviation that learned scales start from

    Raises:
        InputError: there are no columns
    """
    require(len(columns) > 0, "likelihood columns needs a table, whose columns have names and kinds")
    shared: dict[tuple[str, int], Likelihood] = {}
    families: dict[str | tuple[str, ...], Likelihood] = {}
    for column in columns:
        family = FAMILIES[column.kind](column, scale)
        if column.kind not in WITH_PARAMETERS:
            family = shared.setdefault((column.kind, len(column.categories)), family)
        families[column.name] = family
    return Columns(families)
