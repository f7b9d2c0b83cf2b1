"""Models and guides that break the contract, each in one way, for the tests in bad_input/."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

import pyrovae as pv


def normal(*shape: int) -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(()), 1.0).expand(shape).to_event(len(shape))


def decode(z: torch.Tensor) -> dist.TorchDistribution:
    return dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1)


def model(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", decode(pyro.sample("z", normal(2))), obs=x)


def guide(x, q=lambda x: dist.Normal(x[:, :2], 0.5)):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", q(x).to_event(1))


def outside(program):
    """Trap 1: RenyiELBO gives a joint bound over the minibatch here, without a word."""

    def run(x):
        pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        program(x)

    return run


def no_plate(x):
    z = pyro.sample("z", normal(len(x), 2))
    pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 3]).to_event(2), obs=x)


def wrong_dim(x):
    with pyro.plate("data", len(x), dim=-3):
        pyro.sample("x", decode(pyro.sample("z", normal(2))), obs=x[:, None, None])


def nested(x):
    with pyro.plate("pixels", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", normal(2))


def sequential(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x{i}", normal(3), obs=x[i])


def two_plates(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", normal(2))
    with pyro.plate("again", len(x), dim=-1):
        pyro.sample("x", decode(z), obs=x)


def other_latents(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("u", normal(2))


def auxiliary(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("u", dist.Normal(0.0, 0.01), infer={"is_auxiliary": True})
        pyro.sample("z", normal(2))


def with_factor(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.factor("f", torch.full((len(x),), 5.0), has_rsample=True)
        pyro.sample("z", normal(2))


def twice(x):
    """The two plates have one name."""
    model(x)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("again", normal(2))


class Pair(NamedTuple):
    model: Callable
    guide: Callable


def nothing(x):
    """A program without a site."""


delta = partial(guide, q=lambda x: dist.Delta(x[:, :2]))
PAIRS = {
    "site outside": Pair(outside(model), outside(guide)),
    "no plate": Pair(no_plate, guide),
    "wrong dim": Pair(wrong_dim, wrong_dim),
    "nested": Pair(nested, nested),
    "sequential": Pair(sequential, nothing),
    "two plates": Pair(two_plates, guide),
    "one name twice": Pair(twice, twice),
    "no site": Pair(nothing, nothing),
    "other latents": Pair(model, other_latents),
    "no latent in the guide": Pair(model, nothing),
    "scale of the model": Pair(poutine.scale(model, 4.0), guide),
    "scale of the guide": Pair(model, poutine.scale(guide, 4.0)),
    "no parameter": Pair(model, guide),
    "delta guide": Pair(model, delta),
    "auxiliary": Pair(model, auxiliary),
    "factor": Pair(model, with_factor),
    "nothing observed": Pair(guide, guide),
    "other arguments": Pair(lambda x, y: None, guide),
}
ROWS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
# Every function that takes a pair.
ON_PAIRS = {
    "fit": lambda pair: pv.fit(pair, ROWS, epochs=1, progress=False),
    "log_weights": lambda pair: pv.log_weights(*pair, ROWS, num_particles=2),
    "log_marginal": lambda pair: pv.log_marginal(*pair, ROWS, num_samples=4),
    "importance_bound": lambda pair: pv.importance_bound(*pair, ROWS, num_particles=2, num_repeats=2),
    "evaluate": lambda pair: pv.evaluate(*pair, ROWS, methods=["elbo"]),
}
