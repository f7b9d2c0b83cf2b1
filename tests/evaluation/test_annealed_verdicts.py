"""What is said of an estimate by annealed chains: a bound only where its chains disagree or do not move."""

import math

import pytest
import torch
from evaluation_pairs import guide_of
from helpers import draw, linear_gaussian, suite_seed

import pyrovae as pv
from pyrovae.evaluation.annealed_chains import AnnealedChains
from pyrovae.evaluation.evaluation_table import Measured
from pyrovae.evaluation.importance_weights import log_mean

INF = math.inf


def found_with(log_weights, acceptance=0.65, num_distributions=100, upper=False):
    """The estimate of chains with these log-weights, `(chains, data)`; for an upper bound those of 1 / p(x)."""
    sign = -1 if upper else 1
    log_weights = torch.as_tensor(log_weights, dtype=torch.float64)
    value, error, ess = log_mean(log_weights)
    acceptance = torch.as_tensor(acceptance).expand(len(value))
    steps = torch.ones(num_distributions, len(value))
    return pv.AnnealedEstimate(sign * value, error, ess, acceptance, steps, sign * log_weights, upper)


def normal(deviation, num_chains=16, num_data=4_000):
    """Log-weights of which the mean weight is 1, so that log p(x) = 0."""
    generator = torch.Generator().manual_seed(suite_seed())
    draws = torch.randn(num_chains, num_data, generator=generator, dtype=torch.float64)
    return deviation * draws - deviation**2 / 2


ONE = [[0.0], [-9.0], [-9.0], [-9.0], [-9.0], [-9.0], [-9.0], [-9.0]]
SAME = [[-2.0, -3.0]] * 8


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            found_with(SAME),
            "reliable as far as its own chains can tell: ESS >= 4 of 8 chains at all 2 data; "
            "not low as far as the chains have seen (jackknife)",
        ),
        (
            found_with(SAME, [0.65, 0.1]),
            "a lower bound only: the chains hardly move at 1 of 2 data (HMC accepts 10%, and its steps were tuned to "
            "65%); take more distributions than 100",
        ),
        (found_with(SAME, 0.99), "at 2 of 2 data (HMC accepts 99%, and its steps were tuned to 65%)"),
        (
            found_with(ONE, num_distributions=2_000),
            "a lower bound only: the chains disagree (ESS < 4 of 8 chains): low by an unknown amount; take more "
            "distributions than 2,000",
        ),
        (
            found_with([[0.0], *[[-INF]] * 7]),
            "a lower bound only: the chains disagree (ESS < 4 of 8 chains): low by an unknown amount; take",
        ),
        (found_with(ONE, 0.05), "low by an unknown amount; the chains hardly move (HMC accepts 5%, and"),
        (found_with(ONE, upper=True), "an upper bound only: the chains disagree (ESS < 4 of 8 chains): high by"),
        (found_with(SAME[:1], 0.99, upper=True), "an upper bound only: the chains hardly move at 2 of 2 data"),
        (found_with(SAME[:1]), "one chain is too few to tell whether it is reliable: take 8 or more"),
        (found_with(SAME[:7]), "7 chains are too few to tell whether it is reliable: take 8 or more"),
        (found_with(ONE[:7]), "a lower bound only: the chains disagree (ESS < 3.5 of 7 chains)"),
    ],
)  # fmt: skip
def test_the_verdict_is_a_conclusion_its_reason_and_an_action(found, told):
    assert told in found.verdict
    assert found.verdict in found.diagnosis
    assert repr(found).splitlines()[-1] == found.verdict
    assert "nan" not in found.diagnosis
    assert "inf" not in found.diagnosis


def test_a_few_data_where_chains_disagree_are_told_from_chains_that_disagree_at_many():
    few = found_with(torch.cat((torch.tensor(ONE), torch.full((8, 39), -2.0)), 1), num_distributions=100)
    assert few.verdict == (
        "reliable as far as its own chains can tell at 39 of 40 data; the chains disagree (ESS < 4 of 8 chains) at "
        "1 of 40 data, and may be far off: for it take more distributions than 100"
    )
    assert "nats of it" in few.diagnosis
    many = found_with(torch.tensor(ONE).expand(8, 40))
    assert many.verdict.startswith("a lower bound only: the chains disagree")


@pytest.mark.parametrize("num_chains", [16, 64])
def test_half_of_the_chains_tells_estimates_that_are_low_from_those_that_are_not(num_chains):
    """Of each datum by itself: the log of the mean of that many log-normal weights, of which the truth is 0."""
    for deviation, least, most in ((0.3, 0.0, 0.001), (0.6, 0.0, 0.03), (2.0, 0.95, 1.0), (5.0, 0.99, 1.0)):
        found = found_with(normal(deviation, num_chains))
        assert least <= found.disagrees.double().mean().item() <= most
        believed = found.value[~found.disagrees]
        assert len(believed) < 200 or believed.mean().item() > -0.03
    if num_chains == 16:  # the comment beside the number
        found = found_with(normal(1.5))
        assert found.disagrees.double().mean().item() == pytest.approx(7 / 8, abs=0.03)
        assert found.mean == pytest.approx(-0.16, abs=0.05)


def test_too_few_distributions_are_told_and_enough_are_believed():
    vae = linear_gaussian(6, data_dim=6, latent_dim=3, scale=1.0)
    x = draw(vae, 40)
    for start, num, is_enough in (("prior", 2, False), ("guide", 24, True)):
        settings = {"start": start, "num_distributions": num, "num_leapfrog": 3, "compile": False}
        found = pv.annealed_log_marginal(vae.model, guide_of(vae, 1.5), x, **settings)
        off = found.mean - vae.log_px(x).mean().item()
        assert (off > -4 * found.monte_carlo_error - 0.02) == is_enough
        assert found.verdict.startswith("reliable") == is_enough, found.verdict


@pytest.mark.parametrize("factor", [100.0, 1e-4])
def test_steps_that_do_not_fit_are_told_though_all_weights_are_equal(factor, monkeypatch):
    """From the exact posterior there is nothing to bridge, and the chains need not move to have equal weights."""
    vae, pilot = linear_gaussian(6, data_dim=6, latent_dim=3, scale=0.3), AnnealedChains.pilot
    monkeypatch.setattr(AnnealedChains, "pilot", lambda *args: factor * pilot(*args))
    settings = {"num_distributions": 5, "num_leapfrog": 2, "start": "guide", "compile": False}
    found = pv.annealed_log_marginal(vae.model, vae.exact_guide, draw(vae, 3), **settings)
    assert not found.disagrees.any()
    assert found.is_stuck.all()
    assert found.verdict.startswith("a lower bound only: the chains hardly move at 3 of 3 data (HMC accepts ")


def test_bounds_from_both_sides_each_have_theirs():
    vae = linear_gaussian(6, data_dim=6, latent_dim=3, scale=0.3)
    settings = {"num_distributions": 2, "num_leapfrog": 2, "compile": False}
    bounds = pv.bidirectional_gap(vae.model, vae.guide, draw(vae, 9), **settings)
    assert bounds.lower.verdict.startswith("a lower bound only: the chains disagree")
    assert ": low by" in bounds.lower.verdict
    assert bounds.upper.verdict.startswith("an upper bound only: the chains disagree")
    assert ": high by" in bounds.upper.verdict
    assert repr(bounds).splitlines()[-2:] == [f"lower: {bounds.lower.verdict}", f"upper: {bounds.upper.verdict}"]


def test_a_table_of_estimates_has_the_verdict_of_each_that_can_judge_itself():
    vae = linear_gaussian(6, data_dim=6, latent_dim=3)
    found = pv.evaluate(vae.model, vae.guide, draw(vae, 2), methods=("elbo", "is_20", "is_40"))
    annealed = [Measured(f"ais_{n}", found_with(SAME, num_distributions=n), 1.0) for n in (10, 20)]
    table = pv.Evaluation((*found.measured, *annealed), 1.0, None)
    lines = table.verdict.splitlines()
    assert lines[0].startswith("all are lower bounds in expectation, and the best is ")
    assert [line.split(":")[0] for line in lines[1:]] == ["is_40", "ais_10", "ais_20"]
    assert lines[-1] == f"ais_20: {annealed[1].estimate.verdict}"
    of_one = pv.Evaluation(found.measured[:1], 1.0, None)
    assert of_one.verdict == "a lower bound in expectation"  # it was "the best" of one
