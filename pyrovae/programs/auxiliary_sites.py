"""Checks the auxiliary sites of a guide, those that the model does not have.

They are legal if the latents are a bijection of them, as in Pyro's autoguides: the auxiliary sites then carry the
density, and each latent is a `Delta` with log_density = -log |det J|. With any other auxiliary site the weights lack a
density, and an objective runs off to a value above log p(x).
"""

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from torch import Tensor
from torch.distributions import biject_to

from pyrovae.common import InputError, require
from pyrovae.programs.contract import PARTICLES
from pyrovae.programs.pair import Pair
from pyrovae.programs.random_choices import Redrawn
from pyrovae.programs.sites import base_of, sample_sites

MAX_JACOBIAN_SIZE = 256  # the Jacobian of more latents than that is not checked


def check_auxiliary(pair: Pair, guide: Callable, args: tuple, kwargs: dict) -> None:
    """Raises `InputError` unless the latents are a bijection of the guide's auxiliary sites, if it has any.

    The Jacobian is checked at one draw.
    """
    auxiliary = {name: site for name, site in pair.guide_only.items() if not isinstance(base_of(site["fn"]), Unit)}
    if not auxiliary:
        return
    names = ", ".join(f'"{name}"' for name in auxiliary)
    latent = {name: site for name, site in pair.guide_sites.items() if name in pair.model_sites}
    drawn = [name for name, site in latent.items() if not isinstance(base_of(site["fn"]), Delta)]
    why = f"the guide's auxiliary site {names} must be what all latents are a bijection of, each a Delta"
    require(not drawn, f"{why}, and {drawn[0] if drawn else ''!r} is drawn: the weights lack the density of {names}")
    values = {name: site["value"][0, 0].reshape(-1) for name, site in auxiliary.items()}
    size = sum(value.numel() for value in values.values())

    def run(flat: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the latents of one datum on the real line, and the log-density of their points there."""
        parts = dict(zip(values, flat.split([value.numel() for value in values.values()]), strict=True))
        at = {}
        for name, site in auxiliary.items():
            z = site["value"][:1].clone()
            z[0, 0] = parts[name].reshape(z.shape[2:])
            at[name] = z
        with Redrawn(at), pyro.plate(PARTICLES, 1, dim=-2):
            sites = sample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        reals, log_density = [], torch.zeros(())
        for name, site in pair.latent.items():
            z, bijection = sites[name]["value"], biject_to(site["fn"].support)
            u = bijection.inv(z)
            point = base_of(sites[name]["fn"])
            jacobian = bijection.log_abs_det_jacobian(u, z)
            log_density = log_density + point.log_density.expand(1, z.shape[1])[0, 0] + jacobian[0, 0].sum()
            reals.append(u[0, 0].reshape(-1))
        return torch.cat(reals), log_density

    start = torch.cat(list(values.values()))
    try:
        reals, log_density = run(start)
    except NotImplementedError:
        raise InputError(f"{why}, and a latent has a support without a bijection to the real line") from None
    require(len(reals) == size, f"{why}, and it has {size} dimensions where they have {len(reals)}")
    if size > MAX_JACOBIAN_SIZE:
        return
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(lambda flat: run(flat)[0], start)
    expected = -torch.linalg.slogdet(jacobian.double())[1]
    fits = torch.allclose(log_density.double(), expected, rtol=1e-3, atol=1e-3)
    require(
        fits,
        f"{why} with log_density = -log |det J|, {expected.item():.4g} at a draw, got {log_density.item():.4g}",
    )
