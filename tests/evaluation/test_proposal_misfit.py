"""A verdict advises a wider or narrower proposal by a factor that is enough, and where there is none it says so."""

import re
from collections.abc import Callable
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import draw, linear_gaussian, suite_seed

import pyrovae as pv
from pyrovae.evaluation.chunks import opened
from pyrovae.evaluation.proposal_misfit import misfit_of
from pyrovae.evaluation.remedy_words import NARROWED, RESCALED

DATA = 60


def with_guide(shape: Callable, latent_dim=3):
    """Returns a pair whose guide is the diagonal of the posterior after `shape` of mean and sd, and data of it."""
    vae = linear_gaussian(2, data_dim=2 * latent_dim, latent_dim=latent_dim, scale=1.0)

    def guide(x):
        posterior = vae.posterior(x)
        loc, sd = posterior.mean, posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*shape(loc, sd)).to_event(1))

    torch.manual_seed(suite_seed())
    return SimpleNamespace(model=vae.model, guide=guide, exact=vae.log_px), draw(vae, DATA)


def found_by(pair, x, factor=1.0):
    torch.manual_seed(suite_seed(1))
    return pv.log_marginal(pair.model, pv.proposals.widened(pair.guide, factor), x, num_samples=1_000, progress=False)


def scaled(factor):
    return lambda loc, sd: (loc, factor * sd)


def factor_of(verdict):
    """Returns the factor of `widened` that comes first in a verdict's advice, or None if another remedy does."""
    found = re.search(r"take a (wider|narrower) proposal \(pv\.proposals\.widened\(guide, ([\d.]+)\)\)", verdict)
    return found and float(found[2])


@pytest.mark.parametrize(
    ("shape", "least", "most", "said"),
    [
        (scaled(0.2), 3, 12, "too narrow, or beside the posterior"),
        (scaled(0.3), 2, 8, "too narrow, or beside the posterior"),
        (scaled(0.7), 1.2, 2, "too narrow, or beside the posterior"),
        (scaled(10.0), 0.1, 0.35, "too wide"),
        (lambda loc, sd: (loc + 2 * sd * torch.tensor([1.0, 0.0, 0.0]), sd), 1.2, 3, "beside the posterior"),
    ],
    ids=["very narrow", "narrow", "hardly narrow", "wide", "beside"],
)
def test_the_factor_that_is_advised_is_enough(shape, least, most, said):
    """Of a guide five times too narrow the verdict said "widened(guide, 1.2)", and said so again when it was."""
    pair, x = with_guide(shape)
    before = found_by(pair, x)
    assert before.share_unreliable > 0.05
    factor = factor_of(before.verdict)
    assert least <= factor <= most
    assert f"The proposal is {said}" in before.diagnosis or f", or {said}" in before.diagnosis
    after = found_by(pair, x, factor)
    assert "reliable" in after.verdict
    assert abs(after.mean - pair.exact(x).double().mean()) < 0.05
    assert after.ess.median() > before.ess.median()
    assert factor_of(pv.posterior(pair.model, pair.guide, x, num_samples=1_000, progress=False).verdict)


@pytest.mark.parametrize(
    "shape",
    [
        lambda loc, sd: (loc, sd * torch.tensor([0.3, 8.0, 8.0])),
        lambda loc, sd: (loc + 1.5 * sd, 0.2 * sd),
        lambda loc, sd: (loc + 5 * sd, sd),
    ],
    ids=["narrow here and wide there", "narrow and beside", "far beside"],
)
def test_where_no_factor_is_enough_annealed_chains_come_first_after_two_rounds_at_most(shape):
    pair, x = with_guide(shape)
    found = found_by(pair, x)
    for _ in range(2):
        factor = factor_of(found.verdict)
        if factor is not None:
            found = found_by(pair, x, factor)
    assert "; take annealed_log_marginal" in found.verdict or "reliable" in found.verdict


def test_the_factor_of_a_single_datum_does_not_rest_on_one_trial():
    """In 41 dimensions one k of many factors is small by chance."""
    pair, x = with_guide(lambda loc, sd: (loc + 2 * sd, 0.5 * sd), latent_dim=20)
    torch.manual_seed(suite_seed(1))
    found = [pv.log_marginal(pair.model, pair.guide, row[None], num_samples=1_000, progress=False) for row in x[:8]]
    assert all(factor_of(one.verdict) is None for one in found)


def test_whether_a_proposal_is_narrow_or_wide_is_found_without_the_callers_random_numbers():
    pair, x = with_guide(scaled(0.3))
    torch.manual_seed(0)
    pv.log_marginal(pair.model, pair.guide, x, num_samples=1_000, progress=False)
    after = torch.rand(())
    torch.manual_seed(0)
    pv.log_marginal(pair.model, pair.guide, x, num_samples=1_000, progress=False).pareto_k.max()
    assert torch.rand(()) == after


def test_a_proposal_of_another_shape_is_called_neither_narrow_nor_wide():
    """Along the ridge of the posterior this guide is too narrow and across it too wide, in every coordinate right."""
    precision = torch.tensor([[1.0, 0.99], [0.99, 1.0]]).inverse()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision))
            pyro.sample("x", dist.Normal(0.0 * z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 0.75).to_event(1))

    torch.manual_seed(suite_seed())
    found = pv.log_marginal(model, guide, torch.zeros(30), num_samples=1_000, progress=False)
    assert found.is_unreliable.any()
    assert "narrower" not in found.verdict


def flat(posterior, log_density=lambda z: 0 * z):
    """Returns a pair whose prior is the posterior but for a factor, and whose guide is a standard normal."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", posterior)
            pyro.sample("x", dist.Exponential(log_density(z + x).double().exp()), obs=torch.zeros_like(z).double())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    return SimpleNamespace(model=model, guide=guide)


def bulk_and_tails():
    return dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.95, 0.05])), dist.Normal(torch.zeros(2), torch.tensor([0.3, 2.0]))
    )


def misfit_at(pair, x):
    """Returns the remedy where the weights are bad at all data: whether they are is not asked here."""
    found = opened(pair.model, pair.guide, (x,), None)
    return misfit_of(pair.model, pair.guide, found, torch.ones(len(x), dtype=torch.bool))


@pytest.mark.parametrize("num_data", [1, 30])
@pytest.mark.parametrize("posterior", [dist.StudentT(2.0, 0.0, 0.4), bulk_and_tails()], ids=["t2", "mixture"])
def test_a_narrow_bulk_with_heavier_tails_than_the_guides_asks_for_no_narrower_guide(posterior, num_data):
    """Of the mixture k is 1 - s^2 / 4 with a guide of sd s: 0.75 as it is, 0.84 after x 0.8 and 0.64 after x 1.2."""
    assert not misfit_at(flat(posterior), torch.zeros(num_data)).startswith(NARROWED)
    assert misfit_at(flat(dist.Normal(0.0, 0.3)), torch.zeros(num_data)).startswith(NARROWED)


def test_where_few_draws_have_the_weight_of_one_datum_their_place_says_nothing():
    """The weights are noise; one draw of one dimension is within 0.83 of the centre at 59% of all data."""
    pair = flat(dist.Normal(0.0, 1.0), lambda z: 600 * (1e5 * z.double() % 1))
    for x in torch.linspace(0, 1, 25):
        assert misfit_at(pair, x[None]) == RESCALED
