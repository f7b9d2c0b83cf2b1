"""Pairs of one scalar latent in float64, truths about them by quadrature, and their gradients."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from helpers import assert_within_standard_errors, mean_and_error, suite_seed
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import nn


class Pair(NamedTuple):
    model: Callable
    guide: Callable


X = torch.linspace(0.5, 2.5, 100, dtype=torch.float64).unsqueeze(-1)


def double(*values) -> torch.Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def pair(prior, proposal, likelihood=lambda z: dist.Normal(z, 0.7), around=lambda program: program) -> Pair:
    """Returns a pair of one scalar latent under `prior()` and `proposal(loc, scale)`, and x ~ likelihood(z)."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior().expand([1]).to_event(1))
            pyro.sample("x", likelihood(z).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", double(0.2))
        scale = pyro.param("scale", double(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", proposal(loc, scale).expand([1]).to_event(1))

    return Pair(around(model), around(guide))


def normal():
    return dist.Normal(double(0.0), 1.0)


def plain() -> Pair:
    return pair(normal, dist.Normal)


def name_taken() -> Pair:
    """Returns a pair with the second of two modules under one name, as after a notebook cell is run again."""
    net = nn.Linear(1, 2).double()

    def guide(x):
        pyro.module("net", net)
        loc, log_scale = net(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    pyro.module("net", nn.Linear(1, 2).double())
    return Pair(plain().model, guide)


def short_of_the_prior() -> Pair:
    """Returns a pair whose guide never draws a part of the prior, which Pareto k does not see."""
    return pair(normal, lambda loc, scale: dist.HalfNormal(scale + 0 * loc))


class OnLatents(ScaleMessenger):
    """Scales the sites that are not observed."""

    def _process_message(self, msg):
        if msg["type"] == "sample" and not msg["is_observed"]:
            super()._process_message(msg)


# What refusals say ---------------------------------------------------------------------------------------------------

TAKEN = "net.weight is not in Pyro's param store, which holds another tensor"
OUTSIDE = 'the guide must draw what the prior can give at site "z"'
SHORT = 'the guide never draws a part of what the prior gives at site "z"'


# Truths and gradients -------------------------------------------------------------------------------------------------


def quadrature(log_joint: Callable, low: float, high: float, num: int = 400_001) -> torch.Tensor:
    """Returns the log of the integral of exp(log_joint(z)) over z, by the trapezoidal rule."""
    z = torch.linspace(low, high, num, dtype=torch.float64)
    return log_joint(z).logsumexp(0) + math.log((high - low) / (num - 1))


def at(x: float, num: int = 1) -> torch.Tensor:
    return torch.full((num, 1), x, dtype=torch.float64)


def given(pair: Pair, loc: float, scale: float) -> Pair:
    store = pyro.get_param_store()
    store["loc"] = double(loc)
    store.setdefault("scale", double(scale), dist.constraints.positive)
    store["scale"] = double(scale)
    return pair


def gradients(objective, pair, *args, num: int = 1) -> torch.Tensor:
    """Returns gradients of the loss in the parameters, in the order of their names, `(num, parameters)`.

    The first run checks the pair and every argument of a distribution, which no later run need do again.
    """
    objective.loss(*pair, *args)
    parameters = [value.unconstrained() for _, value in sorted(pyro.get_param_store().items())]
    found = []
    with pyro.validation_enabled(False):
        for _ in range(num):
            for parameter in parameters:
                parameter.grad = None
            objective.loss_and_grads(*pair, *args)
            found.append(torch.stack([torch.zeros(()) if p.grad is None else p.grad.sum() for p in parameters]))
    return torch.stack(found).double()


def gradients_of_each(objective, pair, *args) -> torch.Tensor:
    """Returns the gradients of the loss of each datum, in the order of the parameters' names, `(data, parameters)`.

    The pair has a copy of each parameter for each datum, so that one run gives as many independent gradients.
    """
    objective.loss(*pair, *args)
    parameters = [value.unconstrained() for _, value in sorted(pyro.get_param_store().items())]
    for parameter in parameters:
        parameter.grad = None
    with pyro.validation_enabled(False):
        objective.loss_and_grads(*pair, *args)
    return torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters], -1)


def assert_one_bound(one, other, *programs_and_args) -> None:
    """Checks that two objectives have one value on the same draws, for two seeds."""
    for objective in (one, other):
        objective.loss(*programs_and_args)  # checks the pair
    for seed in range(2):
        losses = []
        for objective in (one, other):
            torch.manual_seed(suite_seed(seed))
            losses.append(objective.loss(*programs_and_args))
        assert math.isclose(*losses, rel_tol=1e-10, abs_tol=1e-10), losses


def assert_one_mean(one: torch.Tensor, other: torch.Tensor, note: str = "") -> None:
    (mean, error), (expected, expected_error) = mean_and_error(one), mean_and_error(other)
    assert_within_standard_errors(mean, expected, (error**2 + expected_error**2).sqrt() + 1e-12, note=note)
