"""log p(x) by importance sampling and the bounds: exact values, errors, Pareto k, beta, scales, refusals."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import scaled_guide
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, suite_seed
from pyro import poutine
from scipy import stats

import pyrovae as pv


def test_under_the_exact_posterior_every_log_weight_is_log_px():
    vae = linear_gaussian(0)
    x = draw(vae, 8)
    log_w = pv.log_weights(vae.model, vae.exact_guide, x, num_particles=50)
    torch.testing.assert_close(log_w, vae.log_px(x).expand(50, 8), atol=1e-10, rtol=0)
    result = pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=100)
    torch.testing.assert_close(result.log_px, vae.log_px(x).detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(result.ess, torch.full_like(result.ess, 100.0), atol=1e-6, rtol=0)
    assert result.standard_error.max() < 1e-7
    assert result.share_unreliable == 0


def test_a_wider_guide_is_within_five_standard_errors_for_20_random_models():
    scores = []
    for seed in range(20):
        vae = linear_gaussian(seed, data_dim=2 + seed % 5, latent_dim=1 + seed % 3, scale=0.3 + 0.05 * seed)
        x = draw(vae, 10)
        result = pv.log_marginal(vae.model, scaled_guide(vae, [1.4] * vae.latent_dim), x, num_samples=2_000)
        assert_within_standard_errors(result.log_px, vae.log_px(x), result.standard_error, note=f"model {seed}")
        scores.append((result.log_px - vae.log_px(x).detach()) / result.standard_error)
    # Errors that are too wide would always pass the line above: the z-scores must also be large enough.
    variance = torch.cat(scores).var().item()
    assert stats.chi2.ppf(1e-6, 199) < 199 * variance < stats.chi2.ppf(1 - 1e-6, 199), (
        f"variance of z-scores {variance}"
    )


def test_the_standard_error_is_calibrated_over_200_repetitions():
    vae = linear_gaussian(1)
    x = draw(vae, 1)
    guide = scaled_guide(vae, [1.5, 0.8])
    repeated = pv.log_marginal(vae.model, guide, x.expand(200, -1), num_samples=1_000)
    assert repeated.ess.min() / 1_000 > 0.2
    scores = (repeated.log_px - vae.log_px(x).detach()) / repeated.standard_error
    # A sum of 200 squared standard normals, if the standard error is right.
    total = scores.square().sum().item()
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], 200)
    assert low < total < high, (
        f"variance of the z-scores {total / 200:.3f}, expected 1 within {low / 200:.2f} to {high / 200:.2f}"
    )


@pytest.mark.parametrize("factor", [0.3, 0.7, 0.85])
def test_pareto_k_of_a_guide_that_is_too_narrow_in_one_dimension_is_one_minus_its_ratio_squared(factor):
    # w ~ exp(-z^2 (1 - r^2) / 2 r^2...) under q has a tail of index k = 1 - r^2; the fit is averaged over 12 data.
    vae = linear_gaussian(2, data_dim=2)  # the weights depend on the posterior and the guide alone
    x = draw(vae, 1).expand(12, -1)
    result = pv.log_marginal(vae.model, scaled_guide(vae, [factor, 1.0]), x, num_samples=50_000)
    k, error = mean_and_error(result.pareto_k)
    # The tail is Pareto only up to a slowly varying factor sqrt(log w), which a finite sample sees as a bias.
    assert abs(k.item() - (1 - factor**2)) < 0.06 + 5 * error.item(), (
        f"k {k:.3f} +- {error:.3f}, not {1 - factor**2:.3f}"
    )
    assert result.share_unreliable == pytest.approx(1.0 if factor == 0.3 else 0.0, abs=0.2)


def test_pareto_k_of_a_guide_that_is_too_wide_is_negative():
    vae = linear_gaussian(2)
    x = draw(vae, 1).expand(32, -1)
    result = pv.log_marginal(vae.model, scaled_guide(vae, [1.5, 1.5]), x, num_samples=10_000)
    assert result.pareto_k.max() < 0.2


def test_pareto_k_where_one_weight_outweighs_all_others_is_infinite_and_where_samples_are_few_is_unknown():
    vae = linear_gaussian(3, data_dim=30, scale=0.01)

    def prior_guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))

    result = pv.log_marginal(vae.model, prior_guide, draw(vae, 4), num_samples=100)
    assert result.pareto_k.tolist() == [math.inf] * 4
    assert result.share_unreliable == 1
    few = pv.log_marginal(vae.model, vae.guide, draw(vae, 4), num_samples=10)
    assert few.pareto_k.isnan().all()


def test_the_bound_rises_with_the_number_of_particles_and_stays_below_log_px():
    vae = linear_gaussian(5)
    x = draw(vae, 20)
    guide = scaled_guide(vae, [1.6, 0.6])
    truth = vae.log_px(x).mean().item()
    bounds = [pv.importance_bound(vae.model, guide, x, num_particles=k, num_repeats=400) for k in (1, 2, 8, 32)]
    for lower, higher in itertools.pairwise(bounds):
        step = math.hypot(lower.monte_carlo_error, higher.monte_carlo_error)
        assert higher.mean > lower.mean + 5 * step
    assert bounds[-1].mean < truth + 5 * bounds[-1].monte_carlo_error
    assert bounds[0].mean < truth - 0.1


def test_the_bound_at_one_particle_is_the_exact_elbo():
    vae = linear_gaussian(6)
    x = draw(vae, 20)
    result = pv.importance_bound(vae.model, vae.guide, x, num_particles=1, num_repeats=5_000)
    assert_within_standard_errors(result.value, vae.elbo(x), result.standard_error)


def test_the_aggregate_errors_are_those_of_the_mean():
    value, error = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.3, 0.0, 0.4])
    estimate = pv.Estimate(value, error)
    assert estimate.mean == pytest.approx(3.0)
    assert estimate.monte_carlo_error == pytest.approx(0.5 / 3)
    assert estimate.data_error == pytest.approx(math.sqrt(7) / math.sqrt(3))


# beta, subsampled plates and scales (traps 1 and 2) ------------------------------------------------------------------


def test_log_marginal_is_at_beta_one_whatever_training_used():
    data = pv.load("ring", num_train=20)
    vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5), beta=4.0)
    torch.manual_seed(suite_seed(1))
    at_four = pv.log_marginal(vae.model, vae.guide, data.train_x, num_samples=50)
    vae.set_beta(1.0)
    torch.manual_seed(suite_seed(1))
    at_one = pv.log_marginal(vae.model, vae.guide, data.train_x, num_samples=50)
    torch.testing.assert_close(at_four.log_px, at_one.log_px, atol=0, rtol=0)


def test_a_common_scale_does_not_enter_the_log_weights():
    """Trap 2: inside the logsumexp, the N / B of a subsampled plate gives a number that is no bound on log p(x)."""
    vae = linear_gaussian(9)
    x = draw(vae, 5)
    truth = vae.log_px(x).detach()
    for scale in (10.0, 1 / 128):
        model, guide = poutine.scale(vae.model, scale), poutine.scale(vae.exact_guide, scale)
        log_w = pv.log_weights(model, guide, x, num_particles=3)
        torch.testing.assert_close(log_w, truth.expand(3, 5), atol=1e-10, rtol=0)


def test_a_subsampled_plate_gives_the_weights_of_the_data_in_it():
    vae = linear_gaussian(9)
    x = draw(vae, 5)

    def model(x):
        with pyro.plate("data", 1_000, subsample=x, dim=-1):
            pyro.sample("x", vae.decode(pyro.sample("z", vae.prior)), obs=x)

    def guide(x):
        with pyro.plate("data", 1_000, subsample=x, dim=-1):
            pyro.sample("z", vae.posterior(x))

    result = pv.log_marginal(model, guide, x, num_samples=20)
    torch.testing.assert_close(result.log_px, vae.log_px(x).detach(), atol=1e-10, rtol=0)


def test_a_plate_that_draws_its_own_subsample_is_refused():
    vae = linear_gaussian(9)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=2, dim=-1) as index:
            pyro.sample("x", vae.decode(pyro.sample("z", vae.prior)), obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2, dim=-1) as index:
            pyro.sample("z", vae.posterior(x[index]))

    with pytest.raises(pv.InputError, match="holds a subsample of 2 of the 5, drawn anew each time"):
        pv.log_marginal(model, guide, draw(vae, 5), num_samples=20)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_grey_pixels_have_no_log_px():
    vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli(allow_grey=True))
    grey = torch.rand(6, 4)
    with pytest.raises(pv.InputError, match="cross-entropy"):
        pv.log_marginal(vae.model, vae.guide, grey, num_samples=10)
    assert pv.log_marginal(vae.model, vae.guide, grey.round(), num_samples=10).log_px.isfinite().all()


def test_too_few_samples_for_k_leave_the_share_of_unreliable_data_unknown():
    vae = linear_gaussian(0)
    assert math.isnan(pv.log_marginal(vae.model, vae.guide, draw(vae, 4), num_samples=10).share_unreliable)
