"""Statistics of importance weights against their definitions and against closed forms; other proposals."""

import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import scaled_guide
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, suite_seed
from scipy import stats

import pyrovae as pv
from pyrovae.evaluation.importance_weights import bound_sizes, bounds, jackknifed, log_mean, pareto_smoothed
from pyrovae.programs.proposals import defensive, widened


def normal_weights(num_samples, num_data, deviation=1.0, seed=0):
    generator = torch.Generator().manual_seed(suite_seed(seed))
    return deviation * torch.randn(num_samples, num_data, generator=generator, dtype=torch.float64)


def test_the_jackknife_is_its_definition():
    log_w = normal_weights(7, 3)
    expected = []
    for column in log_w.T:
        weights = column.exp()
        without = torch.stack([torch.cat((weights[:i], weights[i + 1 :])).mean().log() for i in range(7)])
        expected.append(7 * weights.mean().log() - 6 * without.mean())
    torch.testing.assert_close(jackknifed(log_w), torch.stack(expected), atol=1e-12, rtol=0)
    assert jackknifed(log_w[:1]).isnan().all()


def test_the_jackknife_keeps_its_precision_where_one_weight_outweighs_all_others():
    log_w = torch.tensor([0.0, -50.0, -51.0, -49.0], dtype=torch.float64)[:, None]
    without_first = math.log((math.exp(-50) + math.exp(-51) + math.exp(-49)) / 3)
    without_others = math.log(1 / 3)  # to 1e-21
    expected = 4 * math.log(1 / 4) - 3 * (without_first + 3 * without_others) / 4
    assert jackknifed(log_w).item() == pytest.approx(expected, abs=1e-9)


def test_the_jackknife_has_less_bias_than_the_estimate_itself():
    log_w = normal_weights(20, 40_000)  # log E[w] = 1/2
    plain, error = mean_and_error(log_w.logsumexp(0) - math.log(20))
    better, better_error = mean_and_error(jackknifed(log_w))
    assert plain < 0.5 - 5 * error
    assert abs(better - 0.5) < 0.4 * abs(plain - 0.5)
    assert better_error < 2 * error


def smoothed_by_numpy(log_w):
    """Runs the paper's algorithm with SciPy's quantiles, given the same fit."""
    from pyro.ops.stats import fit_generalized_pareto

    count = len(log_w)
    num_tail = math.ceil(min(0.2 * count, 3 * math.sqrt(count)))
    weights = np.sort(np.exp(log_w.numpy() - log_w.max().item()))
    cut = weights[-num_tail - 1]
    shape, scale = fit_generalized_pareto(torch.tensor(weights[-num_tail:] - cut))
    order = (np.arange(1, num_tail + 1) - 0.5) / num_tail
    weights[-num_tail:] = np.minimum(cut + stats.genpareto.ppf(order, shape, scale=scale), 1.0)
    return shape, math.log(weights.mean()) + log_w.max().item()


@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0])
def test_smoothed_weights_are_quantiles_of_the_fitted_pareto(deviation):
    log_w = normal_weights(400, 3, deviation)
    k, smoothed = pareto_smoothed(log_w)
    for column in range(3):
        shape, value = smoothed_by_numpy(log_w[:, column])
        assert k[column].item() == pytest.approx(shape, abs=1e-10)
        assert smoothed[column].item() == pytest.approx(value, abs=1e-10)


def test_smoothing_leaves_equal_weights_and_few_weights_as_they_are():
    equal = torch.full((100, 2), -3.0, dtype=torch.float64)
    k, smoothed = pareto_smoothed(equal)
    assert (k == -math.inf).all()
    torch.testing.assert_close(smoothed, equal[0], atol=1e-12, rtol=0)
    few = normal_weights(20, 2)
    k, smoothed = pareto_smoothed(few)
    assert k.isnan().all()
    torch.testing.assert_close(smoothed, log_mean(few)[0])
    assert pareto_smoothed(normal_weights(21, 2))[0].isfinite().all()


def test_bounds_are_means_over_disjoint_blocks():
    log_w = normal_weights(57, 4)
    assert bound_sizes(57) == [1, 5, 10, 50]
    values, errors = bounds(log_w)
    for row, size in enumerate(bound_sizes(57)):
        num_blocks = {1: 57, 5: 11, 10: 5, 50: 1}[size]  # draws left over at one size are left out of the next
        blocks = [log_w[i * size : (i + 1) * size].logsumexp(0) - math.log(size) for i in range(num_blocks)]
        torch.testing.assert_close(values[row], torch.stack(blocks).mean(0), atol=1e-12, rtol=0)
        if num_blocks > 1:
            expected = torch.stack(blocks).std(0) / math.sqrt(num_blocks)
            torch.testing.assert_close(errors[row], expected, atol=1e-12, rtol=0)
    assert errors[-1].isnan().all()


def test_blocks_have_a_smaller_variance_than_a_prefix():
    log_w = normal_weights(100, 4_000)
    values, errors = bounds(log_w)
    row = bound_sizes(100).index(10)
    prefix = log_w[:10].logsumexp(0) - math.log(10)
    ratio = (prefix.var() / values[row].var()).item()
    assert 8.5 < ratio < 11.5, f"10 blocks for one: the variance should fall tenfold, and falls {ratio:.2f}-fold"
    assert (errors[row].square().mean() / values[row].var()).item() == pytest.approx(1, abs=0.1)


def test_the_bounds_of_log_marginal_rise_to_log_px():
    vae = linear_gaussian(2)
    x = draw(vae, 150)
    result = pv.log_marginal(vae.model, scaled_guide(vae, [1.5, 1.3]), x, num_samples=1_000)
    curve = result.bounds.mean(1)
    assert result.bound_sizes == [1, 5, 10, 50, 100, 500, 1_000]
    assert (curve.diff() > 0).all()
    assert curve[-1] == pytest.approx(result.mean, abs=1e-12)
    one, error = curve[0], result.bounds_error[0].square().sum().sqrt() / 150
    alone = pv.importance_bound(vae.model, scaled_guide(vae, [1.5, 1.3]), x, num_particles=1, num_repeats=1_000)
    assert_within_standard_errors(one, alone.mean, error + alone.monte_carlo_error)


def test_every_estimate_is_within_five_standard_errors_for_10_random_models():
    for seed in range(10):
        vae = linear_gaussian(seed, data_dim=2 + seed % 5, latent_dim=1 + seed % 3, scale=0.3 + 0.1 * seed)
        x = draw(vae, 8)
        result = pv.log_marginal(vae.model, scaled_guide(vae, [1.3] * vae.latent_dim), x, num_samples=2_000)
        for name in ("log_px", "jackknife", "smoothed"):
            note = f"{name} of model {seed}"
            assert_within_standard_errors(getattr(result, name), vae.log_px(x), result.standard_error, note=note)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_that_are_equal_but_for_rounding_have_no_tail_whatever_their_dtype(dtype):
    """At the exact posterior, float32 leaves differences in the last bits: no weight is above all others."""
    vae = linear_gaussian(0).to(dtype)
    with torch.no_grad():
        x = vae.decode(vae.prior.sample((50,))).sample()
    result = pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=1_000)
    assert x.dtype == dtype
    assert (result.pareto_k == -math.inf).all()
    assert torch.equal(result.smoothed, result.value)
    one = torch.full((1_000, 1), -100.0, dtype=dtype)
    one[3] += 0.01  # far beyond rounding: one weight above all others
    assert pareto_smoothed(one.double())[0].item() == math.inf


def test_weights_of_few_values_as_codes_have_them_are_no_tail_and_no_traceback():
    # Three codes, the largest weight drawn a hundred times of 2,000: a fit to the ties would divide 0 by 0.
    log_w = torch.tensor([0.0] * 1_000 + [-1.0] * 900 + [0.5] * 100, dtype=torch.float64)[:, None]
    k, smoothed = pareto_smoothed(log_w)
    assert k.item() == -math.inf
    assert smoothed.item() == pytest.approx(log_w.logsumexp(0).item() - math.log(2_000), abs=1e-12)
    rare = torch.cat((log_w, torch.tensor([[6.0]], dtype=torch.float64)))  # one draw of a code that outweighs them
    assert pareto_smoothed(rare)[0].item() > 0
    generator = torch.Generator().manual_seed(suite_seed(0))

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    for _ in range(500):
        count, num_values = int(25 + 2_000 * uniform(1)), int(1 + 11 * uniform(1))
        values, mass = 12 * (uniform(num_values) - 0.5), uniform(num_values) ** (8 * uniform(1))
        draws = values[torch.multinomial(mass, count, replacement=True, generator=generator)][:, None]
        k, smoothed = pareto_smoothed(draws)
        assert not k.isnan().any()
        assert smoothed.isfinite().all()


def test_the_verdict_names_what_is_not_to_be_believed():
    vae = linear_gaussian(3)
    x = draw(vae, 6)
    good = pv.log_marginal(vae.model, scaled_guide(vae, [1.2, 1.2]), x, num_samples=1_000)
    assert good.verdict.startswith("reliable as far as its own draws can tell: Pareto k <= 0.67 at all 6 data; low by ")
    assert good.diagnosis.startswith(f"{good.verdict}. ")
    bad = pv.log_marginal(vae.model, scaled_guide(vae, [0.1, 0.3]), x, num_samples=1_000)
    assert bad.is_unreliable.sum() > 3
    assert f"Pareto k > 0.7 at {int(bad.is_unreliable.sum())} of 6 data, low by an unknown amount; take " in bad.verdict
    assert "annealed_log_marginal" in bad.verdict
    assert f"at the data {', '.join(map(str, bad.is_unreliable.nonzero().flatten().tolist()))}, or" in bad.diagnosis
    few = pv.log_marginal(vae.model, scaled_guide(vae, [1.2, 1.2]), x, num_samples=10)
    assert few.verdict == "10 draws are too few to tell whether it is reliable: more than 20 are needed"
    assert few.diagnosis.startswith(few.verdict)


@pytest.mark.parametrize("num_lone", [1, 3, 4])
def test_the_verdict_is_in_numbers_that_are_ones_where_a_single_draw_has_all_the_weight(num_lone):
    """One of 100 weights is not 0: without that draw the estimate is log 0, and the verdict was "low by inf nats"."""
    log_w = normal_weights(100, 4, deviation=0.1)
    log_w[1:, :num_lone] = -math.inf
    value, error, ess = log_mean(log_w)
    k, smoothed = pareto_smoothed(log_w)
    found = pv.MarginalLikelihood(value, error, ess, k, jackknifed(log_w), smoothed, *bounds(log_w), 100)
    assert (found.value.isfinite() & ~found.standard_error.isnan() & ~found.smoothed.isnan()).all()
    assert "inf" not in found.diagnosis
    assert "nan" not in found.diagnosis
    assert f" Of {num_lone:,} data one draw alone has a weight" in found.diagnosis
    assert "low by an unknown amount" in found.verdict
    assert bool(re.search(r"The jackknife sees [0-9.e-]+ nats of", found.diagnosis)) == (num_lone < 4)


# Proposals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["diagonal", "multivariate"])
def test_a_widened_guide_is_the_same_with_larger_deviations(family):
    vae = linear_gaussian(4)
    x = draw(vae, 5)
    narrow = vae.guide if family == "diagonal" else scaled_guide(vae, [0.5, 0.5])
    proposal = widened(narrow, 2.0)
    trace = pyro.poutine.trace(proposal).get_trace(x)
    own = pyro.poutine.trace(narrow).get_trace(x).nodes["z"]["fn"]
    value = trace.nodes["z"]["value"]
    if family == "diagonal":
        wide = dist.Normal(own.mean, 2 * own.stddev).to_event(1)
    else:
        wide = dist.MultivariateNormal(own.mean, scale_tril=2 * own.scale_tril)
    torch.testing.assert_close(trace.nodes["z"]["fn"].log_prob(value), wide.log_prob(value))


def test_a_guide_that_is_widened_or_mixed_already_can_be_widened():
    vae = linear_gaussian(3)
    x = draw(vae, 4)
    twice, once = widened(widened(vae.guide, 2.0), 1.5), widened(vae.guide, 3.0)
    weights = []
    for proposal in (twice, once):
        torch.manual_seed(suite_seed(1))
        weights.append(pv.log_weights(vae.model, proposal, x, num_particles=50))
    torch.testing.assert_close(*weights)
    mixed = widened(defensive(vae.model, vae.guide, 0.3), 1.3)
    result = pv.log_marginal(vae.model, mixed, x, num_samples=5_000)
    assert_within_standard_errors(result.log_px, vae.log_px(x), result.standard_error)

    def flow(x):
        base = dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.0, 2.0)]))

    with pytest.raises(pv.InputError, match=r'widened needs distributions whose mean is known, got .* at site "z"'):
        widened(flow, 2.0)(x)


@pytest.mark.parametrize("kind", ["widened", "defensive"])
def test_another_proposal_mends_a_guide_that_is_too_narrow(kind):
    vae = linear_gaussian(5)
    x = draw(vae, 40)
    narrow = scaled_guide(vae, [0.35, 0.35])
    proposal = widened(narrow, 3.5) if kind == "widened" else defensive(vae.model, narrow, 0.3)
    plain = pv.log_marginal(vae.model, narrow, x, num_samples=4_000)
    mended = pv.log_marginal(vae.model, proposal, x, num_samples=4_000)
    assert plain.share_unreliable > 0.8
    assert mended.share_unreliable <= (0 if kind == "widened" else 0.3)
    assert_within_standard_errors(mended.log_px, vae.log_px(x), mended.standard_error)
    assert (plain.log_px - vae.log_px(x)).mean() < -0.05  # low, and its error does not say so


def test_a_defensive_mixture_has_the_density_that_it_draws_from():
    vae = linear_gaussian(6, latent_dim=1)
    x = draw(vae, 1)
    proposal = defensive(vae.model, vae.guide, 0.25)
    with pyro.plate("num_particles", 20_000, dim=-2):
        site = pyro.poutine.trace(proposal).get_trace(x).nodes["z"]
    z = torch.linspace(-12, 12, 20_000, dtype=torch.float64)[:, None, None]
    density = site["fn"].log_prob(z).exp().flatten()
    assert torch.trapezoid(density, z.flatten()).item() == pytest.approx(1, abs=1e-8)
    below = torch.trapezoid(density[z.flatten() <= 0.5], z.flatten()[z.flatten() <= 0.5]).item()
    drawn = (site["value"].flatten() <= 0.5).double()
    assert_within_standard_errors(drawn.mean(), below, drawn.std() / math.sqrt(20_000))


def test_proposals_that_cannot_be_made_are_refused():
    vae = linear_gaussian(7)
    x = draw(vae, 2)

    def two_sites(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x[:, 0])

    def positive(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(pv.InputError, match=r"defensive needs a pair with one latent site, got \['a', 'b'\]"):
        defensive(two_sites, vae.guide)(x)
    with pytest.raises(pv.InputError, match=r'widened needs latents of real numbers, got .* at site "z"'):
        widened(positive, 2.0)(x)
    with pytest.raises(pv.InputError, match="factor must be a finite number > 0, got 0"):
        widened(vae.guide, 0)
    with pytest.raises(pv.InputError, match="prior_weight must be a finite number > 0 and < 1, got 1"):
        defensive(vae.model, vae.guide, 1)
