"""Toy densities on the plane: draws from them, and their exact log-density."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal


@dataclass(frozen=True)
class GaussianRing:
    """A mixture of `num_modes` isotropic Gaussians with equal weights, evenly spaced on a circle.

    Args:
        num_modes: The number of Gaussians.
        radius: The radius of the circle.
        std: The standard deviation of each Gaussian in each direction.
    """

    num_modes: int
    radius: float
    std: float

    @property
    def centres(self) -> Tensor:
        """The means of the Gaussians, `(num_modes, 2)`, float64."""
        angle = torch.arange(self.num_modes, dtype=torch.float64) * (2 * math.pi / self.num_modes)
        return self.radius * torch.stack((angle.cos(), angle.sin()), -1)

    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns `num` points `(num, 2)`, float32, and the number of each point's Gaussian, `(num,)`."""
        y = torch.randint(self.num_modes, (num,), generator=generator)
        noise = torch.randn(num, 2, generator=generator, dtype=torch.float64)
        return (self.centres[y] + self.std * noise).float(), y

    def log_density(self, x: Tensor) -> Tensor:
        """Returns the exact log-density of points `(num, 2)` in nats, `(num,)`, computed in float64."""
        modes = Independent(Normal(self.centres, self.std), 1)
        mixture = MixtureSameFamily(Categorical(logits=torch.zeros(self.num_modes, dtype=torch.float64)), modes)
        return mixture.log_prob(x.double().cpu()).to(x)


@dataclass(frozen=True)
class Pinwheel:
    """Gaussian arms bent into a pinwheel.

        u ~ N((1, 0), diag(radial_std^2, tangential_std^2)),    x = R(2 pi k / num_arms + rate exp(u_1)) u

    Here k is the arm, uniform on 0 ... num_arms - 1, and R(angle) a rotation.

    Args:
        num_arms: The number of arms.
        radial_std: The standard deviation of u along an arm.
        tangential_std: The standard deviation of u across an arm.
        rate: How strongly the arms are bent.

    Source: Johnson et al. 2016, arXiv:1603.06277 (their figure 1; the scale is that of u, not multiplied by ten).
    """

    num_arms: int = 5
    radial_std: float = 0.3
    tangential_std: float = 0.05
    rate: float = 0.25

    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns `num` points `(num, 2)`, float32, and the arm of each, `(num,)`.

        The arms are balanced: the numbers of points on any two arms differ by one at most.
        """
        y = torch.arange(num) % self.num_arms
        y = y[torch.randperm(num, generator=generator)]
        std = torch.tensor([self.radial_std, self.tangential_std], dtype=torch.float64)
        u = torch.randn(num, 2, generator=generator, dtype=torch.float64) * std + torch.tensor([1.0, 0.0])
        angle = 2 * math.pi * y / self.num_arms + self.rate * u[:, 0].exp()
        x = torch.stack(
            (u[:, 0] * angle.cos() - u[:, 1] * angle.sin(), u[:, 0] * angle.sin() + u[:, 1] * angle.cos()), -1
        )
        return x.float(), y

    def log_density(self, x: Tensor, num_grid: int = 1_024) -> Tensor:
        """Returns the exact log-density of points `(num, 2)` in nats, `(num,)`, by a change of variables in float64.

        A rotation keeps the radius, so a point x at (r, phi) comes from every u = r (cos a, sin a) on the same circle
        with

            a + 2 pi k / num_arms + rate exp(r cos a) = phi (mod 2 pi),    dphi / da = 1 - rate exp(u_1) u_2.

        The roots a are bracketed on a grid of `num_grid` cells and bisected to rounding. The grid finds all of them for
        r <= 6; the data have r < 3.
        """
        point = x.double().cpu()
        radius, phi = point.norm(dim=-1)[:, None, None], torch.atan2(point[:, 1], point[:, 0])[:, None, None]
        arm = (2 * math.pi / self.num_arms) * torch.arange(self.num_arms, dtype=torch.float64)[:, None]
        grid = torch.linspace(-math.pi, math.pi, num_grid + 1, dtype=torch.float64)

        def mismatch(a, radius, phi, arm):
            return a + arm + self.rate * (radius * a.cos()).exp() - phi

        # A mismatch of whole turns is none. Within each cell the turns between the values at its ends are taken off.
        left, right = (mismatch(a, radius, phi, arm) for a in (grid[:-1], grid[1:]))
        turns = 2 * math.pi * torch.ceil(torch.minimum(left, right) / (2 * math.pi))
        row, arm_index, cell = (turns < torch.maximum(left, right)).nonzero(as_tuple=True)
        turns = turns[row, arm_index, cell]
        low, high = grid[cell], grid[cell + 1]
        rising = (left < right)[row, arm_index, cell]
        at = radius[row, 0, 0], phi[row, 0, 0], arm[arm_index, 0]
        for _ in range(50):
            middle = (low + high) / 2
            beyond = (mismatch(middle, *at) > turns) == rising
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        u = at[0][:, None] * torch.stack((low.cos(), low.sin()), -1)
        std = torch.tensor([self.radial_std, self.tangential_std], dtype=torch.float64)
        base = Independent(Normal(torch.tensor([1.0, 0.0], dtype=torch.float64), std), 1)
        log_volume = (1 - self.rate * u[:, 0].exp() * u[:, 1]).abs().log()
        terms = base.log_prob(u) - log_volume - math.log(self.num_arms)
        peak = torch.full(point.shape[:1], -math.inf, dtype=torch.float64).scatter_reduce(0, row, terms, "amax")
        total = torch.zeros_like(peak).scatter_add(0, row, (terms - peak[row]).exp())
        return (peak + total.log()).to(x)


@dataclass(frozen=True)
class Scaled:
    """A toy density in another unit of length, of points y = `factor` x.

        log p(y) = log p_x(y / factor) - 2 log factor

    Args:
        density: The density of x.
        factor: A positive number.
    """

    density: GaussianRing | Pinwheel
    factor: float

    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns `num` points `(num, 2)`, and what the density says of each, `(num,)`."""
        x, y = self.density.sample(num, generator)
        return self.factor * x, y

    def log_density(self, y: Tensor) -> Tensor:
        """Returns the exact log-density of points `(num, 2)` in nats, `(num,)`."""
        return self.density.log_density(y / self.factor) - 2 * math.log(self.factor)


# Each toy density, with the number of training points that the tutorials draw from it.
TOY_DENSITIES: dict[str, tuple[GaussianRing | Pinwheel, int]] = {
    "ring": (GaussianRing(num_modes=8, radius=3.0, std=0.25), 2_000),
    "four_clusters": (GaussianRing(num_modes=4, radius=1.0, std=0.2), 800),
    "pinwheel": (Pinwheel(), 4_000),
}
