"""Questions about many draws of many data hold few of them at a time, whatever is asked."""

import pyro
import pytest
import torch
from helpers import draw, linear_gaussian
from test_conditional import guide_at

import pyrovae as pv
from pyrovae.evaluation import chunks, draw_runs, expectation, resampling, sampled_weights

DATA, SAMPLES, MOST = 100, 50, 500
QUESTIONS = {
    "posterior": lambda model, guide, x: pv.posterior(model, guide, x, num_samples=SAMPLES).mean("z"),
    "impute": lambda model, guide, x: pv.impute(
        model, guide, x, missing=torch.eye(DATA, 5).bool(), num_samples=SAMPLES, num_draws=40
    ),
    "conditional": lambda model, guide, x: pv.conditional_log_marginal(
        model, guide, x, given=torch.arange(5) < 2, num_samples=SAMPLES
    ),
    "check": lambda model, guide, x: pv.predictive_check(
        model, guide, x, statistic=lambda x: x[..., 0], num_samples=SAMPLES, num_replicates=40
    ),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_more_pairs_are_run_at_a_time_than_memory_is_said_to_hold(question, monkeypatch):
    """Of limits that are small here: 5,000 pairs of a draw and a datum are asked for, in all."""
    for module, name, value in (
        (chunks, "PAIRS_PER_CHUNK", MOST),
        (resampling, "PAIRS_PER_CHUNK", MOST),
        (sampled_weights, "WEIGHTS_IN_MEMORY", 10 * MOST),
        (draw_runs, "NUMBERS_KEPT", 0),
        (expectation, "VALUES_AT_A_TIME", MOST),
    ):
        monkeypatch.setattr(module, name, value)
    vae, pairs = linear_gaussian(0, pinned=True), []

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            pairs.append(z[..., 0].numel())
            pyro.sample("x", vae.decode(z), obs=x)

    masked = guide_at(vae, 1.1)
    takes_all = question == "posterior"
    guide = (lambda x: masked(x, torch.ones_like(x).bool())) if takes_all else masked
    QUESTIONS[question](model, guide, draw(vae, DATA))
    assert sum(pairs) >= DATA * SAMPLES
    assert max(pairs) <= 2 * MOST  # two particles of the data are compared before they are cut
