"""log p(x) per datum without draws: by quadrature for one or two latents, by enumeration for discrete ones."""

import math
from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import device_of, evaluates, local_seed, require, require_number
from pyrovae.evaluation.chunks import DATA_PER_CHUNK, OUTPUTS_PER_CHUNK, PAIRS_PER_CHUNK, check_args, in_chunks
from pyrovae.evaluation.cubature import VANISHED, log_integral
from pyrovae.programs import (
    enumerated_states,
    gate,
    has_real_support,
    is_masked,
    log_joint,
    model_alone,
    particles,
    sample_sites,
    takes_model,
    without_mask,
    without_masks_of_latents,
)

GRID_TOLERANCE = 1e-2  # nats: a grid that is worse is refined


@takes_model
@evaluates
@torch.no_grad()
def quadrature_log_marginal(
    model: Callable, *args: Tensor, limit: float = 7.0, num_points: int = 401, chunk_size: int = 2**20
) -> tuple[Tensor, Tensor]:
    """Integrates p(x, z) over z without draws: log p(x) for a model with one or two latent dimensions.

        log p(x) = log of the integral of p(x, z) dz over [-limit, limit]^dim

    The trapezoidal rule runs on a grid. If it has not converged for a datum, it is replaced by cells that are refined
    where the posterior of that datum is, however narrow it is.

    Args:
        model: A model with one latent site of one or two real dimensions.
        *args: The tensors that the model takes, of one length, the data first.
        limit: The grid covers [-limit, limit] in each dimension.
        num_points: The number of points of the grid in each dimension: odd, and at least 3.
        chunk_size: The number of pairs of a point and a datum that are taken at a time.

    Returns:
        `(log_px, error)`, each `(batch,)`, in nats. `error` bounds the error, but for rounding. It is infinite where
        the error is not known, for one of these reasons: the integrand does not vanish at the limits (it is more than
        exp(-10) of its largest value there); a hundredth or more of the prior lies beyond the limits, as may happen
        with a learned one (a mode that is not on the grid leaves no other trace); the integral has not been resolved.

    Raises:
        InputError: If the latent is not a real vector of one or two dimensions, or no density exists.

    Example:
        >>> vae = pv.LinearGaussianVAE(torch.ones(3, 1), torch.zeros(3), 0.5, torch.zeros(1))
        >>> x = torch.zeros(4, 3)
        >>> log_px, error = pv.quadrature_log_marginal(vae.model, x)
        >>> torch.allclose(log_px, vae.log_px(x).double(), atol=1e-4)
        True
    """
    require_number("limit", limit, above=0)
    require(num_points % 2 == 1 and num_points >= 3, f"num_points must be odd and >= 3, got {num_points!r}")
    model, args, sites, home = _read(model, args)
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
        return (prior if rows is None else _read(model, tuple(arg[rows] for arg in args))[2][name]["fn"]).log_prob(z)

    settings = {"like": latents[name], "num_data": len(args[0]), "limit": limit, "chunk_size": chunk_size}
    with pyro.validation_enabled(False):
        joint = log_integral(log_joint_at, num_points=num_points, tolerance=GRID_TOLERANCE, **settings)
        mass = log_integral(log_prior_at, num_points=(num_points + 1) // 2, tolerance=GRID_TOLERANCE, **settings)
    known = (joint.edge <= joint.peak - VANISHED) & (mass.value >= math.log(0.99)) & mass.error.isfinite()
    # The integral beyond the limits is at most what it would be if the density at the border held in all of the square:
    # a tail falls by 10 nats or more on its way to the border.
    beyond = (joint.edge + shape[0] * math.log(2 * limit) - joint.value).exp()
    return joint.value.to(home), torch.where(known, joint.error + beyond, math.inf).to(home)


@takes_model
@evaluates
@torch.no_grad()
def enumerated_log_marginal(model: Callable, *args: Tensor) -> Tensor:
    """Sums p(x, z) over every value of all latents: log p(x) for a model with discrete latents, exact to rounding.

        log p(x) = log sum_z p(x, z)

    Args:
        model: A model whose latent sites are discrete and can be enumerated, as for `pv.objectives.EnumeratedELBO`,
            with at most 65,536 values in all.
        *args: The tensors that the model takes, of one length, the data first.

    Returns:
        log p(x), `(batch,)`, in nats, float64.

    Raises:
        InputError: If the latents cannot be enumerated, have too many values, or no density exists.

    Example:
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", pyro.distributions.Bernoulli(torch.tensor([0.25])).to_event(1))
        ...         pyro.sample("x", pyro.distributions.Bernoulli(0.2 + 0.6 * z).to_event(1), obs=x)
        >>> pv.enumerated_log_marginal(model, torch.ones(2, 1)).exp()  # 0.75 * 0.2 + 0.25 * 0.8
        tensor([0.3500, 0.3500], dtype=torch.float64)
    """
    model, args, sites, home = _read(model, args)
    values = enumerated_states({name: site for name, site in sites.items() if not site["is_observed"]})
    num_states = len(next(iter(values.values())))
    outputs = model_alone(sites, 1).outputs
    data_size = min(len(args[0]), DATA_PER_CHUNK)
    step = max(1, min(PAIRS_PER_CHUNK, OUTPUTS_PER_CHUNK // outputs) // data_size)
    parts = []
    for data in in_chunks(args, data_size):
        total = torch.full((len(data[0]),), -math.inf, dtype=torch.float64, device=data[0].device)
        for start in range(0, num_states, step):
            some = {name: value[start : start + step] for name, value in values.items()}
            with pyro.validation_enabled(False):
                joint = log_joint(model, some, *data)
            total = torch.logaddexp(total, joint.double().logsumexp(0))
        parts.append(total)
    return torch.cat(parts).to(home)


def _read(
    model: Callable, args: tuple[Tensor, ...]
) -> tuple[Callable, tuple[Tensor, ...], dict[str, dict], torch.device]:
    """Returns the model, the data on its device, the sites of a run on them, and the data's own device.

    It checks that the sites have densities. Masks of latents are taken off, after a check that nothing reads what they
    mask: log p(x) stays what it is, and the latents have a density everywhere.
    """
    check_args(args)
    home, device = args[0].device, device_of(model, args)
    args = tuple(arg.to(device) for arg in args)
    with local_seed(0):  # for names and shapes, and to validate the arguments once
        sites = sample_sites(poutine.trace(model).get_trace(*args))
    require(any(not site["is_observed"] for site in sites.values()), "model must have a latent site, and has none")
    # Two particles show whether the support of the data moves with the latents.
    with local_seed(0), particles(2):
        twice = sample_sites(poutine.trace(model).get_trace(*args))
    model_alone(twice, 2).check_densities()
    if any(is_masked(site) and not site["is_observed"] for site in sites.values()):
        prior = poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
        with local_seed(0):
            gate.check(model, prior, None, *args)
        model = without_masks_of_latents(model)
        sites = {name: site if site["is_observed"] else without_mask(site) for name, site in sites.items()}
    return model, args, sites, home
