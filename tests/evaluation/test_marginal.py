import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, suite_seed
from pyro import poutine
from scipy import stats

import pyrovae as pv


def scaled_guide(vae, factors):
    """The exact posterior, its covariance scaled along its own axes: standard deviations times `factors`."""
    factors = torch.as_tensor(factors, dtype=torch.float64)

    def guide(x):
        posterior = vae.posterior(x)
        scale_tril = posterior.scale_tril.detach() * factors
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(posterior.mean.detach(), scale_tril=scale_tril))

    return guide


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


def test_a_wider_guide_is_within_five_standard_errors_for_100_random_models():
    scores = []
    for seed in range(100):
        vae = linear_gaussian(seed, data_dim=2 + seed % 5, latent_dim=1 + seed % 3, scale=0.3 + 0.01 * seed)
        x = draw(vae, 2)
        result = pv.log_marginal(vae.model, scaled_guide(vae, [1.4] * vae.latent_dim), x, num_samples=10_000)
        assert_within_standard_errors(result.log_px, vae.log_px(x), result.standard_error, note=f"model {seed}")
        scores.append((result.log_px - vae.log_px(x).detach()) / result.standard_error)
    # Wide errors would pass the line above for ever: the z-scores must also be as large as they should be.
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


@pytest.mark.parametrize("factor", [0.3, 0.6, 0.8])
def test_pareto_k_of_a_guide_that_is_too_narrow_in_one_dimension_is_one_minus_its_ratio_squared(factor):
    # w ~ exp(-z^2 (1 - r^2) / 2 r^2...) under q has a tail of index k = 1 - r^2; the fit is averaged over 64 data.
    vae = linear_gaussian(2)
    x = draw(vae, 1).expand(64, -1)
    result = pv.log_marginal(vae.model, scaled_guide(vae, [factor, 1.0]), x, num_samples=50_000)
    k, error = mean_and_error(result.pareto_k)
    # The tail is Pareto only up to a slowly varying factor sqrt(log w), which a finite sample sees as a bias.
    assert abs(k.item() - (1 - factor**2)) < 0.06 + 5 * error.item(), (
        f"k {k:.3f} +- {error:.3f}, not {1 - factor**2:.3f}"
    )
    assert result.share_unreliable == pytest.approx(1.0 if factor == 0.3 else 0.0, abs=0.05)


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


class FixedNoise:
    """A guide whose draws for particle k and datum n are fixed, so that chunks can be compared to the whole."""

    def __init__(self, vae, x, num_samples):
        self.vae, self.x = vae, x
        self.noise = torch.randn(num_samples, len(x), vae.latent_dim, dtype=torch.float64)
        self.used = [0] * len(x)
        torch.manual_seed(suite_seed(1))

    def guide(self, x):
        q = self.vae.encode(x)
        rows = [int((self.x == row).all(-1).nonzero()[0]) for row in x]
        with pyro.plate("data", len(x), dim=-1):
            stack = pyro.poutine.runtime._PYRO_STACK
            size = next((h.size for h in stack if getattr(h, "name", "") == "num_particles"), 1)
            start = self.used[rows[0]]
            if torch.initial_seed() == 0:  # the check of the pair, on draws of its own
                z = q.mean + q.stddev * torch.randn(size, len(x), self.vae.latent_dim, dtype=torch.float64)
            else:
                z = q.mean + q.stddev * self.noise[start : start + size, rows]
                for row in rows:
                    self.used[row] += size
            pyro.sample("z", FixedDraw(q, z))


class FixedDraw(dist.TorchDistribution):
    """q(z|x) whose next draw is already made."""

    has_rsample = True
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base, value):
        self.base, self.value = base, value
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return self

    def rsample(self, sample_shape=()):
        return self.value

    def log_prob(self, value):
        return self.base.log_prob(value)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 300, 10_000])
def test_chunked_equals_unchunked_on_the_same_draws_also_where_the_count_does_not_divide(chunk_size, monkeypatch):
    monkeypatch.setattr(pv.evaluation.importance_sampling, "DATA_CHUNK", 5)
    vae = linear_gaussian(4)
    x = draw(vae, 13)
    noise = FixedNoise(vae, x, num_samples=101)
    result = pv.log_marginal(vae.model, noise.guide, x, num_samples=101, chunk_size=chunk_size)
    assert noise.used == [101] * 13
    z = vae.encode(x).mean + vae.encode(x).stddev * noise.noise
    log_w = (vae.prior.log_prob(z) + vae.decode(z).log_prob(x) - vae.encode(x).log_prob(z)).detach()
    w = log_w.exp()
    torch.testing.assert_close(result.log_px, w.mean(0).log(), atol=1e-12, rtol=0)
    torch.testing.assert_close(result.standard_error, w.std(0) / w.mean(0) / math.sqrt(101), atol=1e-12, rtol=0)
    torch.testing.assert_close(result.ess, w.sum(0) ** 2 / w.square().sum(0), atol=1e-9, rtol=0)
    largest = log_w.sort(0, descending=True).values[: math.ceil(0.2 * 101) + 1].exp()
    for index in range(13):
        k, _ = pyro.ops.stats.fit_generalized_pareto((largest[:-1, index] - largest[-1, index]) / largest[0, index])
        assert result.pareto_k[index].item() == pytest.approx(k, abs=1e-9)


@pytest.mark.parametrize("likelihood", [pv.Categorical(), pv.Bernoulli(), pv.HeteroscedasticGaussian(0.01)])
def test_a_chunk_holds_as_many_outputs_of_a_decoder_whatever_their_number_per_pixel(likelihood, monkeypatch):
    """256 outputs for each pixel took 256 times the memory."""
    monkeypatch.setattr(pv.evaluation.importance_sampling, "CHUNK_OUTPUTS", 40_000)
    vae = pv.VAE((1, 4, 4), latent_dim=2, hidden=(3,), likelihood=likelihood)
    decoded, decoder = [], vae.decoder.forward

    def forward(z, *args):
        decoded.append(z.shape[:-1].numel())
        return decoder(z, *args)

    monkeypatch.setattr(vae.decoder, "forward", forward)
    x = torch.zeros(5, 1, 4, 4)
    pv.log_marginal(vae.model, vae.guide, x, num_samples=700, progress=False)
    most = min(8_192, 40_000 // (16 * (256 if isinstance(likelihood, pv.Categorical) else 1)))
    assert most - 5 < max(decoded) <= max(most, 2 * 5)  # two particles of the five data are checked
    decoded.clear()
    pv.log_marginal(vae.model, vae.guide, x, num_samples=700, chunk_size=1_000, progress=False)
    assert max(decoded) == 1_000


def with_little_memory(vae, monkeypatch, rows, error):
    """Its decoder fails for more than so many rows; returns the sizes that it was asked for."""
    asked, decode = [], vae.decode

    def decode_some(z, *args):
        asked.append(z.shape[:-1].numel())
        if asked[-1] > rows:
            raise error
        return decode(z, *args)

    monkeypatch.setattr(vae, "decode", decode_some)
    return asked


OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CPU: can't allocate memory")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["GPU", "CPU"])
@pytest.mark.parametrize("rows", [2_000, 300, 70])
def test_out_of_memory_takes_smaller_pieces_and_gives_the_same_answer(rows, error, monkeypatch):
    vae = linear_gaussian(2)
    x = draw(vae, 30)

    def estimate():
        torch.manual_seed(suite_seed(4))
        return pv.log_marginal(vae.model, scaled_guide(vae, [1.4, 1.2]), x, num_samples=333, chunk_size=3_000)

    whole, state = estimate(), None
    state = torch.get_rng_state()
    asked = with_little_memory(vae, monkeypatch, rows, error)
    in_pieces = estimate()
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(in_pieces.log_px, whole.log_px, atol=1e-10, rtol=0)
    torch.testing.assert_close(in_pieces.pareto_k, whole.pareto_k, atol=1e-6, rtol=0)
    failed = [size for size in asked if size > rows]
    assert 1 <= len(failed) <= 8  # found out once, and kept to
    assert max(size for size in asked if size <= rows) > rows / 4


def test_out_of_memory_of_a_single_datum_is_an_error(monkeypatch):
    vae = linear_gaussian(2)
    x = draw(vae, 3)
    with_little_memory(vae, monkeypatch, 6, OUT_OF_MEMORY[1])  # enough for the first look at the pair
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: decode(z.expand(7, *z.shape) if z.shape[0] != 2 else z))
    with pytest.raises(RuntimeError, match="allocate memory"):
        pv.log_marginal(vae.model, vae.exact_guide, x, num_samples=333)


def test_importance_bound_on_given_draws_is_the_mean_over_repeats_of_the_log_mean_over_particles():
    # M != K, so that swapped axes are seen.
    vae = linear_gaussian(4)
    x = draw(vae, 6)
    noise = FixedNoise(vae, x, num_samples=12)
    result = pv.importance_bound(vae.model, noise.guide, x, num_particles=4, num_repeats=3)
    z = vae.encode(x).mean + vae.encode(x).stddev * noise.noise
    w = (vae.prior.log_prob(z) + vae.decode(z).log_prob(x) - vae.encode(x).log_prob(z)).detach().exp()
    bounds = w.reshape(3, 4, 6).mean(1).log()
    torch.testing.assert_close(result.value, bounds.mean(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(result.standard_error, bounds.std(0) / math.sqrt(3), atol=1e-12, rtol=0)


def test_the_bound_rises_with_the_number_of_particles_and_stays_below_log_px():
    vae = linear_gaussian(5)
    x = draw(vae, 50)
    guide = scaled_guide(vae, [1.6, 0.6])
    truth = vae.log_px(x).mean().item()
    bounds = [pv.importance_bound(vae.model, guide, x, num_particles=k, num_repeats=400) for k in (1, 2, 4, 8, 32, 128)]
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


def test_quadrature_is_exact_log_px_in_one_and_two_dimensions():
    for latent_dim in (1, 2):
        vae = linear_gaussian(7, latent_dim=latent_dim)
        x = draw(vae, 40)
        log_px, error = pv.quadrature_log_marginal(vae.model, x, limit=8.0)
        torch.testing.assert_close(log_px, vae.log_px(x).detach(), atol=1e-9, rtol=0)
        assert error.max() < 1e-9


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
    """Trap 2: inside the logsumexp, a subsampled plate's N / B gives a number that is no bound on log p(x)."""
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

    with pytest.raises(pv.InputError, match="holds 2 of the 5"):
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


def quadrature_pair(prior, offset=0.0):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z + offset, 1.0).to_event(1), obs=x)

    return model


def test_quadrature_refuses_latents_that_are_not_real_and_tells_of_mass_beyond_its_limits():
    x = torch.zeros(3, 1, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    for prior in (dist.Exponential(one).to_event(1), dist.Bernoulli(0.5 * one).to_event(1)):
        with pytest.raises(pv.InputError, match="quadrature needs a latent of real numbers"):
            pv.quadrature_log_marginal(quadrature_pair(prior), x)
    with pytest.raises(pv.InputError, match='site "z" is latent and masked'):
        pv.quadrature_log_marginal(quadrature_pair(dist.Normal(0 * one, 1.0).to_event(1).mask(False)), x)
    _, error = pv.quadrature_log_marginal(quadrature_pair(dist.Normal(9 * one, 1.0).to_event(1)), x + 9)
    assert (error == math.inf).all()


def test_quadrature_sees_that_a_mode_of_the_prior_is_beyond_its_limits():
    x = torch.full((3, 1), 15.0, dtype=torch.float64)
    loc = torch.tensor([[0.0], [15.0]], dtype=torch.float64)
    weights = dist.Categorical(torch.tensor([0.5, 0.5], dtype=torch.float64))
    prior = dist.MixtureSameFamily(weights, dist.Normal(loc, 0.5).to_event(1))
    _, error = pv.quadrature_log_marginal(quadrature_pair(prior), x)
    assert (error == math.inf).all()
    log_px, error = pv.quadrature_log_marginal(quadrature_pair(prior), x, limit=25.0, num_points=2_001)
    assert error.max() < 1e-6
    exact = dist.MixtureSameFamily(weights, dist.Normal(loc, math.sqrt(1.25)).to_event(1)).log_prob(x)
    torch.testing.assert_close(log_px, exact)


def test_quadrature_judges_its_limits_by_the_prior_of_each_datum():
    x, loc = torch.zeros(3, 1, dtype=torch.float64), torch.tensor([[0.0], [12.0], [-1.0]], dtype=torch.float64)
    _, error = pv.quadrature_log_marginal(quadrature_pair(dist.Normal(loc, 0.7).to_event(1)), x, limit=8.0)
    assert (error == math.inf).tolist() == [False, True, False]


def test_the_callers_generator_is_left_alone_where_no_draw_is_asked_for():
    vae = linear_gaussian(0)
    state = torch.get_rng_state()
    pv.quadrature_log_marginal(vae.model, draw_nothing(vae))
    assert torch.equal(torch.get_rng_state(), state)


def draw_nothing(vae):
    return torch.zeros(3, 5, dtype=torch.float64)
