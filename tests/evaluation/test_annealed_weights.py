"""The log-weights of annealed chains, one by one and in their means, against chains by hand and exact p(x)."""

import itertools
import math

import pytest
import torch
from evaluation_pairs import FEW, annealer, guide_of, mean_truth_and_error, silent
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, suite_seed

from pyrovae.evaluation.annealed_chains import TEMPERATURE_SCHEDULES, temperatures
from pyrovae.evaluation.annealed_importance_sampling import annealed_log_marginal
from pyrovae.evaluation.hmc import STARTS


def by_hand(vae, x, t, steps, num_chains, num_leapfrog):
    """Runs AIS from the prior with a gradient by hand, and draws the same random numbers in the same order."""
    mean, w, variance = vae.prior_mean, vae.weight, vae.scale**2
    shape = (num_chains, len(x))

    def log_likelihood(z):
        return vae.decode(z).log_prob(x)

    def log_density(z, t):
        return -0.5 * (z - mean).square().sum(-1) + t * log_likelihood(z)

    def gradient(z, t):
        return mean - z + t * (x - z @ w.T - vae.bias) @ w / variance

    z = vae.prior.sample(shape)
    log_w, acceptance = 0.0, []
    for k in range(1, len(t)):
        log_w = log_w + (t[k] - t[k - 1]) * log_likelihood(z)
        size = (steps[k - 1] * (0.8 + 0.4 * torch.rand(shape, dtype=z.dtype))).unsqueeze(-1)
        first = torch.randn_like(z)
        new, momentum = z, first
        for _ in range(num_leapfrog):
            momentum = momentum + 0.5 * size * gradient(new, t[k])
            new = new + size * momentum
            momentum = momentum + 0.5 * size * gradient(new, t[k])
        change = log_density(new, t[k]) - log_density(z, t[k]) - 0.5 * (momentum**2 - first**2).sum(-1)
        acceptance.append(change.exp().clamp(max=1))
        z = torch.where((torch.rand(shape, dtype=z.dtype) < acceptance[-1]).unsqueeze(-1), new, z)
    return log_w, torch.stack(acceptance).mean((0, 1))


@pytest.mark.parametrize("schedule", [*TEMPERATURE_SCHEDULES, "uneven"])
def test_weights_on_the_same_noise_are_those_of_a_chain_written_by_hand(schedule):
    vae = linear_gaussian(1, data_dim=4, latent_dim=3)
    x = draw(vae, 5)
    steps = torch.rand(6, 5, dtype=torch.float64) + 0.1
    torch.manual_seed(suite_seed(3))
    with torch.no_grad():
        chains = annealer(vae.model, vae.guide, 6, 7, "prior", schedule, 3)
        result = chains.forward([x], steps, silent())
        torch.manual_seed(suite_seed(3))
        log_w, acceptance = by_hand(vae, x, chains.t, steps, 7, 3)
    torch.testing.assert_close(result.log_weights, log_w, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.acceptance, acceptance, atol=1e-9, rtol=0)
    torch.testing.assert_close(result.value, log_w.logsumexp(0) - math.log(7), atol=1e-9, rtol=0)
    w = (log_w - log_w.amax(0)).exp()
    torch.testing.assert_close(result.standard_error, w.std(0) / w.mean(0) / math.sqrt(7), atol=1e-9, rtol=0)
    torch.testing.assert_close(result.ess, w.sum(0) ** 2 / w.square().sum(0), atol=1e-9, rtol=0)
    assert result.step_size is steps


def test_the_schedules_go_from_0_to_1_and_the_sigmoid_is_that_of_the_paper():
    assert temperatures(4, "linear") == [0, 0.25, 0.5, 0.75, 1]
    t = temperatures(10, "sigmoid")
    s = [1 / (1 + math.exp(-4 * (2 * k / 10 - 1))) for k in range(11)]
    assert t == pytest.approx([(a - s[0]) / (s[-1] - s[0]) for a in s])
    assert (t[0], t[-1]) == (0, 1)
    assert all(a < b for a, b in itertools.pairwise(t))


def assert_unbiased(ratios):
    """Asserts E[w / p(x)] = 1 for `ratios` `(draws, cases)`, in standard errors: for each case and for their mean."""
    mean, error = mean_and_error(ratios)
    assert_within_standard_errors(mean, torch.ones(()), error)
    assert_within_standard_errors(mean.mean(), 1.0, error.square().sum().sqrt() / len(mean), note="all cases together")


def random_models(scale):
    for seed in range(8):
        vae = linear_gaussian(seed, data_dim=2, latent_dim=1 + seed % 2, scale=scale + 0.12 * seed)
        yield vae, draw(vae, 6)


@pytest.mark.parametrize(("start", "schedule"), list(zip(STARTS, TEMPERATURE_SCHEDULES, strict=True)))
def test_weights_have_mean_px_for_8_random_models_whatever_the_step_sizes(start, schedule):
    ratios = []
    for vae, x in random_models(scale=1.2):
        steps = 10 ** (1.5 * torch.rand(3, 6, dtype=torch.float64) - 1.2)  # 0.06 to 2
        with torch.no_grad():
            chains = annealer(vae.model, guide_of(vae, 1.5), 3, 2_000, start, schedule)
            ratios.append((chains.forward([x], steps, silent()).log_weights - vae.log_px(x)).exp())
    assert_unbiased(torch.cat(ratios, -1))


@pytest.mark.parametrize(("start", "schedule"), list(zip(STARTS, ["uneven", "sigmoid"], strict=True)))
def test_reverse_weights_have_mean_one_over_px_for_8_random_models_whatever_the_step_sizes(start, schedule):
    # Their variance is infinite if the guide is wider than the posterior, or the posterior far narrower than the prior.
    ratios = []
    for vae, x in random_models(scale=4.0):
        steps = 10 ** (1.5 * torch.rand(3, 3, dtype=torch.float64) - 1.2)
        x, steps = x[:3].repeat(2_000, 1), steps.repeat(1, 2_000)  # one exact draw for each chain
        with torch.no_grad():
            chains = annealer(vae.model, guide_of(vae, 0.7), 3, 1, start, schedule)
            chains.hmc.first([x], 1)  # where the layout of the latents is learnt
            result = chains.reverse([x], vae.posterior(x).sample(), steps, silent())
            ratios.append((vae.log_px(x) - result.log_weights[0]).exp().view(2_000, 3))
    assert_unbiased(torch.cat(ratios, -1))


def test_hmc_leaves_the_posterior_invariant():
    vae = linear_gaussian(2, latent_dim=2)
    x = draw(vae, 3)
    posterior = vae.posterior(x)
    chains = annealer(vae.model, vae.guide, num_leapfrog=3)
    # Long enough that a third of the proposals is refused and that chains move; leapfrog is unstable beyond twice this.
    narrowest = torch.linalg.eigvalsh(posterior.covariance_matrix).min().sqrt().detach()
    step_size = (1.7 * narrowest).expand(3)
    with torch.no_grad():
        chains.hmc.first([x], 2)
        first = posterior.sample((20_000,))
        state = chains.hmc.state(first, [x])
        for _ in range(5):
            state, probability = chains.hmc.transition(state, 1.0, step_size, [x])
    assert 0.3 < probability.mean() < 0.9
    assert ((state.u - first).square().mean() / (first - posterior.mean).square().mean()) > 0.5
    assert_within_standard_errors(*mean_truth_and_error(state.u - posterior.mean, torch.zeros(2, dtype=torch.float64)))
    products = (state.u - posterior.mean).unsqueeze(-1) * (state.u - posterior.mean).unsqueeze(-2)
    assert_within_standard_errors(*mean_truth_and_error(products, posterior.covariance_matrix))


def test_from_the_exact_posterior_as_guide_every_weight_is_px():
    vae = linear_gaussian(0)
    x = draw(vae, 4)
    result = annealed_log_marginal(vae.model, vae.exact_guide, x, start="guide", **FEW)
    truth = vae.log_px(x).detach()
    torch.testing.assert_close(result.log_weights, truth.expand(8, 4), atol=1e-9, rtol=0)
    torch.testing.assert_close(result.log_px, truth, atol=1e-9, rtol=0)
    assert result.ess.min() > 8 - 1e-6
    assert result.standard_error.max() < 1e-6
