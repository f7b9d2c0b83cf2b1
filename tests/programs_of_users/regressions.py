"""Coins and regressions: all latents are global, and the data lie in a plate."""

import math
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    init_to_value,
)
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from programs_of_users.hierarchies import positive
from programs_of_users.program import Program, normals, source

TOSSES = torch.tensor([1.0, 1, 1, 0, 1, 0])
NUM, NOISE = 6, 0.5


def _coin(data):
    fairness = pyro.sample("fairness", dist.Beta(10.0, 10.0))
    with pyro.plate("tosses", len(data)):
        pyro.sample("obs", dist.Bernoulli(fairness), obs=data)


def _evidence_of_coin() -> Tensor:
    heads, tails = int(TOSSES.sum()), int(len(TOSSES) - TOSSES.sum())
    log_beta = [math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) for a, b in ((10 + heads, 10 + tails), (10, 10))]
    return torch.tensor([log_beta[0] - log_beta[1]])


def coin() -> Program:
    """The first of Pyro's tutorials, with its Beta guide."""

    def guide(data):
        a, b = positive("alpha_q", torch.tensor(15.0)), positive("beta_q", torch.tensor(15.0))
        pyro.sample("fairness", dist.Beta(a, b))

    return Program(_coin, guide, (TOSSES,), log_px=_evidence_of_coin)


def coin_with_auto_normal() -> Program:
    return Program(_coin, AutoNormal(_coin, init_scale=0.4), (TOSSES,), log_px=_evidence_of_coin)


def coin_with_auto_delta() -> Program:
    return Program(_coin, AutoDelta(_coin), (TOSSES,), log_px=_evidence_of_coin)


def _inputs() -> tuple[Tensor, Tensor]:
    generator = source(14)
    x = normals(generator, NUM, 2)
    return x, x @ torch.tensor([0.5, -1.0]) + NOISE * normals(generator, NUM)


def _regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight + bias, NOISE), obs=y)


def _evidence(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double(), y.double()
    covariance = x @ x.T + 1.0 + NOISE**2 * torch.eye(len(y), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y).reshape(1)


def _start(x: Tensor, y: Tensor) -> Callable:
    """Returns an initialiser at the posterior mean, so that draws of a guide that is not trained yet weigh enough."""
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1)
    mean = torch.linalg.solve(inputs.T @ inputs + NOISE**2 * torch.eye(3), inputs.T @ y)
    return init_to_value(values={"weight": mean[:2], "bias": mean[2]})


def _with(auto, **settings) -> Program:
    x, y = _inputs()
    if auto is not AutoNormalizingFlow:
        settings |= {"init_loc_fn": _start(x, y), "init_scale": 0.4}
    return Program(_regression, auto(_regression, **settings), (x, y), log_px=lambda: _evidence(x, y))


def regression_with_auto_normal() -> Program:
    return _with(AutoNormal)


def regression_with_diagonal() -> Program:
    return _with(AutoDiagonalNormal)


def regression_with_multivariate() -> Program:
    return _with(AutoMultivariateNormal)


def regression_with_low_rank() -> Program:
    return _with(AutoLowRankMultivariateNormal, rank=1)


def regression_with_flow() -> Program:
    return _with(AutoNormalizingFlow, init_transform_fn=partial(affine_autoregressive, hidden_dims=[6]))


def regression_with_list() -> Program:
    """One guide for the weights and another for the bias."""
    x, y = _inputs()
    guide, how = AutoGuideList(_regression), {"init_loc_fn": _start(x, y), "init_scale": 0.4}
    guide.append(AutoDiagonalNormal(poutine.block(_regression, expose=["weight"]), **how))
    guide.append(AutoNormal(poutine.block(_regression, expose=["bias"]), **how))
    return Program(_regression, guide, (x, y), log_px=lambda: _evidence(x, y))


class BayesianRegression(PyroModule):
    """A linear layer whose weights have priors, and a plate from which a minibatch is drawn."""

    def __init__(self, subsample_size: int | None) -> None:
        super().__init__()
        self.subsample_size = subsample_size
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.LogNormal(-0.5, 0.5))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x), subsample_size=self.subsample_size) as rows:
            pyro.sample("obs", dist.Normal(mean[rows], sigma), obs=y[rows])
        return mean


def bayesian_layers() -> Program:
    model = BayesianRegression(None)
    return Program(model, AutoDiagonalNormal(model), _inputs())


def regression_in_batches() -> Program:
    model = BayesianRegression(2)
    return Program(model, AutoNormal(model), _inputs())
