"""log p(x) of held-out data: each datum's, given what the guide has learnt of latents that the data share."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, suite_seed
from scalar_pairs import Pair

import pyrovae as pv
from pyrovae.evaluation import held_out_log_px, held_out_of

ONE = torch.ones((), dtype=torch.float64)
X = torch.linspace(-1, 2, 6, dtype=torch.float64)


def hierarchy(local: bool) -> Pair:
    """theta ~ N(0, 4), z_n ~ N(theta, 1), x_n ~ N(z_n, 1), or x_n ~ N(theta, 2) without z; q(theta) is N(0.7, 0.09)."""

    def model(x):
        theta = pyro.sample("theta", dist.Normal(0.0 * ONE, 2.0))
        with pyro.plate("data", len(x)):
            mean = pyro.sample("z", dist.Normal(theta, ONE)) if local else theta
            pyro.sample("x", dist.Normal(mean, 1.0 if local else math.sqrt(2)), obs=x)

    def guide(x):
        theta = pyro.sample("theta", dist.Normal(0.7 * ONE, 0.3))
        if local:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((theta + x) / 2, 0.8))

    return Pair(model, guide)


@pytest.mark.parametrize("local", [True, False])
def test_it_is_the_predictive_density_under_the_guides_shared_latents(local):
    found = held_out_log_px(*hierarchy(local), X, num_samples=2_000 if local else 400)
    assert found.value.shape == (6,)
    truth = dist.Normal(0.7, math.sqrt(0.09 + 2)).log_prob(X)  # theta integrated out, in closed form
    assert_within_standard_errors(found.value, truth, found.standard_error)
    assert (found.pareto_k < 0.7).all()


def test_data_in_chunks_have_the_same_densities(monkeypatch):
    monkeypatch.setattr("pyrovae.evaluation.chunks.PAIRS_PER_CHUNK", 100)
    found = held_out_log_px(*hierarchy(True), X, num_samples=2_000)
    truth = dist.Normal(0.7, math.sqrt(0.09 + 2)).log_prob(X)
    assert_within_standard_errors(found.value, truth, found.standard_error)


@pytest.mark.parametrize(
    ("local", "pairs", "num_samples"),
    [(False, 2**20, 100), (True, 2**20, 2_000), (False, 20, 50)],  # chunks take the longest
    ids=["theta", "z too", "chunks"],
)
def test_the_error_of_the_mean_knows_that_data_have_draws_in_common(local, pairs, num_samples, monkeypatch):
    """It was that of independent data, and up to nine times too small for 200 of them."""
    monkeypatch.setattr("pyrovae.evaluation.chunks.PAIRS_PER_CHUNK", pairs)
    x = torch.linspace(1, 4, 40, dtype=torch.float64)
    truth = dist.Normal(0.7, math.sqrt(0.09 + 2)).log_prob(x).mean().item()
    squares = []
    for seed in range(12):
        torch.manual_seed(suite_seed(seed))
        found = held_out_log_px(*hierarchy(local), x, num_samples=num_samples)
        squares.append(((found.mean - truth) / found.monte_carlo_error) ** 2)
    assert 0.15 < sum(squares) / len(squares) < 4  # chi-squared of 12 degrees: beyond with a chance of 1e-5


def test_a_difference_has_the_error_of_what_both_have_in_common():
    x = torch.linspace(1, 4, 40, dtype=torch.float64)
    one, two = (held_out_log_px(*hierarchy(False), x, num_samples=100) for _ in range(2))
    assert one.minus(two).monte_carlo_error == pytest.approx(math.hypot(one.error_of_mean, two.error_of_mean), rel=0.5)
    assert one.minus(one).monte_carlo_error == 0
    plain = pv.Estimate(two.value, two.standard_error)
    expected = math.hypot(one.error_of_mean, plain.monte_carlo_error)
    assert one.minus(plain).monte_carlo_error == plain.minus(one).monte_carlo_error == pytest.approx(expected)
    assert plain.minus(plain).error_of_mean is None


def test_without_shared_latents_it_is_log_marginal():
    vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2))
    found = []
    for estimate in (held_out_log_px, pv.log_marginal):
        torch.manual_seed(0)
        found.append(estimate(vae.model, vae.guide, torch.zeros(4, 3), num_samples=20).value)
    assert torch.equal(*found)


def test_a_part_of_the_data_is_the_first_of_them_and_refused_where_it_cannot_be_taken():
    assert torch.equal(held_out_of(*hierarchy(True), (X,), 4).args[0], X[:4])
    assert held_out_of(*hierarchy(True), (X,)).size == 6
    with pytest.raises(pv.InputError, match="num_data must be <= 6, the number of held-out data; got 7"):
        held_out_of(*hierarchy(True), (X,), 7)
    pair = hierarchy(True)
    told = Pair(lambda x: pair.model(x["values"]), lambda x: pair.guide(x["values"]))
    assert held_out_of(*told, ({"values": X},)).size == 6
    closed = Pair(lambda: pair.model(X), lambda: pair.guide(X))
    assert held_out_of(*closed, ()).size == 6
    with pytest.raises(pv.InputError, match="num_data must be 6, as a part of the held-out data cannot be taken"):
        held_out_of(*closed, (), 4)
