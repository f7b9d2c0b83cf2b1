"""Splits KL(q(z) || p(z)) into the dependence between dimensions and the distance of each from its prior."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.common import require
from pyrovae.evaluation.rows import as_rows, data_dim_of
from pyrovae.programs import Pair, base_of

DEALS = 10


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
    _, rest = _log_mixtures(z, gaussians, densities)
    return Marginals(_log_alone(z, gaussians, densities), log_p, rest)


def by_chance(z: Tensor, gaussians: Tensor, log_q: Tensor, densities: int) -> tuple[Tensor, Tensor]:
    """Returns total correlation and what each dimension shares with the others, if the dimensions were independent.

    In each of several deals each dimension has its draws and its Gaussians dealt to the data anew, which leaves every
    q(z_j) as it is. What is found all the same is because q(z) has no more than N components. Of independent dimensions
    the data as they are would be one more such deal. The caller's random numbers go on as they were.

    Args:
        z: As in `marginals`.
        gaussians: As in `marginals`.
        log_q: log q(z_j) at the draws, as `marginals` returns it.
        densities: As in `marginals`.

    Returns:
        Both for each deal, as means over the draws: `(deals, N)` and `(deals, N, latent_dim)`.
    """
    generator = torch.Generator().manual_seed(0)
    correlations, shared = [], []
    for _ in range(DEALS):
        orders = [torch.randperm(z.shape[1], generator=generator) for _ in range(z.shape[2])]
        order = torch.stack(orders, 1).to(z.device)
        dealt_z, dealt, dealt_q = (values.gather(1, order.expand_as(values)) for values in (z, gaussians, log_q))
        whole, rest = _log_mixtures(dealt_z, dealt, densities)
        correlations.append((whole - dealt_q.sum(-1)).mean(0))
        shared.append((whole.unsqueeze(-1) - dealt_q - rest).mean(0))
    return torch.stack(correlations), torch.stack(shared)


def _log_mixtures(z: Tensor, gaussians: Tensor, densities: int) -> tuple[Tensor, Tensor]:
    """Returns log q(z) `(num_draws, N)` and log q(z_-j) `(num_draws, N, latent_dim)` at the draws."""
    whole, rest = [], []
    for each in _log_components(z, gaussians, densities):
        together = each.sum(-1, keepdim=True)
        whole.append(together.logsumexp(1).squeeze(-1))
        rest.append((together - each).logsumexp(1))
    log_q, log_rest = (torch.cat(parts).unflatten(0, z.shape[:2]) - math.log(z.shape[1]) for parts in (whole, rest))
    return log_q, log_rest


def _log_alone(z: Tensor, gaussians: Tensor, densities: int) -> Tensor:
    """Returns log q(z_j) at the draws, `(num_draws, N, latent_dim)`."""
    alone = [each.logsumexp(1) for each in _log_components(z, gaussians, densities)]
    return torch.cat(alone).unflatten(0, z.shape[:2]) - math.log(z.shape[1])


def _log_components(z: Tensor, gaussians: Tensor, densities: int) -> Iterator[Tensor]:
    """Yields log q(z_j|x_n) of some draws at a time under every datum, `(draws, N, latent_dim)`."""
    loc, scale = gaussians
    for rows in z.flatten(0, 1).split(max(1, densities // len(loc))):
        yield dist.Normal(loc, scale).log_prob(rows[:, None])
