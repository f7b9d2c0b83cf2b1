"""`fit` knows the number of data: in a batch of B of N data, what is drawn for all of them counts by B / N."""

import math

import pytest
import torch
from exact import hierarchical
from exact.hierarchical import Hierarchy
from helpers import Pair, suite_seed

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE


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
