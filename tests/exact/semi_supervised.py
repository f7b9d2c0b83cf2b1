"""Kingma's M2 with small linear networks: classes y known for a part of the data, and the sum over the others' classes.

    y_n ~ Categorical(CLASSES)    z_n ~ N(0, I)    x_n ~ N(z_n W + V[y_n], SD)    q(z_n | x_n) = N(x_n U, GUIDE_SD)

A label of -1 says that the class is not known. The guide draws z alone; y, in the model alone, is summed out.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor, nn

from exact.expectations import log_mean_exp, log_mean_weight, normal_grid

CLASSES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SD, GUIDE_SD = 0.8, 0.6
SUMMED = {"enumerate": "parallel"}


def data(num: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns x `(num, 3)`, and labels of every third datum, -1 for the others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (num,), generator=generator)
    return x, torch.where(torch.arange(num) % 3 == 0, labels, -1)


class M2(nn.Module):
    """Holds the three matrices, a guide, and the model in each way in which labels for a part are given."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight, of_class = (0.6 * torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (2, 3))
        self.weight, self.of_class = nn.Parameter(weight), nn.Parameter(of_class)
        self.encoder = nn.Parameter(0.5 * weight.T.contiguous())
        self.drawn: list[Tensor] = []

    def guide(self, x: Tensor, labels: Tensor) -> None:
        pyro.module("m2", self)
        with pyro.plate("data", len(x), dim=-1):
            self.drawn.append(pyro.sample("z", self.posterior(x)).detach())

    def with_obs_mask(self, x: Tensor, labels: Tensor) -> None:
        """Observes a part of the site "y", with Pyro's `obs_mask`, which passes no `infer` on to its two parts."""
        pyro.module("m2", self)
        known = labels >= 0
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(CLASSES), obs=labels.clamp(min=0), obs_mask=known)
            self.observe(x, y)

    def with_label_site(self, x: Tensor, labels: Tensor) -> None:
        """Observes a label that is the class itself, where there is one."""
        pyro.module("m2", self)
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(CLASSES), infer=dict(SUMMED))
            with poutine.mask(mask=labels >= 0):
                pyro.sample("label", dist.Categorical(torch.eye(3).double()[y]), obs=labels.clamp(min=0))
            self.observe(x, y)

    def in_two_plates(self, x: Tensor, labels: Tensor) -> None:
        """Has a plate of the data with labels and a plate of those without."""
        pyro.module("m2", self)
        for name, rows in (("labelled", labels >= 0), ("unlabelled", labels < 0)):
            with pyro.plate(name, int(rows.sum()), dim=-1):
                known = {"obs": labels[rows]} if name == "labelled" else {"infer": dict(SUMMED)}
                y = pyro.sample(f"y_{name}", dist.Categorical(CLASSES), **known)
                self.observe(x[rows], y, name)

    def guide_in_two_plates(self, x: Tensor, labels: Tensor) -> None:
        pyro.module("m2", self)
        for name, rows in (("labelled", labels >= 0), ("unlabelled", labels < 0)):
            with pyro.plate(name, int(rows.sum()), dim=-1):
                self.drawn.append(pyro.sample(f"z_{name}", self.posterior(x[rows])).detach())

    def observe(self, x: Tensor, y: Tensor, name: str = "") -> None:
        z = pyro.sample(f"z_{name}".rstrip("_"), dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        pyro.sample(f"x_{name}".rstrip("_"), self.decode(z, y), obs=x)

    def decode(self, z: Tensor, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(z @ self.weight + self.of_class[y], SD).to_event(1)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(x @ self.encoder, GUIDE_SD).to_event(1)

    # The truth --------------------------------------------------------------------------------------------------------

    def log_weights(self, z: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Returns log sum_y p(x, y, z_k) - log q(z_k | x), at draws `(num_particles, batch, 2)`.

        The sum is over all classes where the label is not known, and has one term where it is.
        """
        each = torch.stack([CLASSES[y].log() + self.decode(z, torch.tensor(y)).log_prob(x) for y in range(3)])
        known = each.gather(0, labels.clamp(min=0).expand(1, *each.shape[1:]))[0]
        log_p = torch.where(labels >= 0, known, each.logsumexp(0))
        prior = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
        return log_p + prior.log_prob(z) - self.posterior(x).log_prob(z)

    def iwae_loss(self, z: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        return -log_mean_exp(self.log_weights(z, x, labels)).sum()

    def bound(self, x: Tensor, labels: Tensor, count: int, num: int = 41) -> Tensor:
        """Returns E[log 1/K sum_k w_k] for each datum, by quadrature over z."""
        noise, p = normal_grid(num, 6.5)
        e = torch.cartesian_prod(noise, noise).unsqueeze(1)
        log_w = self.log_weights(x @ self.encoder + GUIDE_SD * e, x, labels)
        return log_mean_weight(log_w, torch.outer(p, p).flatten(), count)

    def log_px(self, x: Tensor, labels: Tensor) -> Tensor:
        """Returns log p(x_n), or log p(x_n, y_n) where the label is known: Gaussians in closed form."""
        covariance = self.weight.T @ self.weight + SD**2 * torch.eye(3).double()
        each = CLASSES.log() + dist.MultivariateNormal(self.of_class, covariance).log_prob(x[:, None])
        known = each.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
        return torch.where(labels >= 0, known, each.logsumexp(1))

    @property
    def programs(self) -> dict[str, tuple[Callable, Callable]]:
        """The pairs of a model and its guide by the way in which labels are given."""
        return {
            "obs_mask": (config_enumerate(self.with_obs_mask, default="parallel"), self.guide),
            "label site": (self.with_label_site, self.guide),
            "two plates": (self.in_two_plates, self.guide_in_two_plates),
        }
