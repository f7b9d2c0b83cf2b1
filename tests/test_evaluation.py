"""The front of all estimates: each is its method's own, with errors, times and bits, and models compared in pairs."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, draw, linear_gaussian, suite_seed
from test_marginal import scaled_guide

import pyrovae as pv
from pyrovae.evaluation import evaluate
from pyrovae.rng import derived_seed, local_seed

METHODS = ("elbo", "iwae_5", "is_200", "ais_20")


@pytest.fixture(scope="module")
def linear():
    vae = linear_gaussian(0)
    with local_seed(suite_seed(1)):
        x = draw(vae, 12)
    return vae, x, evaluate(vae.model, vae.guide, x, methods=METHODS, num_chains=8, seed=suite_seed(3))


def test_every_method_is_within_its_errors_of_the_truth(linear):
    vae, x, evaluation = linear
    assert [one.method for one in evaluation.measured] == list(METHODS)
    truth = {"elbo": vae.elbo(x), "is_200": vae.log_px(x), "ais_20": vae.log_px(x)}
    for method, exact in truth.items():
        estimate = evaluation[method].estimate
        assert_within_standard_errors(estimate.value, exact, estimate.standard_error, note=method)


def test_a_mode_that_the_guide_has_missed_is_found_by_annealing_from_the_prior_alone():
    """Importance sampling and annealing from the guide agree, and are both low by log 2, with small k and errors."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 0.3).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.sqrt(), 0.15).to_event(1))

    x = torch.tensor([[2.0], [2.5]])
    exact, _ = pv.quadrature_log_marginal(model, x)
    methods = ("is_2000", "ais_30", "ais_prior_60")
    found = evaluate(model, guide, x, methods=methods, num_chains=200)
    for method in methods[:2]:
        estimate = found[method].estimate
        half = exact - math.log(2)
        assert_within_standard_errors(estimate.value, half, estimate.standard_error.clamp(min=0.01), note=method)
    assert found["is_2000"].estimate.pareto_k.max() < 0.7
    assert "which its own draws cannot tell" in found.verdict
    estimate = found["ais_prior_60"].estimate
    assert_within_standard_errors(estimate.value, exact, estimate.standard_error)
    assert estimate.standard_error.max() < 0.15
    assert found.best.method == "ais_prior_60"


def test_each_method_has_its_own_random_numbers_whatever_runs_beside_it(linear):
    vae, x, evaluation = linear
    alone = evaluate(vae.model, vae.guide, x, methods=["is_200"], seed=suite_seed(3))
    assert torch.equal(alone["is_200"].estimate.value, evaluation["is_200"].estimate.value)
    with local_seed(derived_seed(suite_seed(3), "is_200")):
        own = pv.log_marginal(vae.model, vae.guide, x, num_samples=200)
    assert torch.equal(own.value, alone["is_200"].estimate.value)
    state = torch.get_rng_state()
    other = evaluate(vae.model, vae.guide, x, methods=["is_200"], seed=suite_seed(4))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(other["is_200"].estimate.value, own.value)


def test_the_table_has_every_number(linear):
    _, _, evaluation = linear
    rows = json.loads(json.dumps(evaluation.rows(), allow_nan=False))
    for row, one in zip(rows, evaluation.measured, strict=True):
        assert row["nats"] == pytest.approx(one.estimate.mean)
        assert row["bits_per_dimension"] is None  # continuous and not dequantised: there is none
        assert row["seconds"] > 0
        for text in (str(evaluation), evaluation.table("github")):
            assert f"{row['nats']:.3f}" in text
            assert "bits" not in text
    assert "<table>" in evaluation._repr_html_()


def test_the_best_is_the_largest_lower_bound_and_the_verdict_says_so(linear):
    _, _, evaluation = linear
    largest = max(evaluation.rows(), key=lambda row: row["nats"])["method"]
    assert evaluation.best.method == largest
    assert f"the best is {largest}" in evaluation.verdict
    assert "is_200: " in evaluation.verdict


def test_two_models_on_the_same_data_are_compared_datum_by_datum():
    vae, other = linear_gaussian(0), linear_gaussian(0, scale=0.8)
    x = draw(vae, 200)
    one, two = (evaluate(v.model, scaled_guide(v, [1.2, 1.2]), x, methods=["is_500"]) for v in (vae, other))
    difference = one.difference(two, "is_500")
    exact = vae.log_px(x).detach() - other.log_px(x).detach()
    assert_within_standard_errors(difference.value, exact, difference.standard_error)
    paired, apart = (
        difference.data_error,
        math.hypot(one["is_500"].estimate.data_error, two["is_500"].estimate.data_error),
    )
    assert paired == pytest.approx(exact.std().item() / math.sqrt(200), rel=0.05)
    assert paired < 0.5 * apart
    with pytest.raises(pv.InputError, match="both must be of the same data, got 200 and 3"):
        one.difference(evaluate(vae.model, vae.guide, x[:3], methods=["is_500"]), "is_500")


@pytest.mark.parametrize("kind", ["binary", "dequantised"])
def test_bits_per_dimension(kind):
    likelihood = pv.Bernoulli() if kind == "binary" else pv.ContinuousBernoulli()
    vae = pv.VAE((1, 4, 4), latent_dim=2, hidden=(3,), likelihood=likelihood)
    x = torch.rand(5, 1, 4, 4)
    x = (x > 0.5).float() if kind == "binary" else x
    evaluation = evaluate(vae.model, vae.guide, x, methods=["elbo", "is_50"], dequantised=kind == "dequantised")
    for row in evaluation.rows():
        # A uniform byte costs 8 bits, and is a density of 1 on [0, 1] once it is dequantised.
        expected = -row["nats"] / (16 * math.log(2)) + (8 if kind == "dequantised" else 0)
        assert row["bits_per_dimension"] == pytest.approx(expected)
        assert f"{expected:.4f}" in evaluation.table()


@pytest.mark.parametrize("methods", [["elbo"], ["iwae_5"], ["is_50"], ["ais_3"]])
def test_grey_pixels_have_no_log_px_nor_bits_by_any_method(methods):
    vae = pv.VAE((1, 4, 4), latent_dim=2, hidden=(3,), likelihood=pv.Bernoulli(allow_grey=True))
    x = (torch.rand(3_000, 1, 4, 4) > 0.5).float()
    x[-1] = 0.5  # one image of many, and not among the first
    with pytest.raises(pv.InputError, match=r"log p.x. does not exist .* cross-entropy"):
        evaluate(vae.model, vae.guide, x, methods=methods)


def test_a_vae_is_evaluated_at_beta_one():
    torch.manual_seed(suite_seed(0))
    vae = pv.VAE((2,), latent_dim=2, hidden=(3,), likelihood=pv.Gaussian(0.5), beta=1.0)
    x = torch.randn(4, 2)
    methods = METHODS[:3]  # annealing has a test of its own
    plain = evaluate(vae.model, vae.guide, x, methods=methods)
    vae.set_beta(7.0)
    weighed = evaluate(vae.model, vae.guide, x, methods=methods)
    for method in methods:
        assert torch.equal(plain[method].estimate.value, weighed[method].estimate.value), method
