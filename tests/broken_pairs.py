"""Models and guides that are no pair, each in one way, for the tests in bad_input/."""

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


def crossing(x):
    """Ratings, with latents of the rows and of the columns: either can be the data."""
    rows, columns = pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1)
    with rows:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
    with columns:
        v = pyro.sample("v", dist.Normal(0.0, 1.0))
    with rows, columns:
        pyro.sample("x", dist.Normal(u + v, 1.0), obs=x)


def crossing_guide(x):
    with pyro.plate("rows", len(x), dim=-2):
        pyro.sample("u", dist.Normal(0.0, 1.0))
    with pyro.plate("columns", x.shape[1], dim=-1):
        pyro.sample("v", dist.Normal(0.0, 1.0))


def undeclared(x):
    """A to_event is missing, so that x has a dimension that no plate declares."""
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def undeclared_guide(x):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", normal(2))


def without_size(x):
    """The prior of z has one value for all data, as a plate without a size expands no site."""
    with pyro.plate("data"):
        pyro.sample("x", decode(pyro.sample("z", normal(2))), obs=x)


def without_size_guide(x):
    with pyro.plate("data"):
        pyro.sample("z", normal(2))


def inner_plate(x):
    """Two latents for each datum, of which the guide draws one."""
    with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", 2, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, :2].T)


def without_inner_plate(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def guide_outside(x):
    pyro.sample("z", dist.Normal(x[:, :2], 0.5).to_event(2))


def observing_guide(x):
    guide(x)
    with pyro.plate("labels", len(x), dim=-1):
        pyro.sample("y", normal(3), obs=x)


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


def for_others(x):
    """Has latents for six data, as an autoguide that first ran on six."""
    with pyro.plate("data", 6, dim=-1):
        pyro.sample("z", normal(2))


def nothing(x):
    """A program without a site."""


delta = partial(guide, q=lambda x: dist.Delta(x[:, :2]))
PAIRS = {
    "crossing": Pair(crossing, crossing_guide),
    "undeclared": Pair(undeclared, undeclared_guide),
    "no size": Pair(without_size, without_size_guide),
    "guide outside": Pair(model, guide_outside),
    "one for two": Pair(inner_plate, without_inner_plate),
    "guide observes": Pair(model, observing_guide),
    "one name twice": Pair(twice, twice),
    "no site": Pair(nothing, nothing),
    "other latents": Pair(model, other_latents),
    "no latent in the guide": Pair(model, nothing),
    "scale of the model": Pair(poutine.scale(model, 4.0), guide),
    "scale of the guide": Pair(model, poutine.scale(guide, 4.0)),
    "another size": Pair(model, for_others),
    "no parameter": Pair(model, guide),
    "delta guide": Pair(model, delta),
    "auxiliary": Pair(model, auxiliary),
    "factor": Pair(model, with_factor),
    "nothing observed": Pair(guide, guide),
    "swapped": Pair(guide, model),
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
