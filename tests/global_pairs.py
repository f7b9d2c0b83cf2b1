"""Pairs with a global mean, with or without a latent of each datum, for tests of training."""

import pyro
import pyro.distributions as dist
import torch
from helpers import Pair

NUM, BATCH = 12, 3
X = 0.7 + torch.randn(NUM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
POSITIVE = dist.constraints.positive
PLATES = {
    "sized": lambda x: pyro.plate("data", len(x)),
    "without a size": lambda x: pyro.plate("data"),
    "at dim -2": lambda x: pyro.plate("data", x.numel(), dim=-2),
    "declared": lambda x: pyro.plate("data", NUM, subsample=x),
}


def double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pair_of(plate: str = "sized", has_local: bool = False) -> Pair:
    """theta ~ N(0, 3), z_n ~ N(theta, 1) in the middle if `has_local`, and x_n ~ N(theta or z_n, 0.5); a factor."""
    make = PLATES[plate]

    def model(x):
        shift = pyro.param("shift", double(0.1))
        theta = pyro.sample("theta", dist.Normal(double(0.0), 3.0))
        pyro.factor("regulariser", -shift.square())
        with make(x):
            x = x.unsqueeze(-1) if plate == "at dim -2" else x
            mean = theta + shift + torch.zeros_like(x)
            z = pyro.sample("z", dist.Normal(mean, 1.0)) if has_local else mean
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        loc, scale = pyro.param("loc", double(0.2)), pyro.param("scale", double(0.3), constraint=POSITIVE)
        theta = pyro.sample("theta", dist.Normal(loc, scale))
        if has_local:
            with make(x):
                x = x.unsqueeze(-1) if plate == "at dim -2" else x
                pyro.sample("z", dist.Normal(pyro.param("slope", double(0.5)) * x + 0.1 * theta, 0.6))

    return Pair(model, guide)


class Unknown:
    """Yields batches, and does not say how many."""

    def __iter__(self):
        return iter(X.split(BATCH))
