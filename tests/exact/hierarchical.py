"""A normal hierarchy with a global mean: its exact evidence, bounds with any number of particles, and gradients.

theta ~ N(prior_mean, PRIOR_SD)    z_n ~ N(theta + shift, LATENT_SD)    x_n ~ N(z_n, NOISE_SD)
q(theta) = N(mu, exp(log_sd))      q(z_n | x_n, theta) = N(on_x x_n + on_theta theta + bias, exp(log_scale))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from exact.expectations import hermite, log_mean_weight, normal_grid

PRIOR_MEAN, PRIOR_SD, LATENT_SD, NOISE_SD = 0.5, 1.5, 0.8, 0.6

# A guide that is off in everything: the exact one has mu 0.6 to 1.3 on our data, on_x 0.64 and on_theta 0.36.
OFF = {"mu": 0.9, "log_sd": -1.2, "on_x": 0.45, "on_theta": 0.2, "bias": 0.25, "log_scale": -0.4, "shift": 0.3}
OF_THETA, OF_Z, OF_MODEL = ("log_sd", "mu"), ("bias", "log_scale", "on_theta", "on_x"), ("shift",)


def data(num: int, seed: int = 0) -> Tensor:
    """Returns data of a mean that is off the prior's, `(num,)`; the same at every base seed."""
    generator = torch.Generator().manual_seed(seed)
    return 1.1 + 1.0 * torch.randn(num, generator=generator, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """Holds the parameters by name, as floats or 0-dim tensors, and gives programs and truths."""

    parameters: dict[str, float | Tensor] = field(default_factory=lambda: dict(OFF))
    theta_family: Callable = dist.Normal

    # Programs ---------------------------------------------------------------------------------------------------------

    def param(self, name: str) -> Tensor:
        return pyro.param(name, torch.as_tensor(self.parameters[name], dtype=torch.float64))

    def draw_theta(self) -> Tensor:
        return pyro.sample("theta", self.theta_family(self.param("mu"), self.param("log_sd").exp()))

    def model(self, x: Tensor, size: int | None = None, subsample_size: int | None = None) -> None:
        """Observes x; a plate of `size` data holds x, or with `subsample_size` so many of them."""
        theta = pyro.sample("theta", dist.Normal(torch.tensor(PRIOR_MEAN, dtype=torch.float64), PRIOR_SD))
        mean = theta + self.param("shift")
        with Plate(x, size, subsample_size) as x_n:
            z = pyro.sample("z", dist.Normal(mean, LATENT_SD))
            pyro.sample("x", dist.Normal(z, NOISE_SD), obs=x_n)

    def guide(self, x: Tensor, size: int | None = None, subsample_size: int | None = None) -> None:
        theta = self.draw_theta()
        with Plate(x, size, subsample_size) as x_n:
            mean = self.param("on_x") * x_n + self.param("on_theta") * theta + self.param("bias")
            pyro.sample("z", dist.Normal(mean, self.param("log_scale").exp()))

    # Truths -----------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in self.parameters.items()}

    def log_evidence(self, x: Tensor) -> Tensor:
        """Returns log p(x_1 ... x_N), jointly."""
        num, local = len(x), LATENT_SD**2 + NOISE_SD**2
        covariance = PRIOR_SD**2 * torch.ones(num, num, dtype=torch.float64) + local * torch.eye(num).double()
        mean = PRIOR_MEAN + self.tensors()["shift"]
        return dist.MultivariateNormal(mean.expand(num), covariance).log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and covariance of (theta, z_1, ..., z_N) given x."""
        num, shift, of_z = len(x), self.tensors()["shift"], LATENT_SD**-2
        precision = (of_z + NOISE_SD**-2) * torch.eye(num + 1, dtype=torch.float64)
        precision[0], precision[:, 0] = -of_z, -of_z
        precision[0, 0] = PRIOR_SD**-2 + num * of_z
        pull = torch.cat(((PRIOR_MEAN / PRIOR_SD**2 - num * shift * of_z).reshape(1), x / NOISE_SD**2 + shift * of_z))
        covariance = torch.linalg.inv(precision)
        return covariance @ pull, covariance

    def densities(self, noise: Tensor, theta: Tensor, x: Tensor, held: bool = False) -> tuple[Tensor, Tensor]:
        """Returns log p(x, z | theta) and log q(z | x, theta) at the draw z that the noise gives, broadcast.

        With `held` the draw has no gradient.
        """
        at = self.tensors()
        mean, scale = at["on_x"] * x + at["on_theta"] * theta + at["bias"], at["log_scale"].exp()
        z = mean + scale * noise
        if held:
            z = z.detach()
        log_p = normal(z, theta + at["shift"], LATENT_SD) + normal(x, z, NOISE_SD)
        return log_p, normal(z, mean, scale)

    def theta_at(self, standard: Tensor) -> Tensor:
        """Returns the draw of theta that standard normal noise gives."""
        return self.tensors()["mu"] + self.tensors()["log_sd"].exp() * standard

    def minus_kl(self) -> Tensor:
        """Returns E_q[log p(theta) - log q(theta)]."""
        at = self.tensors()
        sd, shift = at["log_sd"].exp(), at["mu"] - PRIOR_MEAN
        return 0.5 + at["log_sd"] - math.log(PRIOR_SD) - (sd.square() + shift.square()) / (2 * PRIOR_SD**2)

    def local_bound(self, x: Tensor, count: int, num: int = 201, num_theta: int = 20) -> Tensor:
        """Returns E_q(theta)[L_K(theta)] for each datum, `(N,)`, with L_K(theta) = E[log 1/K sum_k w_k]."""
        (noise, p), (standard, p_theta) = normal_grid(num), hermite(num_theta)
        log_p, log_q = self.densities(noise.reshape(-1, 1, 1), self.theta_at(standard)[:, None], x)
        return torch.einsum("tn,t->n", log_mean_weight(log_p - log_q, p, count), p_theta)

    def bound(self, x: Tensor, count: int, **grid: int) -> Tensor:
        """Returns E_q(theta)[log p(theta) - log q(theta) + sum_n L_K(theta, x_n)]; with K = 1 it is the ELBO."""
        return self.minus_kl() + self.local_bound(x, count, **grid).sum()

    def elbo(self, x: Tensor) -> Tensor:
        """Returns the ELBO in closed form: squares of Gaussians in their means and variances."""
        at = self.tensors()
        v_theta, scale = (2 * at["log_sd"]).exp(), at["log_scale"].exp()
        z = at["on_x"] * x + at["on_theta"] * at["mu"] + at["bias"]
        v_z = scale.square() + at["on_theta"].square() * v_theta
        v_gap = scale.square() + (at["on_theta"] - 1).square() * v_theta
        gap = (z - at["mu"] - at["shift"]).square() + v_gap
        misfit = (x - z).square() + v_z
        local = 0.5 + at["log_scale"] - math.log(LATENT_SD * NOISE_SD) - math.log(2 * math.pi) / 2
        return self.minus_kl() + (local - gap / (2 * LATENT_SD**2) - misfit / (2 * NOISE_SD**2)).sum()

    def joint_bound(self, x: Tensor, count: int, num: int = 101) -> Tensor:
        """Returns E[log 1/K sum_k p(x, z_k, theta_k) / q(z_k, theta_k)] for the one datum in x."""
        (standard, p), at = normal_grid(num, 7.5), self.tensors()
        theta = self.theta_at(standard)
        log_p, log_q = self.densities(standard[:, None], theta, x)
        prior, proposal = normal(theta, PRIOR_MEAN, PRIOR_SD), normal(theta, at["mu"], at["log_sd"].exp())
        return log_mean_weight((log_p - log_q + prior - proposal).flatten(), torch.outer(p, p).flatten(), count)

    # Guides -----------------------------------------------------------------------------------------------------------

    def with_exact_local_guide(self) -> "Hierarchy":
        """Returns the hierarchy with q(z | x, theta) = p(z | x, theta)."""
        share = LATENT_SD**2 / (LATENT_SD**2 + NOISE_SD**2)
        bias = (1 - share) * self.tensors()["shift"]
        log_scale = math.log(LATENT_SD * NOISE_SD) - math.log(LATENT_SD**2 + NOISE_SD**2) / 2
        exact = {"on_x": share, "on_theta": 1 - share, "bias": bias.item(), "log_scale": log_scale}
        return Hierarchy({**self.parameters, **exact}, self.theta_family)

    def with_exact_global_guide(self, x: Tensor) -> "Hierarchy":
        """Returns the hierarchy with q(theta) = p(theta | x)."""
        precision = PRIOR_SD**-2 + len(x) / (LATENT_SD**2 + NOISE_SD**2)
        pull = (x - self.tensors()["shift"]).sum() / (LATENT_SD**2 + NOISE_SD**2)
        mean = (PRIOR_MEAN / PRIOR_SD**2 + pull) / precision
        exact = {"mu": mean.item(), "log_sd": -math.log(precision) / 2}
        return Hierarchy({**self.parameters, **exact}, self.theta_family)


@dataclass(frozen=True, eq=False)
class Copies(Hierarchy):
    """Is the hierarchy `num` times side by side, with its own theta, parameters and data for each.

    The loss is the sum of `num` independent ones, and the gradient of each parameter has one for each copy. The data
    are those of one copy after another.
    """

    num: int = 1

    def param(self, name: str) -> Tensor:
        return pyro.param(name, torch.as_tensor(self.parameters[name], dtype=torch.float64).repeat(self.num))

    def draw_theta(self) -> Tensor:
        return pyro.sample("theta", self.theta_family(self.param("mu"), self.param("log_sd").exp()).to_event(1))

    def model(self, x: Tensor) -> None:
        prior = dist.Normal(torch.tensor(PRIOR_MEAN, dtype=torch.float64), PRIOR_SD).expand([self.num])
        mean = pyro.sample("theta", prior.to_event(1)) + self.param("shift")
        with Plate(x, None, None):
            z = pyro.sample("z", dist.Normal(self.of_each(mean, x), LATENT_SD))
            pyro.sample("x", dist.Normal(z, NOISE_SD), obs=x)

    def guide(self, x: Tensor) -> None:
        at, scale = self.param("on_theta") * self.draw_theta() + self.param("bias"), self.param("log_scale").exp()
        with Plate(x, None, None):
            mean = self.of_each(self.param("on_x"), x) * x + self.of_each(at, x)
            pyro.sample("z", dist.Normal(mean, self.of_each(scale, x)))

    def of_each(self, value: Tensor, x: Tensor) -> Tensor:
        """Returns for each datum the value of its copy."""
        return value.repeat_interleave(len(x) // self.num)


class Plate:
    """Opens the data plate, whole or subsampled, and gives the data in it."""

    def __init__(self, x: Tensor, size: int | None, subsample_size: int | None) -> None:
        self.x, whole = x, len(x) if size is None else size
        given = torch.arange(len(x)) if whole != len(x) else None  # x is a part of a larger set
        self.plate = pyro.plate("data", whole, subsample_size=subsample_size, subsample=given, dim=-1)

    def __enter__(self) -> Tensor:
        index = self.plate.__enter__()
        return self.x if len(index) == len(self.x) else self.x[index]

    def __exit__(self, *error: object) -> None:
        self.plate.__exit__(*error)


def normal(value: Tensor, mean: Tensor | float, sd: Tensor | float) -> Tensor:
    """Returns log N(value; mean, sd)."""
    sd = torch.as_tensor(sd, dtype=torch.float64)
    return -((value - mean) / sd).square() / 2 - sd.log() - math.log(2 * math.pi) / 2
