"""log p(x) per datum without draws, where the latents are few: by quadrature, and of discrete ones by enumeration."""

import math
from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import device_of, evaluates, local_seed, require, require_number
from pyrovae.evaluation.cubature import VANISHED, log_integral
from pyrovae.evaluation.importance_sampling import CHUNK, CHUNK_OUTPUTS, DATA_CHUNK, check_args
from pyrovae.objectives import states
from pyrovae.programs import PARTICLES, Pair, has_real_support, log_joint, sample_sites

TOLERANCE = 1e-2  # nats: a grid that is worse is refined


@evaluates
@torch.no_grad()
def quadrature_log_marginal(
    model: Callable, *args: Tensor, limit: float = 7.0, num_points: int = 401, chunk_size: int = 2**20
) -> tuple[Tensor, Tensor]:
    """log p(x) = log of the integral of p(x, z) over z, without draws: `(log_px, error)`, each `(batch,)`.

    For a model with one latent site of one or two dimensions, by the trapezoidal rule on a grid of `num_points` (odd) a
    dimension over [-limit, limit], and where that has not converged for a datum, by cells that are refined where its
    posterior is, however narrow (see `cubature`). `error` bounds the error in nats, but for rounding. It is infinite
    where it is not known: the integrand does not vanish at the limits (there it is more than exp(-10) of its largest
    value), a hundredth or more of the prior is beyond them, as of a learned one may be (a mode that is not on the grid
    leaves no other trace), or the integral has not been resolved.

    `chunk_size` pairs of a point and a datum are taken at a time. Raises `InputError` where the latent is not a real
    vector, or no density exists.
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
    prior = sites[name]["fn"]
    require(has_real_support(prior), f'quadrature needs a latent of real numbers, got {prior.support} at site "{name}"')

    def log_joint_at(z: Tensor, rows: Tensor | None) -> Tensor:
        return log_joint(model, {name: z}, *(args if rows is None else [arg[rows] for arg in args]))

    def log_prior_at(z: Tensor, rows: Tensor | None) -> Tensor:
        return (prior if rows is None else _sites(model, [arg[rows] for arg in args])[1][name]["fn"]).log_prob(z)

    settings = {"like": latents[name], "num_data": len(args[0]), "limit": limit, "chunk_size": chunk_size}
    with pyro.validation_enabled(False):
        joint = log_integral(log_joint_at, num_points=num_points, tolerance=TOLERANCE, **settings)
        mass = log_integral(log_prior_at, num_points=(num_points + 1) // 2, tolerance=TOLERANCE, **settings)
    known = (joint.edge <= joint.peak - VANISHED) & (mass.value >= math.log(0.99)) & mass.error.isfinite()
    # What is beyond the limits: no more than if the density there were that of the border in all of the square, as a
    # tail falls by 10 nats or more on the way.
    beyond = (joint.edge + shape[0] * math.log(2 * limit) - joint.value).exp()
    return joint.value.to(home), torch.where(known, joint.error + beyond, math.inf).to(home)


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
    with local_seed(0), pyro.plate(PARTICLES, 2, dim=-2):  # two, which tell whether the data's support moves with them
        twice = sample_sites(poutine.trace(model).get_trace(*args))
    Pair(twice, {}, torch.Size((2, len(args[0])))).check_densities()
    return args, sites, home
