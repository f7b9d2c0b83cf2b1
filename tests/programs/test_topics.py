"""Latent Dirichlet allocation in miniature: topics global, shares local, assignments summed out, words inside."""

from functools import cache, partial

import pyro
import pytest
import torch
from exact import topics
from exact.topics import WORDS
from helpers import assert_within_standard_errors, mean_and_error, refusal
from scalar_pairs import assert_one_bound

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, VIMCO, DReG, ReweightedWakeSleep

DOCUMENTS = {"plate": "documents"}
EVIDENCE = topics.log_evidence(WORDS)


@cache
def bound(count: int) -> float:
    return topics.bound(WORDS, count)


def draws(objective, *programs, repeats: int = 150):
    with pyro.validation_enabled(False):
        losses = [-objective.loss(*programs, WORDS) for _ in range(repeats)]
    return mean_and_error(torch.tensor(losses, dtype=torch.float64))


@pytest.mark.parametrize(("objective", "count"), [(ELBO(4), 1), (IWAE(4), 4)], ids=str)
def test_a_bound_of_documents_is_that_by_quadrature(objective, count):
    """`documents` is the data plate: `words` lies within it, and `topics`, at the same dim, beside it."""
    mean, error = draws(objective, topics.model, topics.guide)
    assert_within_standard_errors(mean, bound(count), error)
    assert bound(1) < bound(4) < EVIDENCE


@pytest.mark.parametrize("objective", [DReG(4), VIMCO(4), ReweightedWakeSleep(4)], ids=str)
def test_other_estimators_have_the_bound_of_iwae_on_the_same_draws(objective):
    assert_one_bound(objective, IWAE(4), topics.model, topics.guide, WORDS)


def test_the_evidence_is_the_sum_over_all_assignments():
    result = pv.log_marginal(topics.model, topics.guide, WORDS, num_samples=10_000)
    assert result.log_px.shape == (1,)
    assert_within_standard_errors(result.log_px[0], EVIDENCE, result.standard_error[0])
    assert result.standard_error.item() < 0.1


# Words subsampled, and points for shares ------------------------------------------------------------------------------


@pytest.fixture
def subsampled():
    return partial(topics.model, subsample_size=2), partial(topics.guide, subsample_size=2)


def test_words_subsampled_leave_the_elbo_unbiased(subsampled):
    mean, error = draws(ELBO(2), *subsampled, repeats=200)
    assert_within_standard_errors(mean, bound(1), error)


@pytest.mark.filterwarnings("ignore:particles run one after another")
@pytest.mark.parametrize("call", [
    IWAE(4).loss, DReG(4).loss, VIMCO(4).loss, ReweightedWakeSleep(4).loss, IWAE(4, joint=True).loss,
    partial(pv.log_marginal, num_samples=10),
], ids=["iwae", "dreg", "vimco", "rws", "joint", "log_marginal"])  # fmt: skip
def test_words_subsampled_are_refused_by_all_else(call, subsampled):
    """Their N / B is inside each document's log-weight, and the log of a mean of such weights is no bound."""
    assert "words" in refusal(call, *subsampled, WORDS)


@pytest.mark.filterwarnings("ignore:particles run one after another")
def test_points_for_shares_leave_the_elbo():
    mean, error = draws(ELBO(1), topics.model, topics.guide_with_points)
    assert_within_standard_errors(mean, topics.bound_at_points(WORDS), error)
    for call in (IWAE(4).loss, DReG(4).loss, partial(pv.log_marginal, num_samples=10)):
        assert "share" in refusal(call, topics.model, topics.guide_with_points, WORDS)
