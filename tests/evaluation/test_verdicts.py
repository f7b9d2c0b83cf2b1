"""What is said of an estimate: never that it is reliable where its weights do not show it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import guide_of
from helpers import draw, linear_gaussian, mean_and_error, suite_seed

import pyrovae as pv
from pyrovae.evaluation.importance_weights import bound_sizes, pareto_smoothed
from pyrovae.evaluation.weights_verdict import doubt_of

NAN, INF = math.nan, math.inf


def found_with(pareto_k, shifts, num_samples=5_000):
    """Returns log p(x) of so many data with these k, and with the jackknife so much above it."""
    value = torch.full((len(pareto_k),), -10.0, dtype=torch.float64)
    nothing, sizes = torch.zeros_like(value), torch.zeros(len(bound_sizes(num_samples)), len(value))
    k, jackknife = torch.tensor(pareto_k, dtype=torch.float64), value + torch.tensor(shifts, dtype=torch.float64)
    return pv.MarginalLikelihood(value, nothing, nothing + 9, k, jackknife, value, sizes, sizes, num_samples)


@pytest.mark.parametrize(
    ("k", "shifts", "told"),
    [
        (
            [0.1, 0.2],
            [0.1, 0.1],
            "can tell: Pareto k <= 0.7 at all 2 data; low by 0.1 nats as far as the draws have seen (jackknife)",
        ),
        (
            [0.1, 0.2],
            [-0.1, -0.1],
            "can tell: Pareto k <= 0.7 at all 2 data; not low as far as the draws have seen (jackknife)",
        ),
        (
            [0.1, -INF],
            [INF, NAN],
            "can tell: Pareto k <= 0.7 at all 2 data; its draws do not tell how low it is",
        ),
        (
            [0.1, NAN, 0],
            [0, 0, 0.3],
            "not all can be judged: Pareto k <= 0.7 at 2 of 3 data and unknown at 1 (rounding hides how "
            "the log-weights differ, which are very large; use float64); low by 0.1 nats as far as the "
            "draws have seen (jackknife)",
        ),
        (
            [0.9, NAN, 0],
            [0, 0, 0.3],
            "a lower bound only: Pareto k > 0.7 at 1 of 3 data and unknown at 1 (rounding hides how the log-weights "
            "differ, which are very large; use float64), low by an unknown amount; take more draws",
        ),
        (
            [0.9, NAN, NAN] + [0.0] * 57,
            [0.0] * 60,
            "not all can be judged: Pareto k <= 0.7 at 57 of 60 data and unknown at 2 (rounding hides how "
            "the log-weights differ, which are very large; use float64); the other one may be far off (Pareto k > "
            "0.7): for it take more draws",
        ),
        (
            [0.9, 0.1],
            [-1.0, 0.1],
            "a lower bound only: Pareto k > 0.7 at 1 of 2 data, low by an unknown amount; take more draws",
        ),
        ([INF], [INF], "only: Pareto k > 0.7, low by an unknown amount; take more draws"),
        ([NAN, NAN], [0.1, 0.1], "it cannot be judged: rounding hides how the log-weights differ"),
    ],
)
def test_the_verdict_counts_no_datum_whose_k_is_unknown_and_does_not_contradict_itself(k, shifts, told):
    found = found_with(k, shifts)
    assert told in found.verdict
    assert ("reliable" in found.verdict) == (not any(map(math.isnan, k)) and max(k) < 0.7)
    assert found.verdict in found.diagnosis


@pytest.mark.parametrize(
    ("num_bad", "told"),
    [
        (
            1,
            "reliable as far as its own draws can tell at 59 of 60 data; the other one may be far off (Pareto k > "
            "0.7): for it take more draws",
        ),
        (
            3,
            "reliable as far as its own draws can tell at 57 of 60 data; the other 3 may be far off (Pareto k > 0.7): "
            "for them take more draws",
        ),
        (4, "a lower bound only: Pareto k > 0.7 at 4 of 60 data, low by an unknown amount; take more draws"),
    ],
)
def test_a_few_bad_data_are_told_from_a_guide_that_is_bad_at_many(num_bad, told):
    found = found_with([0.9] * num_bad + [0.3] * (60 - num_bad), [7.0] * num_bad + [0.02] * (60 - num_bad))
    assert found.verdict == told
    assert "Do not leave these data out" in found.diagnosis


@pytest.mark.parametrize(("num_bad", "num_good", "is_few"), [(1, 0, False), (1, 18, False), (1, 19, True)])
def test_data_whose_k_is_unknown_do_not_make_bad_ones_few(num_bad, num_good, is_few):
    """With 19 unknown beside one bad datum and no good one, "the other one" was said to be off, and no lower bound."""
    k = [0.9] * num_bad + [NAN] * 19 + [0.3] * num_good
    found = found_with(k, [0.0] * len(k))
    assert found.verdict.startswith("not all can be judged" if is_few else "a lower bound only")
    assert doubt_of(found.pareto_k, 5_000).startswith("Pareto k > 0.7" if is_few else "a lower bound: Pareto k > 0.7")


def test_data_without_a_large_k_are_not_a_fair_sample_of_all():
    """Why no verdict says to believe the mean of the others: without its luckiest draws an estimate is lower."""
    vae = linear_gaussian(6, data_dim=2, latent_dim=2, scale=1.0)
    torch.manual_seed(suite_seed())
    x = draw(vae, 600)
    found = pv.log_marginal(vae.model, guide_of(vae, 0.65), x, num_samples=1_000)
    off = found.value - vae.log_px(x).double()
    assert 0.05 < found.share_unreliable < 0.5
    assert off[~found.is_unreliable].mean() < off.mean() - 0.005


def test_a_few_data_of_large_k_are_high_and_the_others_lower_than_their_jackknife_says():
    """Why the verdict has neither a side for the few nor a jackknife of the others; S = 1,000 draws, 1,500 data."""
    vae = linear_gaussian(6, data_dim=2, latent_dim=2, scale=1.0)
    torch.manual_seed(suite_seed())
    x = draw(vae, 1_500)
    found = pv.log_marginal(vae.model, guide_of(vae, 0.75), x, num_samples=1_000)
    assert 0.005 < found.share_unreliable <= 0.05
    off, few = found.value - vae.log_px(x).double(), found.is_unreliable
    high, error = mean_and_error(off[few])
    assert high > 3 * error
    assert off.mean() - off[~few].mean() > 1.5 * (found.jackknife - found.value)[~few].mean() > 0  # by the choice alone


@pytest.mark.parametrize(
    ("num_samples", "k", "told", "in_short"),
    [
        (50, [0.42, 0.2], "50 draws are too few at 1 of 2 data: Pareto k > 0.41; k = 0.42 needs 53", "1 of 2 data"),
        (50, [0.40, 0.2], "reliable as far as its own draws can tell: Pareto k <= 0.41 at all 2 data; ", ""),
        (100, [0.51], "100 draws are too few: Pareto k > 0.5; k = 0.51 needs 110", "k > 0.5"),
        (1_000, [0.69], "1,000 draws are too few: Pareto k > 0.67; k = 0.69 needs 1,682", "k > 0.67"),
        (2_200, [0.69], "reliable as far as its own draws can tell: Pareto k <= 0.7; ", ""),
        (50, [0.9] + [0.5] * 59, "50 draws are too few at 60 of 60 data: Pareto k > 0.41; k = 0.50 needs 100", "60"),
        (50, [0.9] * 4 + [0.5] * 56, "a lower bound only: Pareto k > 0.7 at 4 of 60 data", "a lower bound: "),
        (50, [0.5] * 3 + [0.1] * 57, "the other 3 may be far off (Pareto k > 0.41)", "3 of 60 data, which may be far"),
    ],
)
def test_so_many_draws_are_enough_for_a_smaller_k_alone(num_samples, k, told, in_short):
    """By Vehtari et al. 2024, min(1 - 1/log10 S, 0.7); 50 draws of an effective sample size of 5 were "reliable"."""
    found = found_with(k, [0.0] * len(k), num_samples)
    assert told in found.verdict
    assert ("reliable" in found.verdict) == ("reliable" in told or "other" in told)
    assert in_short in doubt_of(found.pareto_k, num_samples)
    assert bool(doubt_of(found.pareto_k, num_samples)) == bool(in_short)
    answer = pv.Expectation(*[found.pareto_k] * 6, num_samples)
    if "too few" in told:
        assert answer.verdict == found.verdict.replace("data", "values")


def test_one_bad_datum_in_20_is_told_alike_by_log_px_and_by_answers():
    found = found_with([0.9] * 3 + [0.3] * 57, [0.0] * 60)
    k = found.pareto_k
    answer = pv.Expectation(k, k, k, k, k, k, 5_000)
    assert doubt_of(k, 5_000) == "Pareto k > 0.7 at 3 of 60 data, which may be far off"
    assert found.verdict.replace("data", "values") == answer.verdict
    many = found_with([0.9] * 4 + [0.3] * 56, [0.0] * 60)
    assert many.verdict.startswith("a lower bound only")
    assert doubt_of(many.pareto_k, 5_000) == "a lower bound: Pareto k > 0.7 at 4 of 60 data"


@pytest.mark.parametrize(
    ("k", "told"),
    [
        ([0.9], "a lower bound: Pareto k > 0.7"),
        ([NAN], "Pareto k is unknown"),
        ([0.9, NAN], "a lower bound: Pareto k > 0.7 at 1 of 2 data; Pareto k is unknown at 1 of 2 data"),
        ([0.2, -INF], ""),
    ],
)
def test_a_line_that_says_more_doubts_what_the_verdict_does(k, told):
    """Of a k that was unknown nothing was said, and of both kinds that k was above 0.7 "for nan% of the data"."""
    assert doubt_of(torch.tensor(k), 5_000) == told


@pytest.mark.parametrize("centre", [30, 100, 300, 1_000, 3_000, 1e5, 1e7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_guide_far_from_the_posterior_is_never_reliable_however_large_its_log_weights(dtype, centre):
    """Rounding 32 units of log w = -2e6 in float32 is 8 nats, and the tail, which spreads over hundreds, was "flat"."""
    vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2)).to(dtype)

    def far(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_full((len(x), 2), centre), 1.0).to_event(1))

    found = pv.log_marginal(vae.model, far, torch.zeros(4, 3, dtype=dtype), num_samples=1_000)
    assert (found.pareto_k.isnan() | (found.pareto_k > 1)).all()
    assert "reliable" not in found.verdict


@pytest.mark.parametrize("size", [300, 1_000])
def test_weights_so_large_that_rounding_spreads_them_over_nats_are_equal_at_the_exact_posterior(size):
    vae = linear_gaussian(0).float()
    x = size * torch.randn(20, len(vae.bias), generator=torch.Generator().manual_seed(suite_seed(3)))
    found = pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=1_000)
    assert found.value.min() < -3e5
    assert (found.pareto_k == -math.inf).all()


@pytest.mark.parametrize("deviation", [0.0, 0.3, 3.0, 10.0, 1_000.0])
def test_a_tail_that_rounding_hides_is_unknown_unless_all_weights_look_equal(deviation):
    generator = torch.Generator().manual_seed(suite_seed(0))
    log_w = deviation * torch.randn(1_000, 5, generator=generator, dtype=torch.float64)
    k, smoothed = pareto_smoothed((log_w - 4e6).float().double())  # of which a unit in the last place is 1/4
    if deviation < 1:
        assert (k == -math.inf).all()
    else:
        assert (k.isnan() if deviation == 3 else k.isnan() | (k > 0.7)).all()
    assert not smoothed.isnan().any()
