"""`fit` knows the number of data: in a batch of B of N data, what is drawn for all of them counts by B / N."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import hierarchical
from exact.hierarchical import Hierarchy
from helpers import Pair, suite_seed
from torch import nn

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE

NUM, BATCH = 1_000, 50
X = 0.7 + torch.randn(NUM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def normal_mean(x):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()).double(), 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


class MeanGuide(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(X.mean())
        self.log_sd = nn.Parameter(torch.tensor(-4.5, dtype=torch.float64))  # from below, without much noise

    def forward(self, x):
        pyro.module("mean_guide", self)
        pyro.sample("mean", dist.Normal(self.loc, self.log_sd.exp()))


def test_the_posterior_of_a_mean_has_the_width_of_all_data():
    """1/sqrt(1,000) = 0.032; were the batch all there is, it would be 1/sqrt(50) = 0.14."""
    guide = MeanGuide()
    settings = {"batch_size": BATCH, "lr": 0.03, "schedule": "cosine", "seed": suite_seed(), "progress": False}
    pv.fit(Pair(normal_mean, guide), X, epochs=8, **settings)
    assert guide.log_sd.item() == pytest.approx(-math.log(NUM + 0.01) / 2, abs=0.5)
    assert guide.loc.item() == pytest.approx(X.mean().item(), abs=0.05)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(4)], ids=str)
def test_the_loss_of_batches_is_that_of_all_data_in_the_mean(objective):
    """A step's loss per datum is -(1/N (log p(theta) - log q(theta)) + 1/B sum_n L_n)."""
    x, count = hierarchical.data(12), objective.num_particles
    pair = Hierarchy({**hierarchical.OFF, "log_sd": -2.5, "log_scale": -0.8})
    history = pv.fit(
        Pair(pair.model, pair.guide), x, epochs=25, objective=objective, batch_size=3, lr=1e-9, seed=1, progress=False
    )
    losses = torch.tensor(history.loss, dtype=torch.float64)
    error = losses.std() / math.sqrt(len(losses))
    truth = -pair.bound(x, count).item() / 12
    assert abs(losses.mean() - truth) < 5 * error
    without_share = truth + pair.minus_kl().item() * (1 / 12 - 1 / 3)
    assert abs(without_share - truth) > 10 * error  # what theta's densities would make of it, counted once a batch


def test_validation_is_without_the_divergence_of_the_globals():
    """E_q(theta)[sum L_n] per datum: it tells data apart, and theta's own densities belong to the training set."""
    x, held_out = hierarchical.data(12), hierarchical.data(40, seed=1)
    pair = Hierarchy({**hierarchical.OFF, "log_sd": -30.0, "log_scale": -0.8})
    settings = {"validation": held_out, "lr": 1e-9, "seed": suite_seed(1), "progress": False}
    history = pv.fit(Pair(pair.model, pair.guide), x, epochs=1, **settings)
    truth = pair.local_bound(held_out, 1).mean().item()
    divergence = -pair.minus_kl().item() / len(held_out)
    assert divergence > 0.6
    assert history.elbo[-1] == pytest.approx(truth, abs=divergence / 2)
