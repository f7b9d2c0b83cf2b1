"""Posterior expectations, quantiles and draws against closed forms, and their errors against their spread."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import guide_of
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, refusal, suite_seed

import pyrovae as pv
from pyrovae.evaluation import draw_runs, expectation, sampled_weights
from pyrovae.evaluation.expectation import expectation_of
from pyrovae.evaluation.importance_weights import pareto_smoothed, smoothed_log_weights
from pyrovae.evaluation.quantiles import quantiles_of

REPETITIONS, LEVELS = 200, (0.05, 0.5, 0.95)


@pytest.fixture
def vae():
    return linear_gaussian(0, pinned=True)


def assert_calibrated(found, truth, note):
    """z-scores of independent repetitions, along the data, have mean 0 and mean square 1."""
    z = ((found.value - truth) / found.standard_error).detach().movedim(-2, 0).flatten(1)
    for power, expected in ((z, 0.0), (z.square(), 1.0)):
        mean, error = mean_and_error(power)
        assert_within_standard_errors(mean, expected, error, note=note)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.6])
def test_errors_are_calibrated_for_guides_too_narrow_and_too_wide(vae, factor):
    """Each of 200 data is the same x: one call gives 200 repetitions."""
    x = draw(vae, 1).expand(REPETITIONS, -1)
    exact = vae.posterior(x[:1])
    torch.manual_seed(suite_seed(1))
    post = pv.posterior(vae.model, guide_of(vae, factor), x, num_samples=1_000)
    assert (post.ess > 0.2 * 1_000).all()
    assert_calibrated(post.mean("z"), exact.mean, "mean")
    squares = post.expectation(lambda site: site["z"].square())
    assert_calibrated(squares, exact.mean.square() + exact.variance, "square")
    marginal = dist.Normal(exact.mean, exact.variance.sqrt())
    quantiles = post.quantile("z", LEVELS)
    assert quantiles.value.shape == (3, REPETITIONS, 2)
    truth = torch.stack([marginal.icdf(torch.tensor(level)) for level in LEVELS])
    assert_calibrated(quantiles, truth, "quantile")
    torch.testing.assert_close(post.quantile("z", 0.5).value, quantiles.value[1])


def test_draws_of_the_posterior_itself_have_equal_weights(vae):
    post = pv.posterior(vae.model, vae.exact_guide, draw(vae, 5), num_samples=400)
    assert (post.pareto_k == -math.inf).all()
    kept = torch.cat([draws["z"] for *_, draws in post._runs], 1)
    mean = post.mean("z")
    torch.testing.assert_close(mean.value, kept.mean(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(mean.standard_error, kept.std(0) / 20, rtol=1e-9, atol=0)
    torch.testing.assert_close(mean.ess, torch.full_like(mean.ess, 400.0))
    assert mean.bias.abs().max() < 1e-10
    assert mean.verdict.startswith(
        "reliable as far as its own draws can tell: Pareto k <= 0.62 at all 10 values; small"
    )
    again = post.sample(400)["z"]  # every draw once
    torch.testing.assert_close(again.sort(0).values, kept.sort(0).values)
    assert not torch.equal(again, kept)
    constant = post.expectation(lambda site: torch.full_like(site["z"], 3.0))
    assert (constant.value == 3).all()
    assert constant.pareto_k.isnan().all()
    assert (constant.standard_error == 0).all()
    torch.testing.assert_close(constant.ess, torch.full_like(mean.ess, 400.0))


def test_a_guide_far_too_narrow_is_flagged(vae):
    torch.manual_seed(suite_seed(2))
    post = pv.posterior(vae.model, guide_of(vae, 0.3), draw(vae, 5), num_samples=2_000)
    assert post.verdict.startswith("not to be relied on: Pareto k > 0.7 at ")
    mean = post.mean("z")
    assert "Pareto k > 0.7" in repr(mean)
    assert mean.is_unreliable.float().mean() > 0.5
    assert (post.quantile("z", 0.5).is_unreliable == (post.pareto_k > 0.7)[:, None]).all()


def test_a_tail_of_f_is_seen_where_the_weights_have_none(vae):
    """f = exp(0.45 u^2) of a standard normal u has the tail of k = 0.9, and no variance."""
    x = draw(vae, 4)
    exact = vae.posterior(x[:1])
    torch.manual_seed(suite_seed(3))
    post = pv.posterior(vae.model, vae.exact_guide, x[:1].expand(8, -1), num_samples=5_000)
    heavy = post.expectation(lambda site: (0.45 * (site["z"] - exact.mean).square() / exact.variance).exp())
    assert (heavy.weights_pareto_k == -math.inf).all()
    assert 0.6 < heavy.pareto_k.mean() < 1.2
    assert heavy.verdict.startswith("not to be relied on")
    assert not post.mean("z").is_unreliable.any()


# Draws kept or drawn again --------------------------------------------------------------------------------------------


def test_draws_that_are_not_kept_give_the_same_answers(vae, monkeypatch):
    x = draw(vae, 150)

    def answers(kept):
        monkeypatch.setattr(draw_runs, "NUMBERS_KEPT", kept)
        torch.manual_seed(0)
        post = pv.posterior(vae, x, num_samples=100, chunk_size=2_000)
        assert (post._runs.kept is None) == (kept == 0)
        noisy = post.expectation(lambda site: site["z"] + torch.randn_like(site["z"]))
        torch.manual_seed(1)
        return post, (post.mean("z").value, noisy.value, post.quantile("z", LEVELS).value, post.sample(7)["z"])

    (_, kept), (post, drawn) = answers(2**25), answers(0)
    for one, other in zip(kept, drawn, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        vae.guide_bias.add_(0.01)
    with pytest.raises(pv.InputError, match="the pair or the data have changed since it drew them"):
        post.mean("z")


def test_an_f_is_given_the_rows_of_its_draws(vae, monkeypatch):
    """Over two runs of data and many blocks; the same as closing over them, which only one datum allows."""
    monkeypatch.setattr(expectation, "VALUES_AT_A_TIME", 1_000)
    x = draw(vae, 150)
    post = pv.posterior(vae, x, num_samples=30)
    given = post.expectation(lambda site, x, bias: site["z"][..., 0] * x.sum(-1) + bias, x, x[:, 0])
    torch.testing.assert_close(given.value, post.mean("z").value[:, 0] * x.sum(1) + x[:, 0])
    with pytest.raises(pv.InputError, match="of each draw of each datum alone, got"):
        post.expectation(lambda site: site["z"][..., 0] * x.sum(1))


def test_an_f_that_writes_into_its_draws_changes_none(vae):
    post = pv.posterior(vae, draw(vae, 3), num_samples=50)
    before = post.mean("z").value
    post.expectation(lambda site: site["z"].zero_())
    assert torch.equal(post.mean("z").value, before)


def test_log_p_x_is_that_of_log_marginal(vae):
    x, found = draw(vae, 3), []
    for function in (lambda *args: pv.posterior(*args).log_marginal, pv.log_marginal):
        torch.manual_seed(0)
        found.append(function(vae, x))
    assert torch.equal(found[0].log_px, found[1].log_px)
    assert torch.equal(found[0].pareto_k, found[1].pareto_k)


def test_replayed_draws_are_the_same(vae, monkeypatch):
    monkeypatch.setattr(sampled_weights, "Replay", partial(sampled_weights.Replay, inductor=False))  # its compiler
    found = []
    for compile in (False, True):
        torch.manual_seed(suite_seed(11))
        post = pv.posterior(vae, draw(vae, 4), num_samples=100, chunk_size=40, compile=compile)
        (sampler, *_) = post._runs._draw.args
        assert (sampler._runs.replay is not None) == compile
        found.append(post.mean("z").value)
    torch.testing.assert_close(*found)


def test_resampled_draws_are_those_of_the_posterior(vae):
    """From a guide too wide: n W_s rounded down or up, sites and elements of one draw together."""
    torch.manual_seed(suite_seed(9))
    x = draw(vae, 3)
    post = pv.posterior(vae.model, guide_of(vae, 1.5), x, num_samples=2_000)
    (_, _, log_w, draws), num = next(iter(post._runs)), 1_000
    found = post.sample(num)["z"]
    wanted = num * log_w.softmax(0)
    for datum in range(3):
        matches = (found[:, datum, None] == draws["z"][None, :, datum]).all(-1)
        assert (matches.sum(1) == 1).all()
        assert ((matches.sum(0) - wanted[:, datum]).abs() < 1 + 1e-6).all()
    assert not torch.equal(found, post.sample(num)["z"])


# The sums -------------------------------------------------------------------------------------------------------------


def normal_draws(num_draws, num_data, seed=0):
    """Draws of N(0, 1.5) and their weights for N(0.7, 1), in float64."""
    generator = torch.Generator().manual_seed(suite_seed(seed))
    z = 1.5 * torch.randn(num_draws, num_data, generator=generator, dtype=torch.float64)
    return dist.Normal(0.7, 1.0).log_prob(z) - dist.Normal(0.0, 1.5).log_prob(z), {"z": z}


def test_sums_in_blocks_are_the_formulas(monkeypatch):
    log_w, draws = normal_draws(500, 7)
    f = torch.stack([draws["z"], draws["z"].exp(), 1e8 + draws["z"]], -1)
    w = log_w.softmax(0)[..., None]
    value = (w * f).sum(0)
    off = (w.square() * (f - value) ** 2).sum(0)
    expected = value, (off * 500 / 499).sqrt(), (w * (f - value) ** 2).sum(0) / off, None, -(w**2 * (f - value)).sum(0)
    k = [
        torch.maximum(
            *(pareto_smoothed(log_w + (sign * (f - value)[..., i]).clamp(min=0).log())[0] for sign in (1, -1))
        )
        for i in range(3)
    ]
    for most in (2**22, 100):
        monkeypatch.setattr(expectation, "VALUES_AT_A_TIME", most)
        found = expectation_of(
            lambda site: torch.stack([site["z"], site["z"].exp(), 1e8 + site["z"]], -1), log_w, draws
        )
        torch.testing.assert_close(found[3][:, :2], torch.stack(k[:2], -1))
        torch.testing.assert_close(found[3][:, 2], k[2], rtol=1e-4, atol=1e-6)  # 1e8 + z is z to 1e-8
        for ours, theirs in zip(found, expected, strict=True):
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)
        q = quantiles_of(torch.tensor([0.5]).double(), log_w, draws["z"])[0][0]
        order = draws["z"].sort(0)
        below = log_w.softmax(0).gather(0, order.indices).cumsum(0)
        assert torch.equal(q, order.values.gather(0, (below >= 0.5).int().argmax(0)[None])[0])


def test_the_bias_of_few_draws_is_the_one_that_is_told():
    log_w, draws = normal_draws(20, 40_000)
    value, _, _, _, bias = expectation_of(lambda site: site["z"], log_w, draws)
    plain, error = mean_and_error(value - 0.7)
    assert plain < -5 * error  # the estimate is biased, towards the guide
    told, _ = mean_and_error(bias)
    assert abs(told / plain - 1) < 0.3  # to first order in 1/20
    smaller, _ = mean_and_error(value - bias - 0.7)
    assert smaller.abs() < plain.abs() / 3


def test_an_event_that_no_draw_saw_is_not_called_certain():
    log_w, draws = normal_draws(500, 2)
    value, _, _, k, _ = expectation_of(lambda site: site["z"] > 50, log_w, draws)
    assert (value == 0).all()
    assert k.isnan().all()
    rare = draws["z"].topk(3, dim=0).values[-1]  # three draws reach so far, of which nothing can be told
    vae = linear_gaussian(0)
    post = pv.posterior(vae.model, vae.exact_guide, torch.zeros(2, 5).double(), num_samples=100)
    never = post.expectation(lambda site: site["z"] > 1e6)
    assert never.verdict.startswith("it cannot be judged: f is the same at every draw")
    _, _, _, k, _ = expectation_of(lambda site, rare: site["z"] >= rare, log_w, draws, [rare])
    assert (k == math.inf).all()


def test_too_few_draws_say_so(vae):
    post = pv.posterior(vae, draw(vae, 2), num_samples=20)
    assert post.mean("z").verdict == "20 draws are too few to tell whether it is reliable: more than 20 are needed"
    assert post.quantile("z", 0.01).standard_error.isnan().all()
    one = pv.posterior(vae, draw(vae, 2), num_samples=1)
    assert one.mean("z").standard_error.isnan().all()
    assert one.mean("z").bias.isnan().all()
    assert "standard errors unknown" in repr(one.mean("z"))
    assert one.mean("z").verdict.startswith("1 draw is too few to tell")
    assert repr(one).startswith("1 weighted draw of z for each of 2 data\n")
    assert "\n1 sample, median ESS 1" in repr(one.log_marginal)


def test_an_answer_prints_its_values_and_a_wrong_name_the_names_that_there_are():
    """It printed a shape; `mean` named the latents, and `expectation` raised KeyError."""
    vae = linear_gaussian(1)
    post = pv.posterior(vae.model, vae.exact_guide, draw(vae, 2), num_samples=200)
    mean = post.mean("z")
    value, error = mean.value.flatten().tolist(), mean.standard_error.flatten().tolist()
    assert repr(mean).splitlines()[1].startswith(f"{value[0]:.4g} ± {error[0]:.2g}, {value[1]:.4g} ± ")
    assert refusal(lambda: post.mean("b")) == "name must be z; got 'b'"
    assert refusal(lambda: post.expectation(lambda site: site["b"])) == "the name of a latent must be z; got 'b'"


def test_where_one_weight_outweighs_the_others_no_answer_has_more_draws_than_the_weights():
    """A spread of f over its variance, 1 / 2e(1 - e) of two weights 1 - e and e, said 1,491 of 1,000 draws."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1e-2), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    torch.manual_seed(suite_seed(8))
    post = pv.posterior(model, guide, torch.full((40,), 2.5, dtype=torch.float64), num_samples=1_000)
    mean, quantile = post.mean("z"), post.quantile("z", 0.5)
    *_, log_w, draws = post._runs.kept[0]
    assert expectation_of(lambda site: site["z"], log_w, draws)[2].max() > 50
    assert (1 / log_w.softmax(0).square().sum(0)).median() < 2
    for found in (mean, quantile):
        bad = ~(found.pareto_k <= 0.7)
        assert bad.double().mean() > 0.8
        assert (found.ess <= post.ess)[bad].all()


# Smoothed weights -----------------------------------------------------------------------------------------------------


def test_smoothed_weights_have_the_mean_of_log_p_x_and_answers_that_vary_less(vae):
    """Of a guide too narrow, at 200 repetitions of one datum; a flat tail stays what it is."""
    log_w, _ = normal_draws(500, 6, seed=7)
    heavy = 3 * log_w
    for weights in (log_w, heavy):
        _, expected = pareto_smoothed(weights)
        torch.testing.assert_close(smoothed_log_weights(weights).logsumexp(0) - math.log(500), expected)
    assert torch.equal(smoothed_log_weights(log_w[:20]), log_w[:20])  # too few to fit
    x = draw(vae, 1).expand(REPETITIONS, -1)
    exact, found, log_px = vae.posterior(x[:1]).mean, {}, []
    for smoothed in (False, True):
        torch.manual_seed(suite_seed(8))
        post = pv.posterior(vae.model, guide_of(vae, 0.6), x, num_samples=500, smoothed=smoothed)
        found[smoothed] = post.expectation(lambda site: site["z"].square())
        log_px.append(post.log_marginal.log_px)
    truth = exact.square() + vae.posterior(x[:1]).variance
    off = {smoothed: (one.value - truth).square().mean() for smoothed, one in found.items()}
    assert off[True] < off[False]
    assert torch.equal(*log_px)
    assert torch.equal(found[True].weights_pareto_k, found[False].weights_pareto_k)
    same = pv.posterior(vae.model, vae.exact_guide, x[:2], num_samples=400, smoothed=True)
    kept = torch.cat([draws["z"] for *_, draws in same._runs], 1)
    torch.testing.assert_close(same.mean("z").value, kept.mean(0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kept", [2**25, 0])
def test_pareto_k_is_of_the_weights_as_they_are_where_answers_are_smoothed(vae, monkeypatch, kept):
    """It is the same whether or not the answer is smoothed."""
    monkeypatch.setattr(draw_runs, "NUMBERS_KEPT", kept)
    x, found = draw(vae, 20), []
    for smoothed in (False, True):
        torch.manual_seed(suite_seed(9))
        post = pv.posterior(vae.model, guide_of(vae, 0.5), x, num_samples=300, smoothed=smoothed)
        found.append(post.mean("z"))
    torch.testing.assert_close(found[0].pareto_k, found[1].pareto_k, rtol=0, atol=1e-9)
    assert (found[0].value - found[1].value).abs().max() > 1e-3


def test_smoothed_answers_do_not_depend_on_what_is_kept(vae, monkeypatch):
    x, found = draw(vae, 5), []
    for kept in (2**25, 0):
        monkeypatch.setattr(draw_runs, "NUMBERS_KEPT", kept)
        torch.manual_seed(0)
        found.append(pv.posterior(vae.model, guide_of(vae, 0.7), x, num_samples=200, smoothed=True).mean("z").value)
    assert torch.equal(*found)
