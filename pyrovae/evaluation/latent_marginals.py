"""Splits KL(q(z) || p(z)) into the dependence between dimensions and the distance of each from its prior."""

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.common import require
from pyrovae.evaluation.rows import as_rows, data_dim_of
from pyrovae.programs import Pair, base_of


@dataclass(frozen=True)
class Marginals:
    """Holds log-densities of every draw: `log_q` and `log_p` of each dimension alone, `log_rest` of all others.

    Each is `(num_draws, N, latent_dim)`, float64: log q(z_j), log p(z_j) and log q(z_-j), q the aggregated posterior.
    """

    log_q: Tensor
    log_p: Tensor
    log_rest: Tensor


def gaussian_of(pair: Pair) -> Tensor:
    """Returns mean and standard deviation of the guide's only latent, `(2, data, latent_dim)`, float64.

    Raises `InputError` unless it is one diagonal Gaussian, the same for every particle, and its prior is independent.
    """
    rule = "per_dimension needs a guide with one latent site, a diagonal Gaussian, and an independent prior"
    require(len(pair.guide_sites) == 1, f"{rule}; the guide has {len(pair.guide_sites)} sites")
    ((name, site),) = pair.guide_sites.items()
    for side, one in (("guide", site), ("model", pair.model_sites[name])):
        said = f'{rule}; in the {side} site "{name}" is {type(base_of(one["fn"])).__name__}'
        is_vector = isinstance(one["fn"], dist.Independent) and one["fn"].event_dim == 1
        require(is_vector and not base_of(one["fn"]).event_dim, said)
        require(side == "model" or isinstance(base_of(one["fn"]), torch.distributions.Normal), said)
    base = base_of(site["fn"])
    both = torch.stack([part.expand(site["value"].shape) for part in (base.loc, base.scale)]).double()
    rows = [as_rows(part, part.dim() - 1, data_dim_of(site, pair.layout), pair.layout) for part in both]
    return torch.stack(rows)[:, 0]


def log_prior_of(pair: Pair) -> Tensor:
    """Returns log p(z_j) at the draws of the only latent, `(num_draws, data, latent_dim)`, float64."""
    ((name, site),) = pair.guide_sites.items()
    found = base_of(pair.model_sites[name]["fn"]).log_prob(site["value"]).expand(site["value"].shape).double()
    return as_rows(found, found.dim() - 1, data_dim_of(site, pair.layout), pair.layout)


def marginals(z: Tensor, gaussians: Tensor, log_p: Tensor, densities: int) -> Marginals:
    """Returns the marginal log-densities of q(z) = 1/N sum_n q(z|x_n) at draws.

    Args:
        z: The draws, `(num_draws, N, latent_dim)`, float64.
        gaussians: Mean and standard deviation of each q(z|x_n), `(2, N, latent_dim)`.
        log_p: log p(z_j), of the shape of z.
        densities: The number of pairs of a draw and a datum at a time.
    """
    loc, scale = gaussians
    num_data = len(loc)
    flat, alone, rest = z.flatten(0, 1), [], []
    for rows in flat.split(max(1, densities // num_data)):
        each = dist.Normal(loc, scale).log_prob(rows[:, None])
        alone.append(each.logsumexp(1))
        rest.append((each.sum(-1, keepdim=True) - each).logsumexp(1))
    log_q, log_rest = (torch.cat(parts).view_as(z) - math.log(num_data) for parts in (alone, rest))
    return Marginals(log_q, log_p, log_rest)
