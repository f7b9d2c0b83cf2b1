"""Checks the auxiliary sites of a guide, those that the model does not have.

They are legal if the latents that are points are a bijection of them, as in Pyro's autoguides: the auxiliary sites then
carry the density, and each such latent is a `Delta` with log_density = -log |det J|. With any other auxiliary site the
weights lack a density, and an objective runs off to a value above log p(x).
"""

from collections.abc import Callable

import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to

from pyrovae.common import InputError, require
from pyrovae.programs.layout import frames_of
from pyrovae.programs.pair import Pair
from pyrovae.programs.particle_checks import first_particle
from pyrovae.programs.running import Given
from pyrovae.programs.sites import base_of, sample_sites

MAX_JACOBIAN_SIZE = 256  # the Jacobian of more latents than that is not checked
ALLOWED_NATS, MOST_ROUNDING = 1e-3, 0.1


def check_auxiliary(pair: Pair, guide: Callable, args: tuple, kwargs: dict) -> None:
    """Raises `InputError` unless the points among the latents are a bijection of the guide's auxiliary sites.

    The Jacobian is checked at one draw. There may be latents besides that the guide draws in the usual way.
    """
    auxiliary = {name: site for name, site in pair.guide_only.items() if not isinstance(base_of(site["fn"]), Unit)}
    if not auxiliary:
        return
    names = ", ".join(f'"{name}"' for name in auxiliary)
    latent = {name: site for name, site in pair.guide_sites.items() if name in pair.model_sites}
    points = [name for name, site in latent.items() if isinstance(base_of(site["fn"]), Delta)]
    drawn = [name for name in latent if name not in points]
    why = f"all latents must be Deltas and together a bijection of the guide's auxiliary site {names}"
    require(
        len(points) > 0, f"{why}, and {drawn[0] if drawn else ''!r} is drawn: the weights lack the density of {names}"
    )
    # The first datum of the first particle, or all data where a latent is drawn for all of them.
    alone = {name: first_particle(pair, site) for name, site in auxiliary.items()}
    values = {name: _first_datum(pair, site, alone[name], site["fn"].event_dim) for name, site in auxiliary.items()}
    sizes = [value.numel() for value in values.values()]
    size = sum(sizes)

    def run(flat: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the latents of one datum on the real line, and the log-density of their points there."""
        at = {name: first_particle(pair, latent[name]) for name in drawn}
        for (name, site), part in zip(auxiliary.items(), flat.split(sizes), strict=True):
            at[name] = _with_first_datum(pair, site, alone[name], part.reshape(values[name].shape))
        with Given(at):
            sites = sample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        reals, log_density = [], torch.zeros(())
        for name in points:
            site = pair.latent[name]
            z, point, bijection = sites[name]["value"], sites[name]["fn"], biject_to(site["fn"].support)
            u = bijection.inv(z)
            jacobian = bijection.log_abs_det_jacobian(u, z)
            jacobian = sum_rightmost(jacobian, jacobian.dim() - (z.dim() - point.event_dim))
            terms = (point.log_prob(z) + jacobian).expand(z.shape[: z.dim() - point.event_dim])
            log_density = log_density + _first_datum(pair, sites[name], terms, 0).sum()
            reals.append(_first_datum(pair, sites[name], u, u.dim() - terms.dim()).reshape(-1))
        return torch.cat(reals), log_density

    start = torch.cat([value.reshape(-1) for value in values.values()])
    try:
        reals, log_density = run(start)
    except NotImplementedError:
        raise InputError(f"{why}, and a latent has a support without a bijection to the real line") from None
    require(len(reals) == size, f"{why}, and it has {size} dimensions where they have {len(reals)}")
    if size > MAX_JACOBIAN_SIZE:
        return
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(lambda flat: run(flat)[0], start).double()
    expected = -torch.linalg.slogdet(jacobian)[1]
    rounding = size * torch.finfo(start.dtype).eps * torch.linalg.cond(jacobian).item()
    allowed = ALLOWED_NATS + min(rounding, MOST_ROUNDING)  # of which a singular Jacobian has no end
    fits = torch.allclose(log_density.double(), expected, rtol=ALLOWED_NATS, atol=allowed)
    require(
        fits,
        f"{why} with log_density = -log |det J|, {expected.item():.4g} at a draw, got {log_density.item():.4g}",
    )


def moved_point(pair: Pair, guide: Callable, args: tuple, kwargs: dict) -> str | None:
    """Returns the name of a latent that the guide makes from auxiliary sites by a map with parameters, or None.

    Its log_density, the log-Jacobian of that map, depends on them where all draws are held. A gradient of densities at
    held draws takes that for a score, which it is not: its mean is not 0.
    """
    if not pair.guide_only:
        return None
    points = [name for name, site in pair.guide_sites.items() if isinstance(base_of(site["fn"]), Delta)]
    held = {name: first_particle(pair, s).detach() for name, s in pair.guide_sites.items() if name not in points}
    with torch.enable_grad(), Given(held):
        sites = sample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
    moves = (n for n in points if n in sites and (sites[n]["value"].requires_grad or _density(sites[n]).requires_grad))
    return next(moves, None)


def _density(site: dict) -> Tensor:
    return site["fn"].log_prob(site["value"])


def _data_dim(pair: Pair, site: dict) -> int | None:
    """Returns the dimension of the data at a site, or None if it has none."""
    return next((frame.dim for frame in frames_of(site) if frame.name in pair.layout.plates), None)


def _first_datum(pair: Pair, site: dict, value: Tensor, event_dim: int) -> Tensor:
    dim = _data_dim(pair, site)
    return value if dim is None else value.select(dim - event_dim, 0)


def _with_first_datum(pair: Pair, site: dict, value: Tensor, first: Tensor) -> Tensor:
    dim = _data_dim(pair, site)
    if dim is None:
        return first
    dim -= site["fn"].event_dim
    return torch.cat([first.unsqueeze(dim), value.narrow(dim, 1, value.shape[dim] - 1)], dim)
