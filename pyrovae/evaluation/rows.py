"""The values of a local site as rows: one for each particle and datum, whatever other plates the site lies in.

What is measured for each datum alone needs such rows, and is not defined for latents that the data share.
"""

from pyro.distributions import Unit
from torch import Tensor

from pyrovae.common import require
from pyrovae.programs import Layout, Pair, base_of, frames_of


def require_rows(name: str, layout: Layout, instead: str, vectorized: bool = True) -> None:
    """Raises `InputError`, on behalf of the function called `name`, unless all latents are drawn for each datum.

    With `vectorized` many particles must also run at once.
    """
    rule = f"{name} needs latents that are drawn for each datum"
    require(not layout.has_globals, f"{rule}, and the data share some: {instead}")
    rule = f"{name} needs programs that take a dimension of particles"
    require(layout.is_vectorized or not vectorized, f"{rule}, and those of this pair run one after another")


def data_dim_of(site: dict, layout: Layout) -> int | None:
    """Returns the dimension of the data at a site, counted from the right of its batch shape, or None without one."""
    return next((frame.dim for frame in frames_of(site) if frame.name in layout.plates), None)


def as_rows(value: Tensor, batch_dim: int, data_dim: int | None, layout: Layout) -> Tensor:
    """Returns a value `(data, ...)`, or `(particles, data, ...)` if it has a dimension of particles.

    `batch_dim` is the number of its batch dimensions. Without a dimension of data there is one datum.
    """
    missing = max(0, layout.nesting - batch_dim)
    value, batch_dim = value.reshape((1,) * missing + value.shape), batch_dim + missing
    first = batch_dim - layout.nesting
    return value.unsqueeze(first) if data_dim is None else value.movedim(batch_dim + data_dim, first)


def from_rows(rows: Tensor, data_dim: int | None, layout: Layout) -> Tensor:
    """Returns what `as_rows` made rows `(particles, data, ...)` of."""
    return rows.squeeze(1) if data_dim is None else rows.movedim(1, 1 + layout.nesting + data_dim)


def shares_more_than_factors(pair: Pair) -> bool:
    """Returns True if the data share a latent or an observed site.

    A factor outside the data plate depends on no latent of a datum, and is the same for all of their draws.
    """
    sites = (*pair.model_sites.values(), *pair.guide_sites.values())
    return any(not pair.is_local(site) and not is_factor(site) for site in sites)


def factor_of(pair: Pair) -> str | None:
    """Returns the name of a factor of the model, or None without one."""
    return next((name for name, site in pair.model_sites.items() if is_factor(site)), None)


def is_factor(site: dict) -> bool:
    """Returns True for a site of `pyro.factor`."""
    return isinstance(base_of(site["fn"]), Unit)
