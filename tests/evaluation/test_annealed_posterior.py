"""Answers from the ends of annealed chains, where the guide is a poor proposal, against what is exactly so."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import X5, guide_of, two_site_guide, two_site_model
from exact import conjugate
from helpers import assert_within_standard_errors, draw, linear_gaussian, refusal, suite_seed
from test_every_kind_of_pair import CASES
from test_posterior import assert_calibrated

import pyrovae as pv

REPETITIONS, LEVELS = 60, (0.25, 0.5, 0.75)
SHORT = {"num_distributions": 45, "num_chains": 100, "num_leapfrog": 3}
SHORTER = {"num_distributions": 10, "num_chains": 200, "num_leapfrog": 2}  # where the guide is a fair proposal


@pytest.fixture(scope="module")
def vae():
    return linear_gaussian(0, pinned=True)


def too_narrow(vae):
    """A guide a third as wide as the posterior, two of its standard deviations beside it."""

    def guide(x):
        exact = vae.posterior(x)
        loc, scale_tril = (exact.mean + 2 * exact.stddev).detach(), 0.3 * exact.scale_tril.detach()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))

    return guide


def test_errors_are_calibrated_where_the_guide_fails(vae):
    """Each of the data is the same x: one call gives 60 repetitions."""
    x = draw(vae, 1).expand(REPETITIONS, -1)
    exact, guide = vae.posterior(x[:1]), too_narrow(vae)
    torch.manual_seed(suite_seed(1))
    plain = pv.posterior(vae.model, guide, x, num_samples=1_000)
    assert plain.verdict.startswith("not to be relied on: Pareto k > 0.7 at ")
    assert plain.verdict.endswith("annealed_posterior or more draws")
    post = pv.annealed_posterior(vae.model, guide, x, **SHORT)
    assert (post.ess > 0.2 * 100).double().mean() > 0.9
    assert_calibrated(post.mean("z"), exact.mean, "mean")
    squares = post.expectation(lambda site: site["z"].square())
    assert_calibrated(squares, exact.mean.square() + exact.variance, "square")
    marginal = dist.Normal(exact.mean, exact.variance.sqrt())
    truth = torch.stack([marginal.icdf(torch.tensor(level)) for level in LEVELS])
    assert_calibrated(post.quantile("z", LEVELS), truth, "quantile")
    off = (plain.mean("z").value - exact.mean).abs().mean()
    assert (post.mean("z").value - exact.mean).abs().mean() < off / 2


def test_chains_from_the_posterior_itself_have_equal_weights_and_log_p_x_is_that_of_the_chains(vae):
    x, found = draw(vae, 4), []
    settings = {"num_distributions": 4, "num_chains": 8, "num_leapfrog": 2, "start": "guide"}
    for function in (pv.annealed_posterior, pv.annealed_log_marginal):
        torch.manual_seed(0)
        found.append(function(vae.model, vae.exact_guide, x, **settings))
    torch.testing.assert_close(found[0].ess, torch.full((4,), 8.0).double())
    assert torch.equal(found[0].log_marginal.log_px, found[1].log_px)
    said = "8 weighted draws of z for each of 4 data, ends of chains through 4 distributions"
    assert repr(found[0]).splitlines()[0] == said
    assert found[0].sample(3)["z"].shape == (3, 4, 2)


@pytest.mark.parametrize("name", ["VAE", "plain pair", "conditions", "state space"])
def test_every_kind_of_pair_has_its_exact_answer(name):
    torch.manual_seed(suite_seed(2))
    case = CASES[name]()
    x, *y = case.args
    whole = case.guide if name == "VAE" else lambda x, *y: case.guide(x, *y, mask=torch.ones_like(x).bool())
    post = pv.annealed_posterior(case.model, whole, x, *y, **SHORTER)
    found = post.expectation(case.f)
    assert_within_standard_errors(found.value, case.mean_of_f, found.standard_error)
    if name == "state space":
        assert torch.equal(post.mean("z_4").value.isnan(), y[0] <= 4)


def test_codes_have_no_chains():
    case = CASES["codes"]()
    whole = lambda x: case.guide(x, torch.ones_like(x).bool())  # noqa: E731
    assert "is discrete" in refusal(pv.annealed_posterior, case.model, whole, *case.args)


def test_latents_on_constrained_supports_and_of_several_sites():
    """Beside many draws of the guide, which is a fair one."""
    torch.manual_seed(suite_seed(3))
    chains = pv.annealed_posterior(two_site_model, two_site_guide, X5, **SHORTER)
    plain = pv.posterior(two_site_model, two_site_guide, X5, num_samples=10_000)
    assert (chains.shapes, plain.shapes) == ({"z1": (1,), "z2": ()}, {"z2": (), "z1": (1,)})
    for name in chains.shapes:
        one, other = chains.mean(name), plain.mean(name)
        error = (one.standard_error.square() + other.standard_error.square()).sqrt()
        assert_within_standard_errors(one.value, other.value, error)
    assert (chains.sample(20)["z2"] > 0).all()


def test_latents_that_all_data_share_have_one_answer():
    x = conjugate.tosses(7, 3)
    torch.manual_seed(suite_seed(4))
    post = pv.annealed_posterior(conjugate.coin, conjugate.coin_guide, x, **SHORTER)
    a, b = conjugate.coin_posterior(x)
    mean = post.mean("f")
    assert mean.value.shape == (1,)
    assert_within_standard_errors(mean.value, a / (a + b), mean.standard_error)
    said = "200 weighted draws of f, of all data together, ends of chains through 10 distributions"
    assert repr(post).splitlines()[0] == said


def test_chains_too_short_say_what_to_do(vae):
    torch.manual_seed(suite_seed(5))
    x = draw(vae, 30) + 5
    post = pv.annealed_posterior(vae, x, num_distributions=1, num_chains=60, num_leapfrog=1)
    assert post.mean("z").verdict.startswith("not to be relied on: Pareto k > 0.7 at ")
    assert post.verdict.endswith("; take more distributions or more chains")


def test_few_chains_of_few_data_run_at_a_time(vae):
    """20 chains of 3 data, of which 8 pairs fit into memory: blocks of 7 and 6 chains of one datum."""
    pairs = []

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            pairs.append(z[..., 0].numel())
            pyro.sample("x", vae.decode(z), obs=x)

    torch.manual_seed(suite_seed(6))
    settings = {"num_distributions": 2, "num_chains": 20, "num_leapfrog": 2, "chunk_size": 8, "start": "guide"}
    x = draw(vae, 3)
    post = pv.annealed_posterior(model, guide_of(vae, 1.2), x, **settings)
    assert pairs.count(4 * 3) == 1  # the check of the pair, with the data in four halves
    assert sorted(pairs)[-2] <= 8
    mean = post.mean("z")
    assert mean.num_samples == 20
    assert_within_standard_errors(mean.value, vae.posterior(x).mean, mean.standard_error)
