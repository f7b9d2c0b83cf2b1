"""Simulation-based calibration: ranks, the test of their uniformity, and guides that are wrong on purpose."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers import CHANCE, correlated, linear_gaussian, refusal, suite_seed

import pyrovae as pv
from pyrovae.evaluation.calibration import Calibration, _ranks, simulation_based_calibration


def of_ranks(ranks, num_draws, num_bins):
    names = tuple(f"{j + 1}" for j in range(ranks.shape[1]))
    return Calibration(ranks, num_draws, num_bins, names)


def diagonal(latent_dim=3, scale=0.5):
    """Returns a linear Gaussian VAE with orthogonal weights: its posterior is diagonal and its guide exact."""
    generator = torch.Generator().manual_seed(suite_seed(0))
    weight = torch.linalg.qr(torch.randn(5, latent_dim, generator=generator, dtype=torch.float64)).Q
    return pv.LinearGaussianVAE(weight, torch.randn(5, generator=generator, dtype=torch.float64), scale)


def zeros(num_data=500):
    return torch.zeros(num_data, 5, dtype=torch.float64)


# A right guide --------------------------------------------------------------------------------------------------------


def test_the_p_values_of_the_exact_posterior_are_uniform_and_it_is_not_rejected():
    """Runs 20 seeds with 2 dimensions each: at a level of 0.01, 0.2 of the runs are rejected in expectation."""
    p_values, rejected = [], 0
    for seed in range(20):
        vae = linear_gaussian(seed)
        torch.manual_seed(suite_seed(seed))
        result = simulation_based_calibration(vae.model, vae.exact_guide, zeros(400), num_draws=19)
        p_values.append(result.p_values)
        rejected += bool(result.rejected.any())
        assert result.verdict.startswith("calibrated as far as 400 data tell") != bool(result.rejected.any())
    assert rejected <= 3
    p = torch.stack(p_values)
    assert scipy.stats.kstest(p.flatten(), "uniform").pvalue > CHANCE
    assert p.min() > CHANCE


def test_the_ranks_of_the_exact_posterior_have_the_moments_of_a_uniform_distribution():
    vae = linear_gaussian(0)
    ranks = simulation_based_calibration(vae.model, vae.exact_guide, zeros(4_000), num_draws=3, num_bins=4).ranks
    for column in ranks.T:
        counts = torch.bincount(column, minlength=4)
        assert len(counts) == 4
        assert scipy.stats.chisquare(counts).pvalue > CHANCE


@pytest.mark.parametrize(  # the fewer the digits and the lower the concentration, the more ties
    ("concentration", "dtype"),
    [(c, torch.float32) for c in (0.02, 0.1, 2.0)] + [(c, torch.float64) for c in (0.02, 0.5)],
)
def test_values_that_rounding_makes_equal_are_ranked_at_random(concentration, dtype):
    """z ~ Beta(0.1, 0.1) with the exact posterior: p was 1e-20, as many float32 draws equal z = 1 and none counted."""
    alpha = torch.full((1,), concentration, dtype=dtype)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Beta(alpha, alpha).to_event(1))
            pyro.sample("x", dist.Bernoulli(z).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Beta(alpha + x, alpha + 1 - x).to_event(1))

    result = simulation_based_calibration(model, guide, torch.zeros(1_500, 1, dtype=dtype))
    assert result.p_values.item() > CHANCE
    assert result.ranks.min() == 0
    assert result.ranks.max() == 99


def test_ranks_are_those_below_and_a_random_number_of_those_equal():
    value, draws = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([[1.0, 0.0, 1.0], [2.0, 1.0, 1.0], [3.0, 1.0, 1.0]])
    found = torch.stack([_ranks(value, draws) for _ in range(2_000)])
    assert (found[:, 0] == 0).all()
    for column, values in ((1, [1, 2, 3]), (2, [0, 1, 2, 3])):
        counts = torch.bincount(found[:, column])
        assert counts.nonzero().flatten().tolist() == values
        assert scipy.stats.chisquare(counts[counts > 0]).pvalue > CHANCE
    state = torch.get_rng_state()
    first = _ranks(value, draws)
    torch.set_rng_state(state)
    assert torch.equal(_ranks(value, draws), first)


@pytest.mark.parametrize("where", [0, 350])
def test_every_datum_is_checked_and_not_the_first_of_them_alone(where):
    """A condition may change the pair: here its latent is masked from one value on."""

    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            masked = dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1)
            z = pyro.sample("z", masked.mask(y == 0) if bool((y > 0).any()) else masked)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    y = (torch.arange(400) >= where).long()
    said = refusal(simulation_based_calibration, model, guide, torch.zeros(400, 1), y, chunk_size=9_900)
    assert said.startswith('the latent site "z" must have the same mask in model and guide, got ')


# The test of uniformity -----------------------------------------------------------------------------------------------


def test_bins_and_p_values_are_those_of_scipy():
    ranks = torch.randint(0, 30, (200, 4))
    ranks[:, 3] = ranks[:, 3].clamp(max=25)
    result = of_ranks(ranks, 29, 10)
    for j in range(4):
        counts = torch.stack([((ranks[:, j] >= 3 * b) & (ranks[:, j] < 3 * b + 3)).sum() for b in range(10)])
        assert torch.equal(result.counts[j], counts)
        assert result.p_values[j].item() == pytest.approx(scipy.stats.chisquare(counts).pvalue, rel=1e-9)
    assert result.counts.sum(1).tolist() == [200] * 4
    assert result.rejected.tolist() == [False, False, False, True]


def test_the_limit_is_divided_by_the_number_of_dimensions():
    """The p-value lies between 0.01 / 4 and 0.01: rejected as the only dimension, and not as one of four."""
    counts = torch.full((10,), 100)
    counts[0], counts[1] = 134, 66
    column = torch.arange(10).repeat_interleave(counts).unsqueeze(1)
    alone, among = of_ranks(column, 9, 10), of_ranks(column.expand(-1, 4), 9, 10)
    assert 0.01 / 4 < alone.p_values.item() < 0.01
    assert alone.rejected.all()
    assert not among.rejected.any()


# Wrong guides ---------------------------------------------------------------------------------------------------------


def wrong(dim, log_scale=0.0, shift=0.0):
    """Returns the guide of `diagonal` with one dimension changed: its log-scale, and its mean in posterior scales."""
    vae = diagonal()
    with torch.no_grad():
        vae.guide_bias[dim] += shift * vae.guide_log_scale[dim].exp()
        vae.guide_log_scale[dim] += log_scale
    return vae


@pytest.mark.parametrize(
    ("dim", "change", "words"),
    [
        (0, {"log_scale": -0.5}, "too narrow (U-shape)"),
        (2, {"log_scale": -3.0}, "too narrow (U-shape)"),
        (2, {"log_scale": 0.5}, "too wide (dome)"),
        (0, {"log_scale": 3.0}, "too wide (dome)"),
        (0, {"shift": -0.5}, "shifted, too low (slope up)"),
        (2, {"shift": 0.5}, "shifted, too high (slope down)"),
        (0, {"shift": 5.0}, "shifted, too high (slope down)"),
        (2, {"shift": -50.0}, "shifted, too low (slope up)"),
        (0, {"log_scale": -1.0, "shift": -0.3}, "too narrow (U-shape) and shifted, too low (slope up)"),
    ],
)
def test_a_guide_that_is_wrong_in_one_dimension_is_found_and_named_with_the_right_words(dim, change, words):
    vae = wrong(dim, **change)
    torch.manual_seed(suite_seed(0))
    result = simulation_based_calibration(vae.model, vae.guide, zeros(1_000))
    assert result.misfits[f"{dim + 1}"] == words
    assert result.p_values[torch.arange(3) != dim].min() > CHANCE
    if len(result.misfits) == 1:  # each of the others is rejected once in 300 times
        assert result.verdict == f"not calibrated in 1 of 3 latent dimensions (p < 0.01 / 3): {dim + 1} {words}"


def test_several_misfits_are_each_named():
    vae = wrong(0, log_scale=-0.7)
    with torch.no_grad():
        vae.guide_bias[1] -= 0.6 * vae.guide_log_scale[1].exp()
        vae.guide_log_scale[2] -= 0.7
    verdict = simulation_based_calibration(vae.model, vae.guide, zeros(1_000)).verdict
    assert verdict == (
        "not calibrated in 3 of 3 latent dimensions (p < 0.01 / 3): "
        "1, 3 too narrow (U-shape); 2 shifted, too low (slope up)"
    )


def test_a_misfit_of_another_shape_is_not_given_a_wrong_name():
    """Ranks with two symmetric humps: the ends hold their share, and the mean is right."""
    inner = torch.cat((torch.arange(10, 30), torch.arange(70, 90)))
    ranks = torch.cat((torch.arange(0, 10), inner, inner, torch.arange(90, 100))).repeat(10).unsqueeze(1)
    assert of_ranks(ranks, 99, 20).misfits == {"1": "neither too narrow, too wide nor shifted, but of another shape"}


@pytest.mark.parametrize("piles", [{5: 395, 89: 445}, {94: 395, 10: 445}])
def test_a_tail_is_the_outer_tenth_and_not_one_rank_more(piles):
    """One pile of ranks lies in a tail and one next to the other tail; the mean is where it should be."""
    ranks = torch.cat((torch.arange(100).repeat(40), *(torch.full((n,), rank) for rank, n in piles.items())))
    found = of_ranks(ranks.unsqueeze(1), 99, 20).misfits
    assert found == {"1": "neither too narrow, too wide nor shifted, but of another shape"}


def test_the_best_diagonal_guide_of_a_posterior_with_correlations_is_too_narrow():
    vae = correlated()
    ratio = vae.posterior(zeros(1)).variance / vae.encode(zeros(1)).variance
    assert ratio.min() > 1.15
    misfits = simulation_based_calibration(vae.model, vae.guide, zeros(4_000)).misfits
    assert misfits == {f"{j}": "too narrow (U-shape)" for j in (1, 2, 3)}


def test_a_guide_that_gives_the_prior_passes_as_the_docstring_warns():
    vae = linear_gaussian(0)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", vae.prior)

    assert simulation_based_calibration(vae.model, guide, zeros()).verdict.startswith("calibrated as far as")


# Any pair -------------------------------------------------------------------------------------------------------------


def test_of_the_data_only_number_shape_and_dtype_count():
    vae, ranks = diagonal(), []
    for x in (zeros(200), 100 * torch.randn(200, 5, dtype=torch.float64)):
        torch.manual_seed(suite_seed(1))
        ranks.append(simulation_based_calibration(vae.model, vae.guide, x).ranks)
    assert torch.equal(*ranks)
    assert ranks[0].shape == (200, 3)
    assert ranks[0].dtype == torch.long
    assert ranks[0].min() >= 0
    assert ranks[0].max() <= 99


@pytest.mark.parametrize("chunk_size", [1, 150, 10**6])
def test_chunks_that_do_not_divide_lose_no_data(chunk_size):
    vae = wrong(1, log_scale=1.5)
    result = simulation_based_calibration(
        vae.model, vae.guide, zeros(110), num_draws=19, num_bins=10, chunk_size=chunk_size
    )
    assert result.ranks.shape == (110, 3)
    assert result.misfits["2"] == "too wide (dome)"
    assert result.p_values[[0, 2]].min() > CHANCE


def test_a_conditional_vae_is_calibrated_under_its_labels():
    """q(z|x, y) is exact if it gets the right label, and shifted if it gets another one."""

    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + 4.0 * y.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x, y, offset=4.0):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * (x - offset * y.unsqueeze(-1)), 0.5**0.5).to_event(1))

    x, y = torch.zeros(600, 1), (torch.arange(600) % 2).float()
    assert simulation_based_calibration(model, guide, x, y).misfits == {}
    blind = simulation_based_calibration(model, lambda x, y: guide(x, y, offset=0.0), x, y)
    assert "shifted, too high" in blind.verdict


def test_a_vae_of_bits_runs_at_any_beta_and_several_sites_have_their_names():
    vae = pv.VAE((4,), latent_dim=2, hidden=(4,), likelihood=pv.Bernoulli(), condition=pv.OneHot(2), beta=3.0)
    y = torch.arange(100) % 2
    result = simulation_based_calibration(vae.model, vae.guide, torch.zeros(100, 4), y)
    assert result.names == ("1", "2")

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(z1.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(z2.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        """z2 | x ~ N(3/4 x, 3/4), z1 | z2 is N(z2 / 3, ...), given with variance 1: too wide."""
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", dist.Normal(0.75 * x.squeeze(-1), 0.75**0.5))
            pyro.sample("z1", dist.Normal((z2 / 3).unsqueeze(-1).expand(*z2.shape, 2), 2.0).to_event(1))

    result = simulation_based_calibration(model, guide, torch.zeros(600, 1))
    assert result.names == ("1 of z1", "2 of z1", "1 of z2")
    assert result.misfits.keys() == {"1 of z1", "2 of z1"}
    assert all(misfit.startswith("too wide (dome)") for misfit in result.misfits.values())


# Refusals -------------------------------------------------------------------------------------------------------------


refused = partial(refusal, simulation_based_calibration)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_draws": 0}, "num_draws must be a whole number >= 1, got 0"),
        ({"num_bins": 1}, "num_bins must be a whole number >= 2, got 1"),
        ({"chunk_size": 0}, "chunk_size must be a whole number >= 1, got 0"),
        ({"num_draws": 100}, "num_bins must divide num_draws + 1 = 101, so that bins hold equally many ranks; got 20"),
        ({"x": zeros(99)}, "20 bins need at least 100 data (5 each), got 99"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    vae, settings = diagonal(), dict(settings)
    assert refused(vae.model, vae.guide, settings.pop("x", zeros(100)), **settings) == message


def test_a_model_without_one_observed_site_like_the_data_is_refused():
    vae = diagonal()

    def two(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            pyro.sample("x", vae.decode(z), obs=x)
            pyro.sample("w", vae.decode(z), obs=x)

    def masked(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            pyro.sample("x", vae.decode(z).mask(x[:, 0] > 0), obs=x)

    expected = "the model must have one observed site, that of the data, got ['x', 'w']"
    assert refused(two, vae.guide, zeros()) == expected
    assert refused(masked, vae.guide, zeros()) == 'the observed site "x" must not be masked'
    assert refused(vae.model, vae.guide, zeros().float()[:, :4]).startswith('a draw of the observed site "x" must be')


def test_discrete_latents_and_points_are_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(5)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=x).to_event(1))

    assert refused(model, guide, zeros().float()).startswith("ranks need latents that are continuous, got")
    vae = pv.VAE((4,), latent_dim=2, hidden=(), likelihood=pv.Gaussian(0.5), posterior="delta")
    assert 'site "z"' in refused(vae.model, vae.guide, torch.zeros(100, 4))
