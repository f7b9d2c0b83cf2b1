"""Annealed importance sampling against exact log p(x): weights one by one, their means, bounds from both sides."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, suite_seed
from pyro import poutine
from tqdm.auto import tqdm

import pyrovae as pv
from pyrovae.compilation.replay import Replay
from pyrovae.evaluation import annealed_importance_sampling as annealed
from pyrovae.evaluation import hmc
from pyrovae.evaluation.annealed_importance_sampling import (
    _Annealer,
    annealed_log_marginal,
    bidirectional_gap,
    temperatures,
)
from pyrovae.evaluation.hmc import STARTS, Path, unconstrained
from pyrovae.programs import sample_sites

FEW = {"num_distributions": 4, "num_chains": 8, "num_leapfrog": 2}


@pytest.fixture
def short_pilot(monkeypatch):
    """For tests in which it matters little how well HMC mixes."""
    monkeypatch.setattr(annealed, "PILOT_TRANSITIONS", 30)
    monkeypatch.setattr(annealed, "PILOT_WARMUP", 10)


def annealer(model, guide, num_distributions=3, num_chains=8, start="prior", schedule="sigmoid", num_leapfrog=2):
    """Chains without a pilot. An "uneven" schedule tells apart what symmetric ones hide."""
    known = "linear" if schedule == "uneven" else schedule
    path = Path(model, guide, start, num_leapfrog, num_distributions, False)
    chains = _Annealer(path, num_distributions, num_chains, known)
    if schedule == "uneven":
        chains.t = [t**2 for t in chains.t]
    return chains


def silent():
    return tqdm(disable=True)


def guide_of(vae, factor):
    """The exact posterior, `factor` times as wide."""
    slope, mean_at_zero, precision = (part.detach() for part in vae._posterior_parts())
    scale_tril = factor * torch.linalg.cholesky(torch.linalg.inv(precision))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(x @ slope.T + mean_at_zero, scale_tril=scale_tril))

    return guide


# Weights -------------------------------------------------------------------------------------------------------------


def by_hand(vae, x, t, steps, num_chains, num_leapfrog):
    """AIS from the prior with its gradient by hand, on the random numbers in the order in which they are drawn."""
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


@pytest.mark.parametrize("schedule", [*annealed.SCHEDULES, "uneven"])
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
    """E[w / p(x)] = 1 for `ratios` `(draws, cases)`: case by case, and for all together, in standard errors."""
    mean, error = mean_and_error(ratios)
    assert_within_standard_errors(mean, torch.ones(()), error)
    assert_within_standard_errors(mean.mean(), 1.0, error.square().sum().sqrt() / len(mean), note="all cases together")


def random_models(scale):
    for seed in range(50):
        vae = linear_gaussian(seed, data_dim=2, latent_dim=1 + seed % 2, scale=scale + 0.02 * seed)
        yield vae, draw(vae, 2)


@pytest.mark.parametrize("schedule", annealed.SCHEDULES)
@pytest.mark.parametrize("start", STARTS)
def test_weights_have_mean_px_for_50_random_models_whatever_the_step_sizes(start, schedule):
    ratios = []
    for vae, x in random_models(scale=1.2):
        steps = 10 ** (1.5 * torch.rand(3, 2, dtype=torch.float64) - 1.2)  # 0.06 to 2
        with torch.no_grad():
            chains = annealer(vae.model, guide_of(vae, 1.5), 3, 4_000, start, schedule)
            ratios.append((chains.forward([x], steps, silent()).log_weights - vae.log_px(x)).exp())
    assert_unbiased(torch.cat(ratios, -1))


@pytest.mark.parametrize("schedule", ["sigmoid", "uneven"])
@pytest.mark.parametrize("start", STARTS)
def test_reverse_weights_have_mean_one_over_px_for_50_random_models_whatever_the_step_sizes(start, schedule):
    # Of a guide wider than the posterior, or a posterior far narrower than the prior, their variance is infinite.
    ratios = []
    for vae, x in random_models(scale=2.0):
        steps = 10 ** (1.5 * torch.rand(3, 1, dtype=torch.float64) - 1.2)
        x = x[:1].expand(4_000, -1)  # one exact draw for each chain
        with torch.no_grad():
            chains = annealer(vae.model, guide_of(vae, 0.7), 3, 1, start, schedule)
            chains.path.first([x], 1)  # where the layout of the latents is learnt
            result = chains.reverse([x], vae.posterior(x).sample(), steps.expand(-1, 4_000), silent())
            ratios.append((vae.log_px(x) - result.log_weights[0]).exp())
    assert_unbiased(torch.stack(ratios, -1))


def test_hmc_leaves_the_posterior_invariant():
    vae = linear_gaussian(2, latent_dim=2)
    x = draw(vae, 3)
    posterior = vae.posterior(x)
    chains = annealer(vae.model, vae.guide, num_leapfrog=3)
    # So long that a third of the proposals is refused, and that chains do move: leapfrog is unstable beyond twice this.
    narrowest = torch.linalg.eigvalsh(posterior.covariance_matrix).min().sqrt().detach()
    step_size = (1.7 * narrowest).expand(3)
    with torch.no_grad():
        chains.path.first([x], 2)
        first = posterior.sample((20_000,))
        state = chains.path.state(first, [x])
        for _ in range(5):
            state, probability = chains.path.transition(state, 1.0, step_size, [x])
    assert 0.3 < probability.mean() < 0.9
    assert ((state.u - first).square().mean() / (first - posterior.mean).square().mean()) > 0.5
    assert_within_standard_errors(*_moments(state.u - posterior.mean, torch.zeros(2, dtype=torch.float64)))
    products = (state.u - posterior.mean).unsqueeze(-1) * (state.u - posterior.mean).unsqueeze(-2)
    assert_within_standard_errors(*_moments(products, posterior.covariance_matrix))


def _moments(draws, truth):
    mean, error = mean_and_error(draws)
    return mean, truth.expand_as(mean), error


def test_from_the_exact_posterior_as_guide_every_weight_is_px(short_pilot):
    vae = linear_gaussian(0)
    x = draw(vae, 4)
    result = annealed_log_marginal(vae.model, vae.exact_guide, x, start="guide", **FEW)
    truth = vae.log_px(x).detach()
    torch.testing.assert_close(result.log_weights, truth.expand(8, 4), atol=1e-9, rtol=0)
    torch.testing.assert_close(result.log_px, truth, atol=1e-9, rtol=0)
    assert result.ess.min() > 8 - 1e-6
    assert result.standard_error.max() < 1e-6


# The whole -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", STARTS)
def test_the_estimate_is_exact_within_errors_and_the_pilot_accepts_65_percent(start):
    vae = linear_gaussian(5, data_dim=8, latent_dim=4, scale=1.0)
    x = draw(vae, 8)
    settings = {"num_distributions": 80, "num_chains": 64, "num_leapfrog": 3, "start": start}
    result = annealed_log_marginal(vae.model, guide_of(vae, 1.5), x, **settings)
    assert_within_standard_errors(result.log_px, vae.log_px(x), result.standard_error)
    assert result.ess.min() > 5
    torch.testing.assert_close(result.acceptance, torch.full_like(result.acceptance, 0.65), atol=0.06, rtol=0)
    assert result.log_weights.shape == (64, 8)
    assert result.step_size.shape == (80, 8)
    assert not any(t.requires_grad for t in (result.log_px, result.step_size, result.log_weights))
    if start == "prior":  # the posterior is narrower, and steps must have become shorter
        assert (result.step_size[-1] < 0.7 * result.step_size[0]).all()


def test_bounds_enclose_log_px_and_close_upon_it_with_more_distributions(short_pilot):
    vae = linear_gaussian(6, data_dim=6, latent_dim=3, scale=0.5)
    x, gaps = torch.zeros(200, 6, dtype=torch.float64), []
    for num_distributions in (2, 10, 60):
        result = bidirectional_gap(
            vae.model, vae.guide, x, num_distributions=num_distributions, num_chains=4, num_leapfrog=4
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
        *_moments(drawn, vae.weight @ vae.prior_mean + vae.bias)
    )


def test_upper_bounds_hold_from_the_guide_too(short_pilot):
    vae = linear_gaussian(6, data_dim=6, latent_dim=3, scale=0.5)
    x = torch.zeros(100, 6, dtype=torch.float64)
    result = bidirectional_gap(vae.model, guide_of(vae, 1.5), x, start="guide", num_distributions=30, num_leapfrog=3)
    truth = vae.log_px(result.args[0]).detach()
    assert abs((result.lower.value - truth).mean()) < 0.02
    assert abs((result.upper.value - truth).mean()) < 0.05
    assert result.gap.monte_carlo_error == pytest.approx(
        math.hypot(result.lower.monte_carlo_error, result.upper.monte_carlo_error)
    )


# Other pairs ---------------------------------------------------------------------------------------------------------


def one_site(prior, guide_at, decode, scale):
    """z ~ prior, x ~ N(decode(z), scale^2), guide q = guide_at."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(decode(z), scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", guide_at)

    return model, guide


def number(value):
    return torch.as_tensor(value, dtype=torch.float64)


def integral(log_density, points):
    """log of the integral over a fine grid, for each column."""
    return torch.trapezoid(log_density.exp(), points, dim=0).log()


MIXTURE = dist.MixtureSameFamily(dist.Categorical(number([0.3, 0.7])), dist.Normal(number([-1.0, 1.5]), number(0.5)))
# Name to (prior, guide, what x is about, standard deviation, a grid over the support).
SUPPORTS = {
    "positive": (dist.LogNormal(number(0.0), 1.0), dist.LogNormal(number(0.3), 0.8), lambda z: z, (1e-7, 80.0)),
    "interval": (dist.Beta(number(2.0), number(3.0)), dist.Beta(number(2.5), number(2.0)), lambda z: 3 * z, (0.0, 1.0)),
    "bounded": (dist.Uniform(number(-1.0), 2.0), dist.Uniform(number(-1.0), 2.0), lambda z: z, (-1.0, 2.0)),
    "mixture": (MIXTURE, dist.Normal(number(0.5), 1.5), lambda z: z, (-9.0, 9.0)),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", SUPPORTS)
def test_latents_on_other_supports_give_log_px_by_quadrature(name, start, short_pilot):
    prior, q, decode, (low, high) = SUPPORTS[name]
    model, guide = one_site(prior, q, decode, 0.4)
    x = number([0.3, 1.0, 2.0])
    z = torch.linspace(low, high, 200_001, dtype=torch.float64).unsqueeze(-1)[1:-1]
    truth = integral(prior.log_prob(z) + dist.Normal(decode(z), 0.4).log_prob(x), z)
    result = annealed_log_marginal(model, guide, x, num_distributions=20, num_chains=500, num_leapfrog=3, start=start)
    assert_within_standard_errors(result.log_px, truth, result.standard_error)
    assert result.standard_error.max() < 0.1
    torch.testing.assert_close(result.acceptance, torch.full_like(result.acceptance, 0.65), atol=0.25, rtol=0)


def test_a_simplex_of_two_is_a_beta(short_pilot):
    # It has one unconstrained number for two constrained ones.
    concentration = number([2.0, 3.0])
    model, guide = one_site(dist.Dirichlet(concentration), dist.Dirichlet(concentration), lambda z: 3 * z[..., 0], 0.4)
    x, z = number([0.3, 1.0, 2.0]), torch.linspace(0, 1, 100_001, dtype=torch.float64).unsqueeze(-1)[1:-1]
    truth = integral(dist.Beta(*concentration).log_prob(z) + dist.Normal(3 * z, 0.4).log_prob(x), z)
    result = annealed_log_marginal(model, guide, x, num_distributions=20, num_chains=500, num_leapfrog=3)
    assert_within_standard_errors(result.log_px, truth, result.standard_error)
    bounds = bidirectional_gap(model, guide, torch.zeros(50, dtype=torch.float64), **{**FEW, "num_distributions": 30})
    assert abs(bounds.gap.mean) < 0.2


def two_site_model(x):
    with pyro.plate("data", len(x), dim=-1):
        z1 = pyro.sample("z1", dist.Normal(number([0.5]), 1.0).to_event(1))
        z2 = pyro.sample("z2", dist.LogNormal(0.5 * z1.squeeze(-1), 0.6))
        pyro.sample("x", dist.Normal(z1.squeeze(-1) + z2, 0.6), obs=x)


def two_site_guide(x):
    """In the other order, z1 depending on z2."""
    with pyro.plate("data", len(x), dim=-1):
        z2 = pyro.sample("z2", dist.LogNormal(0.2 * x, 0.7))
        pyro.sample("z1", dist.Normal((0.5 * (x - z2)).unsqueeze(-1), 1.0).to_event(1))


X5 = number([0.0, 1.0, 2.0, -1.0, 0.5])


@pytest.mark.parametrize("start", STARTS)
def test_a_pair_with_two_latent_sites_of_other_supports(start, short_pilot):
    x = number([-0.5, 1.5, 3.0])
    z1 = torch.linspace(-6, 7, 801, dtype=torch.float64)[:, None, None]
    log_z2 = torch.linspace(-6, 6, 801, dtype=torch.float64)[None, :, None]
    log_joint = dist.Normal(number(0.5), 1.0).log_prob(z1) + dist.Normal(0.5 * z1, 0.6).log_prob(log_z2)
    joint = log_joint + dist.Normal(z1 + log_z2.exp(), 0.6).log_prob(x)
    truth = integral(integral(joint, z1), log_z2.squeeze(0))
    result = annealed_log_marginal(
        two_site_model, two_site_guide, x, num_distributions=30, num_chains=500, num_leapfrog=3, start=start
    )
    assert_within_standard_errors(result.log_px, truth, result.standard_error)
    assert result.standard_error.max() < 0.1
    bounds = bidirectional_gap(two_site_model, two_site_guide, x.expand(20, 3).flatten(), start=start, num_chains=8,
                               num_distributions=60, num_leapfrog=3)  # fmt: skip
    assert -5 * bounds.gap.data_error < bounds.gap.mean < 0.3


def test_the_order_in_which_sites_are_drawn_does_not_matter():
    # The model's exact draws are placed by the layout that was learnt of the guide.
    sites = sample_sites(poutine.trace(two_site_model).get_trace(X5))
    latent = [(name, sites[name]) for name in ("z1", "z2")]
    (u, layout), (other_u, other_layout) = unconstrained(dict(latent)), unconstrained(dict(latent[::-1]))
    assert layout == other_layout == [("z1", torch.Size([1])), ("z2", torch.Size([]))]
    assert torch.equal(u, torch.stack([sites["z1"]["value"].squeeze(-1), sites["z2"]["value"].log()], -1))
    assert torch.equal(u, other_u)


def test_a_support_may_depend_on_another_latent(short_pilot):
    def sample(loc):
        scale = pyro.sample("z1", dist.LogNormal(number(loc), 0.5))
        return pyro.sample("z2", dist.Uniform(0 * scale, scale))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(sample(0.0), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            sample(0.2)

    x = number([0.3, 1.0])
    truth = pv.log_marginal(model, guide, x, num_samples=100_000)
    result = annealed_log_marginal(model, guide, x, num_distributions=20, num_chains=500, num_leapfrog=3)
    error = (result.standard_error.square() + truth.standard_error.square()).sqrt()
    assert_within_standard_errors(result.log_px, truth.log_px, error)
    assert error.max() < 0.05


def test_a_conditional_pair_keeps_its_labels(short_pilot):
    vae, shift = linear_gaussian(7), 3 * torch.randn(3, 5, dtype=torch.float64)

    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", vae.decode(pyro.sample("z", vae.prior)), obs=x - shift[y])

    def labelled(x, y):
        with pyro.plate("data", len(x), dim=-1):
            mean = vae.decode(pyro.sample("z", vae.prior)).base_dist.loc + shift[y]
            pyro.sample("x", dist.Normal(mean, vae.scale).to_event(1), obs=x)

    def guide(x, y):
        vae.exact_guide(x - shift[y])

    y = torch.arange(30) % 3
    result = bidirectional_gap(labelled, guide, torch.zeros(30, 5, dtype=torch.float64), y, start="guide", **FEW)
    x, same = result.args
    assert torch.equal(same, y)
    truth = vae.log_px(x - shift[y]).detach()
    for bound in (result.lower, result.upper):
        torch.testing.assert_close(bound.log_px, truth, atol=1e-8, rtol=0)
    with pytest.raises(pv.InputError, match='the site "x" must observe one of the arguments as it is'):
        bidirectional_gap(model, guide, x, y, **FEW)


def test_a_conditional_vae_runs_and_its_bounds_are_in_order(short_pilot):
    vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli(), condition=pv.OneHot(3))
    y = torch.arange(40) % 3
    settings = {"num_distributions": 20, "num_leapfrog": 3, "num_chains": 64}  # so many that their errors are known
    result = bidirectional_gap(vae.model, vae.guide, torch.zeros(40, 4), y, **settings)
    assert set(result.args[0].unique().tolist()) == {0.0, 1.0}
    assert -5 * result.gap.data_error < result.gap.mean < 0.5
    by_quadrature, _ = pv.quadrature_log_marginal(vae.model, *result.args)
    assert_within_standard_errors(result.lower.log_px, by_quadrature, result.lower.standard_error + 1e-5)


# Chunks, compiled runs, randomness -----------------------------------------------------------------------------------


def test_chunks_of_data_that_do_not_divide_their_number_are_put_together_in_order(short_pilot):
    vae = linear_gaussian(8)
    x = draw(vae, 5) + 3 * torch.arange(5, dtype=torch.float64).unsqueeze(-1)
    settings = {"num_distributions": 20, "num_chains": 100, "num_leapfrog": 2, "start": "guide"}
    result = annealed_log_marginal(vae.model, guide_of(vae, 1.5), x, chunk_size=200, **settings)
    assert_within_standard_errors(result.log_px, vae.log_px(x), result.standard_error)
    assert result.standard_error.max() < 0.1
    for name, shape in (("ess", (5,)), ("acceptance", (5,)), ("step_size", (20, 5)), ("log_weights", (100, 5))):
        assert getattr(result, name).shape == shape
    fewer_than_chains = annealed_log_marginal(vae.model, vae.exact_guide, x[:2], chunk_size=3, start="guide", **FEW)
    torch.testing.assert_close(fewer_than_chains.log_px, vae.log_px(x[:2]).detach(), atol=1e-8, rtol=0)


@pytest.mark.parametrize(("kind", "start"), [("VAE", "prior"), ("two sites", "guide")])
def test_replayed_chains_are_the_eager_ones(kind, start, monkeypatch, short_pilot):
    replays = []

    class Counted(Replay):
        def __init__(self, *args):
            super().__init__(*args, inductor=False)
            replays.append(self)

    monkeypatch.setattr(hmc, "Replay", Counted)
    monkeypatch.setattr(annealed, "PILOT_TRANSITIONS", 1)
    vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli())
    pairs = {"VAE": (vae.model, vae.guide, torch.ones(5, 4)), "two sites": (two_site_model, two_site_guide, X5)}
    model, guide, x = pairs[kind]
    results, states = [], []
    for compile in (False, True):
        torch.manual_seed(suite_seed(4))
        results.append(annealed_log_marginal(model, guide, x, chunk_size=16, start=start, compile=compile, **FEW))
        states.append(torch.get_rng_state())
    eager, replayed = results
    # Two data at a time and then one, each with the chains of the pilot and of the run.
    assert len(replays) == 4
    assert all(replay.graph is not None and replay._uses > 0 for replay in replays)
    torch.testing.assert_close(replayed.log_weights, eager.log_weights)
    torch.testing.assert_close(replayed.step_size, eager.step_size)
    assert torch.equal(*states)


def test_a_program_that_cannot_be_replayed_runs_eagerly_and_says_why(short_pilot):
    vae = linear_gaussian(9)

    def model(x):
        assert x.sum().item() != 1
        vae.model(x)

    with pytest.warns(
        UserWarning, match="chains run eagerly, as the program cannot be replayed: it looks at the value"
    ):
        result = annealed_log_marginal(model, vae.exact_guide, draw(vae, 3), start="guide", compile=True, **FEW)
    assert result.ess.min() > 7.99


def test_a_seed_fixes_the_result_and_only_draws_advance_the_generator(short_pilot):
    vae = linear_gaussian(10)
    x = draw(vae, 3)
    results = []
    for _ in range(2):
        torch.manual_seed(suite_seed(5))
        results.append(annealed_log_marginal(vae.model, vae.guide, x, **FEW).log_weights)
    assert torch.equal(*results)
    assert not torch.equal(results[0], annealed_log_marginal(vae.model, vae.guide, x, **FEW).log_weights)
    state = torch.get_rng_state()
    annealer(vae.model, vae.guide).path.check([x])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_no_step_keeps_an_autograd_graph_for_the_next(monkeypatch, short_pilot):
    vae, states = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli()), []
    transition = Path.transition
    monkeypatch.setattr(Path, "transition", lambda self, *args: states.append(args[0]) or transition(self, *args))
    annealed_log_marginal(vae.model, vae.guide, torch.ones(3, 4), start="guide", **FEW)
    assert len(states) > FEW["num_distributions"]
    assert not any(tensor.requires_grad for state in states for tensor in vars(state).values())


@pytest.mark.parametrize("start", STARTS)
def test_estimates_are_at_beta_one_whatever_training_used(start, short_pilot):
    vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli(), beta=4.0)
    values = []
    for beta in (4.0, 1.0):
        vae.set_beta(beta)
        torch.manual_seed(suite_seed(1))
        values.append(annealed_log_marginal(vae.model, vae.guide, torch.ones(3, 4), start=start, **FEW).log_px)
    assert torch.equal(*values)


def test_a_common_scale_does_not_enter(short_pilot):
    vae = linear_gaussian(9)
    x = draw(vae, 3)
    model, guide = poutine.scale(vae.model, 10.0), poutine.scale(vae.exact_guide, 10.0)
    result = annealed_log_marginal(model, guide, x, start="guide", **FEW)
    torch.testing.assert_close(result.log_px, vae.log_px(x).detach(), atol=1e-9, rtol=0)


def test_a_likelihood_that_looks_at_no_latent_has_no_gradient_and_is_log_px(short_pilot):
    model, guide = one_site(dist.Normal(number(0.0), 1.0), dist.Normal(number(1.0), 1.0), lambda z: number(0.5), 1.0)
    x = number([0.3, 1.0])
    result = annealed_log_marginal(model, guide, x, **FEW)
    torch.testing.assert_close(result.log_px, dist.Normal(number(0.5), 1.0).log_prob(x), atol=1e-12, rtol=0)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_distributions": 0}, "num_distributions must be a whole number >= 1, got 0"),
        ({"num_chains": 0}, "num_chains must be a whole number >= 1, got 0"),
        ({"num_leapfrog": 1.5}, "num_leapfrog must be a whole number >= 1, got 1.5"),
        ({"chunk_size": 0}, "chunk_size must be a whole number >= 1, got 0"),
        ({"start": "posterior"}, "start must be one of prior, guide; got 'posterior'"),
        ({"schedule": "cosine"}, "schedule must be one of sigmoid, linear; got 'cosine'"),
        ({"compile": "yes"}, "compile must be true, false or auto, got 'yes'"),
        ({"x": torch.full((3, 5), math.nan)}, "x must be finite, got nan at index \\(0, 0\\)"),
        ({"x": torch.zeros(0, 5)}, "x must hold at least one datum, got 0"),
        ({"x": "images"}, "x must be a tensor, got str"),
    ],
)
@pytest.mark.parametrize("function", [annealed_log_marginal, bidirectional_gap])
def test_bad_input_is_refused_in_one_line(function, change, message):
    vae = linear_gaussian(0)
    settings = {**FEW, **change}
    x = settings.pop("x", torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(pv.InputError, match=message) as caught:
        function(vae.model, vae.guide, x, **settings)
    assert "\n" not in str(caught.value)


def half():
    return number(0.5)


def auxiliary_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("a", dist.Normal(half(), 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(half(), 1.0))


def nothing(x):
    pass


def observed_alone(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(half(), 1.0), obs=x)


def outside(x):
    z = pyro.sample("z", dist.Normal(half(), 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


NORMAL = one_site(dist.Normal(half(), 1.0), dist.Normal(half(), 1.0), lambda z: z, 1.0)
REFUSED = {
    "discrete": (
        *one_site(dist.Bernoulli(half()), dist.Bernoulli(half()), lambda z: z, 1.0),
        'the latent site "z" must have a density that HMC can walk on: it is discrete',
    ),
    "sphere": (
        *one_site(*[dist.ProjectedNormal(number([1.0, 0.0]))] * 2, lambda z: z[..., 0], 1.0),
        'the latent site "z" must have a density that HMC can walk on: it lies in Sphere',
    ),
    "delta": (NORMAL[0], one_site(None, dist.Delta(half()), None, 1.0)[1], 'site "z" is a point \\(Delta\\)'),
    "auxiliary": (NORMAL[0], auxiliary_guide, 'the guide\'s auxiliary site "a" must be what all latents'),
    "none": (observed_alone, nothing, "the model must have a latent site, and has none"),
    "outside": (outside, NORMAL[1], 'site "z" of the model lies in none'),
    "masked": (*one_site(*[dist.Normal(half(), 1.0).mask(False)] * 2, lambda z: z, 1.0), 'site "z" is latent and mask'),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", REFUSED)
def test_pairs_without_weights_are_refused_in_one_line(name, start):
    model, guide, message = REFUSED[name]
    for function in (annealed_log_marginal, bidirectional_gap):
        with pytest.raises(pv.InputError, match=message) as caught:
            function(model, guide, number([0.1, 0.2]), start=start, **FEW)
        assert "\n" not in str(caught.value)


def test_a_guide_on_another_support_is_refused_as_a_start_and_not_used_otherwise(short_pilot):
    prior, x = dist.Uniform(number(0.0), 2.0), number([0.1, 0.2])
    model, guide = one_site(prior, dist.Uniform(number(0.5), 1.0), lambda z: z, 1.0)
    with pytest.raises(pv.InputError, match='the latent site "z" must have one support in model and guide'):
        annealed_log_marginal(model, guide, x, start="guide", **FEW)
    assert annealed_log_marginal(model, guide, x, **FEW).log_px.isfinite().all()


def test_grey_pixels_have_no_log_px_but_may_stand_in_for_data(short_pilot):
    vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli(allow_grey=True))
    grey = torch.rand(3, 4)
    with pytest.raises(pv.InputError, match="cross-entropy"):
        annealed_log_marginal(vae.model, vae.guide, grey, **FEW)
    assert bidirectional_gap(vae.model, vae.guide, grey, **FEW).gap.value.isfinite().all()
