"""The code of a datum, and the codes on the way from one to another."""

import torch
from pyro import distributions as dist
from torch import Tensor

from pyrovae.common import InputError

NEARLY_OPPOSITE = 1e-5  # |u1 + u2|, below which rounding decides in which plane the arc lies


def mean_of(q: dist.TorchDistribution, num_draws: int = 64) -> Tensor:
    """Returns E_q[z], in closed form if there is one, and otherwise as the mean of `num_draws` draws."""
    try:
        return q.mean
    except NotImplementedError:
        return q.sample((num_draws,)).mean(0)


def codes_between(z1: Tensor, z2: Tensor, steps: int, spherical: bool) -> Tensor:
    """Returns `steps` codes at equal distances from z1 to z2, both among them, `(steps, batch, *latent_shape)`.

        linear:     z_t = (1 - t) z1 + t z2,    t = 0, 1/(steps - 1), ..., 1
        spherical:  z_t = ((1 - t) |z1| + t |z2|) u_t,    u_t = (sin((1 - t) w) u1 + sin(t w) u2) / sin w

    Here u1 and u2 are the directions of z1 and z2, and w the angle between them. A code of 0 has no direction, and
    takes that of the other one.

    Args:
        z1: The codes at t = 0, `(batch, *latent_shape)`.
        z2: The codes at t = 1, of the same shape.
        steps: The number of codes, at least 2.
        spherical: Whether the direction moves along an arc.

    Raises:
        InputError: If two directions are opposite, so that no arc is the shortest.
    """
    t = torch.linspace(0, 1, steps, dtype=torch.float64, device=z1.device)[:, None, None]
    first, last = z1.double().flatten(1), z2.double().flatten(1)
    if spherical:
        r1, r2 = first.norm(dim=-1, keepdim=True), last.norm(dim=-1, keepdim=True)
        u1, u2 = (torch.where(r > 0, z / r, 0.0) for r, z in ((r1, first), (r2, last)))
        u1, u2 = torch.where(r1 > 0, u1, u2), torch.where(r2 > 0, u2, u1)
        apart, together = (u1 - u2).norm(dim=-1, keepdim=True), (u1 + u2).norm(dim=-1, keepdim=True)
        opposite = ((together < NEARLY_OPPOSITE) & (r1 + r2 > 0)).flatten().nonzero()
        if len(opposite):
            raise InputError(
                f"spherical needs codes that are not opposite, and those of x1 and x2 are at index {int(opposite[0])}"
            )
        angle = 2 * torch.atan2(apart, together)  # exact where the angle is small, too
        turned = (part * torch.sinc(part * angle / torch.pi) / torch.sinc(angle / torch.pi) for part in (1 - t, t))
        between = ((1 - t) * r1 + t * r2) * sum(weight * u for weight, u in zip(turned, (u1, u2), strict=True))
    else:
        between = (1 - t) * first + t * last
    between = between.to(z1).unflatten(-1, z1.shape[1:])
    between[0], between[-1] = z1, z2  # to the bit
    return between
