"""Estimates by annealed chains: errors, bounds from both sides, chunks, compiled runs, randomness, beta."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import (
    FEW,
    X5,
    annealer,
    guide_of,
    mean_truth_and_error,
    number,
    one_site,
    two_site_guide,
    two_site_model,
)
from helpers import assert_within_standard_errors, draw, linear_gaussian, suite_seed
from pyro import poutine

import pyrovae as pv
from pyrovae.compilation.replay import Replay
from pyrovae.evaluation import annealed_chains as annealed, hmc
from pyrovae.evaluation.annealed_importance_sampling import annealed_log_marginal, bidirectional_gap
from pyrovae.evaluation.hmc import STARTS, AnnealedHMC


@pytest.fixture
def brief_pilots(monkeypatch):
    """For what is so whatever the step sizes."""
    monkeypatch.setattr(annealed, "PILOT_TRANSITIONS", 4)
    monkeypatch.setattr(annealed, "PILOT_WARMUP", 2)


@pytest.mark.parametrize("start", STARTS)
def test_the_estimate_is_exact_within_errors_and_the_pilot_accepts_65_percent(start, full_pilots):
    vae = linear_gaussian(5, data_dim=8, latent_dim=4, scale=1.0)
    x = draw(vae, 8)
    settings = {"num_distributions": 20, "num_chains": 128, "num_leapfrog": 2, "start": start}
    result = annealed_log_marginal(vae.model, guide_of(vae, 1.5), x, **settings)
    assert_within_standard_errors(result.log_px, vae.log_px(x), result.standard_error)
    assert result.ess.min() > 5
    torch.testing.assert_close(result.acceptance, torch.full_like(result.acceptance, 0.65), atol=0.06, rtol=0)
    assert result.log_weights.shape == (128, 8)
    assert result.step_size.shape == (20, 8)
    assert not any(t.requires_grad for t in (result.log_px, result.step_size, result.log_weights))
    if start == "prior":  # the posterior is narrower, and steps must have become shorter
        assert (result.step_size[-1] < 0.7 * result.step_size[0]).all()


def test_bounds_enclose_log_px_and_close_upon_it_with_more_distributions():
    vae = linear_gaussian(6, data_dim=6, latent_dim=3, scale=0.5)
    x, gaps = torch.zeros(200, 6, dtype=torch.float64), []
    for num_distributions in (2, 8, 30):
        result = bidirectional_gap(
            vae.model, vae.guide, x, num_distributions=num_distributions, num_chains=4, num_leapfrog=3
        )
        (drawn,) = result.args
        truth = vae.log_px(drawn).detach()
        below, above = (pv.Estimate(b.value - truth, b.standard_error) for b in (result.lower, result.upper))
        assert below.mean < 5 * below.data_error
        assert above.mean > -5 * above.data_error
        if num_distributions == 2:
            assert below.mean < -5 * below.data_error
            assert above.mean > 5 * above.data_error
        torch.testing.assert_close(result.gap.value, above.value - below.value)
        gaps.append(result.gap)
    for wider, narrower in itertools.pairwise(gaps):
        assert narrower.mean < wider.mean - 5 * math.hypot(wider.data_error, narrower.data_error)
    assert gaps[-1].mean < 0.2 * gaps[0].mean
    assert_within_standard_errors(  # the data are draws of p(x)
        *mean_truth_and_error(drawn, vae.weight @ vae.prior_mean + vae.bias)
    )


def test_upper_bounds_hold_from_the_guide_too():
    vae = linear_gaussian(6, data_dim=6, latent_dim=3, scale=0.5)
    x = torch.zeros(100, 6, dtype=torch.float64)
    result = bidirectional_gap(vae.model, guide_of(vae, 1.5), x, start="guide", num_distributions=30, num_leapfrog=3)
    truth = vae.log_px(result.args[0]).detach()
    assert abs((result.lower.value - truth).mean()) < 0.02
    assert abs((result.upper.value - truth).mean()) < 0.05
    assert result.gap.monte_carlo_error == pytest.approx(
        math.hypot(result.lower.monte_carlo_error, result.upper.monte_carlo_error)
    )


# Chunks, compiled runs, randomness -----------------------------------------------------------------------------------


def test_chunks_of_data_that_do_not_divide_their_number_are_put_together_in_order(monkeypatch):
    monkeypatch.setattr(annealed, "PILOT_TRANSITIONS", 10)
    vae = linear_gaussian(8)
    x = draw(vae, 5) + 3 * torch.arange(5, dtype=torch.float64).unsqueeze(-1)
    settings = {"num_distributions": 3, "num_chains": 400, "num_leapfrog": 2, "start": "guide"}
    result = annealed_log_marginal(vae.model, guide_of(vae, 1.5), x, chunk_size=800, **settings)
    assert_within_standard_errors(result.log_px, vae.log_px(x), result.standard_error)
    assert result.standard_error.max() < 0.1
    for name, shape in (("ess", (5,)), ("acceptance", (5,)), ("step_size", (3, 5)), ("log_weights", (400, 5))):
        assert getattr(result, name).shape == shape
    fewer_than_chains = annealed_log_marginal(vae.model, vae.exact_guide, x[:2], chunk_size=3, start="guide", **FEW)
    torch.testing.assert_close(fewer_than_chains.log_px, vae.log_px(x[:2]).detach(), atol=1e-8, rtol=0)


@pytest.mark.usefixtures("brief_pilots")
@pytest.mark.parametrize(("kind", "start", "num_data"), [("VAE", "prior", 3), ("two sites", "guide", 2)])
def test_replayed_chains_are_the_eager_ones(kind, start, num_data, monkeypatch):
    replays = []

    class Counted(Replay):
        def __init__(self, *args):
            super().__init__(*args, inductor=False)
            replays.append(self)

    monkeypatch.setattr(hmc, "Replay", Counted)
    vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli())
    pairs = {
        "VAE": (vae.model, vae.guide, torch.ones(num_data, 4)),
        "two sites": (two_site_model, two_site_guide, X5[:num_data]),
    }
    model, guide, x = pairs[kind]
    results, states, fewer = [], [], {**FEW, "num_distributions": 2}
    for compile in (False, True):
        torch.manual_seed(suite_seed(4))
        results.append(annealed_log_marginal(model, guide, x, chunk_size=16, start=start, compile=compile, **fewer))
        states.append(torch.get_rng_state())
    eager, replayed = results
    # Two data at a time and then one, if there are three, each with the chains of the pilot and of the run.
    assert len(replays) == 2 * (num_data - 1)
    assert all(replay.graph is not None and replay._uses > 0 for replay in replays)
    torch.testing.assert_close(replayed.log_weights, eager.log_weights)
    torch.testing.assert_close(replayed.step_size, eager.step_size)
    assert torch.equal(*states)


@pytest.mark.usefixtures("brief_pilots")
def test_a_program_that_cannot_be_replayed_runs_eagerly_and_says_why():
    vae = linear_gaussian(9)

    def model(x):
        assert x.sum().item() != 1
        vae.model(x)

    with pytest.warns(
        UserWarning, match="chains run eagerly, because the program cannot be replayed: it looks at the value"
    ):
        result = annealed_log_marginal(model, vae.exact_guide, draw(vae, 3), start="guide", compile=True, **FEW)
    assert result.ess.min() > 7.99


@pytest.mark.usefixtures("brief_pilots")
def test_a_seed_fixes_the_result_and_only_draws_advance_the_generator():
    vae = linear_gaussian(10)
    x = draw(vae, 3)
    results = []
    for _ in range(2):
        torch.manual_seed(suite_seed(5))
        results.append(annealed_log_marginal(vae.model, vae.guide, x, **FEW).log_weights)
    assert torch.equal(*results)
    assert not torch.equal(results[0], annealed_log_marginal(vae.model, vae.guide, x, **FEW).log_weights)
    state = torch.get_rng_state()
    annealer(vae.model, vae.guide).hmc.check([x])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.usefixtures("brief_pilots")
def test_no_step_keeps_an_autograd_graph_for_the_next(monkeypatch):
    vae, states = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli()), []
    transition = AnnealedHMC.transition
    monkeypatch.setattr(
        AnnealedHMC, "transition", lambda self, *args: states.append(args[0]) or transition(self, *args)
    )
    annealed_log_marginal(vae.model, vae.guide, torch.ones(3, 4), start="guide", **FEW)
    assert len(states) > FEW["num_distributions"]
    assert not any(tensor.requires_grad for state in states for tensor in vars(state).values())


@pytest.mark.usefixtures("brief_pilots")
@pytest.mark.parametrize("start", STARTS)
def test_estimates_are_at_beta_one_whatever_training_used(start):
    vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli(), beta=4.0)
    values = []
    for beta in (4.0, 1.0):
        vae.set_beta(beta)
        torch.manual_seed(suite_seed(1))
        values.append(annealed_log_marginal(vae.model, vae.guide, torch.ones(3, 4), start=start, **FEW).log_px)
    assert torch.equal(*values)


@pytest.mark.usefixtures("brief_pilots")
def test_a_common_scale_does_not_enter():
    vae = linear_gaussian(9)
    x = draw(vae, 3)
    model, guide = poutine.scale(vae.model, 10.0), poutine.scale(vae.exact_guide, 10.0)
    result = annealed_log_marginal(model, guide, x, start="guide", **FEW)
    torch.testing.assert_close(result.log_px, vae.log_px(x).detach(), atol=1e-9, rtol=0)


@pytest.mark.usefixtures("brief_pilots")
def test_a_likelihood_that_looks_at_no_latent_has_no_gradient_and_is_log_px():
    model, guide = one_site(dist.Normal(number(0.0), 1.0), dist.Normal(number(1.0), 1.0), lambda z: number(0.5), 1.0)
    x = number([0.3, 1.0])
    result = annealed_log_marginal(model, guide, x, **FEW)
    torch.testing.assert_close(result.log_px, dist.Normal(number(0.5), 1.0).log_prob(x), atol=1e-12, rtol=0)
