"""log p(x) per datum without draws, where the latents are few: by quadrature, and of discrete ones by enumeration."""

import math
from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.errors import require, require_number
from pyrovae.marginal import CHUNK, CHUNK_OUTPUTS, DATA_CHUNK, check_args, device_of
from pyrovae.modes import evaluates
from pyrovae.objectives.enumerated import states
from pyrovae.objectives.pair import Pair, has_real_support, log_joint, sample_sites
from pyrovae.rng import local_seed


@evaluates
@torch.no_grad()
def quadrature_log_marginal(
    model: Callable, *args: Tensor, limit: float = 7.0, num_points: int = 401, chunk_size: int = 2**20
) -> tuple[Tensor, Tensor]:
    """log p(x) = log of the integral of p(x, z) over z, by the trapezoidal rule: `(log_px, error)`, each `(batch,)`.

    For a model with one latent site of one or two dimensions, on a grid of `num_points` (odd) a dimension over
    [-limit, limit]. `error` is the distance to the same rule on every other point; the rule converges faster than any
    power of the spacing for a smooth integrand that vanishes at the limits, so that the true error is far smaller. It
    is infinite where the integrand does not vanish there (at the edge more than exp(-10) of its largest value), and
    where a hundredth or more of the prior is beyond the grid, as a learned one may be: a mode that is not on the grid
    leaves no other trace.

    Raises `InputError` where the latent is not a real vector, or no density exists.
    """
    require_number("limit", limit, above=0)
    require(num_points % 2 == 1 and num_points >= 3, f"num_points must be odd and >= 3, got {num_points!r}")
    args, sites, home = _sites(model, args)
    latents = {name: site["value"] for name, site in sites.items() if not site["is_observed"]}
    shapes = {name: tuple(value.shape[1:]) for name, value in latents.items()}
    name, shape = next(iter(shapes.items()), ("", ()))
    require(
        len(shapes) == 1 and shape in ((1,), (2,)),
        f"quadrature needs one latent site of one or two dimensions, got {shapes}",
    )
    fn = sites[name]["fn"]
    require(has_real_support(fn), f'quadrature needs a latent of real numbers, got {fn.support} at site "{name}"')
    axis = torch.linspace(-limit, limit, num_points, dtype=torch.float64).to(latents[name])
    dim, spacing = shape[0], 2 * limit / (num_points - 1)
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, 1, dim)
    on_coarse = (
        torch.cartesian_prod(*[torch.arange(num_points) % 2 == 0] * dim).reshape(-1, dim).all(-1).to(axis.device)
    )
    on_edge = (grid.abs() >= limit * (1 - 1e-6)).any(-1).squeeze(-1)
    totals = torch.full((2, len(args[0])), -math.inf, dtype=torch.float64, device=axis.device)
    peak, edge = totals[0].clone(), totals[0].clone()
    step = max(1, chunk_size // len(args[0]))
    for z, coarse, at_edge in zip(grid.split(step), on_coarse.split(step), on_edge.split(step), strict=True):
        with pyro.validation_enabled(False):
            joint = log_joint(model, {name: z}, *args)
        totals[0] = torch.logaddexp(totals[0], joint.logsumexp(0).double())
        totals[1] = torch.logaddexp(totals[1], joint[coarse].logsumexp(0).double())
        peak = torch.maximum(peak, joint.amax(0).double())
        if at_edge.any():
            edge = torch.maximum(edge, joint[at_edge].amax(0).double())
    fine, coarse = totals[0] + dim * math.log(spacing), totals[1] + dim * math.log(2 * spacing)
    prior, every_other = sites[name]["fn"], grid[on_coarse]
    with pyro.validation_enabled(False):
        mass = sum(prior.log_prob(z).double().exp().sum(0) for z in every_other.split(step)) * (2 * spacing) ** dim
    error = torch.where((edge > peak - 10) | (mass < 0.99), math.inf, (fine - coarse).abs())
    return fine.to(home), error.to(home)


@evaluates
@torch.no_grad()
def enumerated_log_marginal(model: Callable, *args: Tensor) -> Tensor:
    """log p(x) = log sum_z p(x, z) over every value of all latents, `(batch,)`: exact to rounding.

    For a model whose latent sites are discrete and can be enumerated, as for `objectives.EnumeratedELBO`, with at most
    65,536 values in all. Raises `InputError` where they are not, or no density exists.
    """
    args, sites, home = _sites(model, args)
    values = states({name: site for name, site in sites.items() if not site["is_observed"]})
    num_states = len(next(iter(values.values())))
    outputs = Pair(sites, {}, torch.Size((1, len(args[0])))).outputs
    data_size = min(len(args[0]), DATA_CHUNK)
    step = max(1, min(CHUNK, CHUNK_OUTPUTS // outputs) // data_size)
    parts = []
    for data in zip(*(arg.split(data_size) for arg in args), strict=True):
        total = torch.full((len(data[0]),), -math.inf, dtype=torch.float64, device=data[0].device)
        for start in range(0, num_states, step):
            some = {name: value[start : start + step] for name, value in values.items()}
            with pyro.validation_enabled(False):
                joint = log_joint(model, some, *data)
            total = torch.logaddexp(total, joint.double().logsumexp(0))
        parts.append(total)
    return torch.cat(parts).to(home)


def _sites(model: Callable, args: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], dict[str, dict], torch.device]:
    """The data where the model is, its sites in a run on them, with their densities checked, and the data's device."""
    check_args(args)
    home, device = args[0].device, device_of(model, args)
    args = tuple(arg.to(device) for arg in args)
    with local_seed(0):  # for names and shapes, and to validate the arguments once
        sites = sample_sites(poutine.trace(model).get_trace(*args))
    require(any(not site["is_observed"] for site in sites.values()), "model must have a latent site, and has none")
    Pair(sites, {}, torch.Size((1, 1))).check_densities()
    return args, sites, home
