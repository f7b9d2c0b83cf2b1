"""The evaluation by several methods: every estimate is its method's own, with error, time and bits; models in pairs."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import scaled_guide
from helpers import assert_within_standard_errors, draw, linear_gaussian, suite_seed

import pyrovae as pv
from pyrovae.common.rng import derived_seed, local_seed
from pyrovae.evaluation.evaluation import evaluate

METHODS = ("elbo", "iwae_5", "is_200", "ais_6")


@pytest.fixture(scope="module")
def linear():
    vae = linear_gaussian(0)
    with local_seed(suite_seed(1)):
        x = draw(vae, 12)
    return vae, x, evaluate(vae.model, vae.guide, x, methods=METHODS, num_chains=64, seed=suite_seed(3))


def test_every_method_is_within_its_errors_of_the_truth(linear):
    vae, x, evaluation = linear
    assert [one.method for one in evaluation.measured] == list(METHODS)
    truth = {"elbo": vae.elbo(x), "is_200": vae.log_px(x), "ais_6": vae.log_px(x)}
    for method, exact in truth.items():
        estimate = evaluation[method].estimate
        assert_within_standard_errors(estimate.value, exact, estimate.standard_error, note=method)


@pytest.fixture
def shorter_pilots(monkeypatch):
    monkeypatch.setattr("pyrovae.evaluation.annealed_chains.PILOT_TRANSITIONS", 10)
    monkeypatch.setattr("pyrovae.evaluation.annealed_chains.PILOT_WARMUP", 5)


@pytest.mark.usefixtures("shorter_pilots")
def test_a_mode_that_the_guide_has_missed_is_found_by_annealing_from_the_prior_alone():
    """Importance sampling and annealing from the guide agree, yet both are low by log 2, with small k and errors."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 0.3).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.sqrt(), 0.15).to_event(1))

    x = torch.tensor([[2.0], [2.5]])
    exact, _ = pv.quadrature_log_marginal(model, x)
    methods = ("is_2000", "ais_5", "ais_prior_15")
    found = evaluate(model, guide, x, methods=methods, num_chains=2_000)
    for method in methods[:2]:
        estimate = found[method].estimate
        half = exact - math.log(2)
        assert_within_standard_errors(estimate.value, half, estimate.standard_error.clamp(min=0.01), note=method)
    assert found["is_2000"].estimate.pareto_k.max() < 0.7
    assert "reliable as far as its own draws can tell" in found.verdict
    estimate = found["ais_prior_15"].estimate
    assert_within_standard_errors(estimate.value, exact, estimate.standard_error)
    assert estimate.standard_error.max() < 0.15
    assert found.best.method == "ais_prior_15"


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
    pairs = (vae, [1.2, 1.2]), (other, [1.1, 1.4])
    one, two = (evaluate(v.model, scaled_guide(v, wider), x, methods=["is_500"]) for v, wider in pairs)
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


def near(vae, step):
    """Returns the model with weights that differ by `step`, and one guide for both models."""
    other = pv.LinearGaussianVAE(vae.weight.detach() * (1 + step), vae.bias.detach(), 0.7, vae.prior_mean)
    return other, scaled_guide(vae, [1.2, 1.2])


PAIRED = ("elbo", "iwae_5", "is_100", "ais")
REPETITIONS = 120


@pytest.fixture(scope="module")
def differences():
    """Returns the differences of two nearly equal models, with one seed for both and with two.

    The rows of the data share no draws: three data given 120 times are 120 repetitions.
    """
    vae = linear_gaussian(0)
    with local_seed(1):
        x = draw(vae, 3).repeat(REPETITIONS, 1)
    other, guide = near(vae, 5e-4)

    def estimates(model, seed):
        found = evaluate(model, guide, x, methods=PAIRED[:3], seed=suite_seed(seed))
        with local_seed(suite_seed(seed)):
            settings = {"num_distributions": 3, "num_chains": 16, "num_leapfrog": 2, "start": "guide"}
            annealed = pv.annealed_log_marginal(model, guide, x, **settings)
        return {**{method: found[method].estimate for method in PAIRED[:3]}, "ais": annealed}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrovae.evaluation.annealed_chains.PILOT_TRANSITIONS", 3)
        patch.setattr("pyrovae.evaluation.annealed_chains.PILOT_WARMUP", 1)
        ours, same, another = (estimates(*run) for run in ((vae.model, 0), (other.model, 0), (other.model, 1)))
    return [{method: ours[method].minus(theirs[method]) for method in PAIRED} for theirs in (same, another)]


@pytest.mark.parametrize("method", PAIRED)
@pytest.mark.parametrize("kind", ["one seed", "two seeds"])
def test_the_error_of_a_difference_is_that_of_repetitions_whether_or_not_draws_are_shared(differences, method, kind):
    """With one seed, the error was that of two independent estimates: 180 times too large."""
    found = differences[kind == "two seeds"][method]
    values, errors = (one.view(REPETITIONS, -1) for one in (found.value, found.standard_error))
    stated = errors.square().sum(1).mean().sqrt() / errors.shape[1]
    assert 0.7 < values.mean(1).std() / stated < 1.4  # 120 repetitions have an error of 6%
    assert 0.8 < (values.var(0).mean() / errors.square().mean()).sqrt() < 1.25


@pytest.mark.parametrize("method", PAIRED)
def test_shared_draws_tell_near_equal_models_apart(differences, method):
    shared, apart = (kind[method].standard_error.view(REPETITIONS, -1) for kind in differences)
    # 46 times for AIS: a proposal may be accepted for one model alone.
    assert apart.square().sum(1).sqrt().mean() > 20 * shared.square().sum(1).sqrt().mean()


def test_a_difference_of_differences_is_paired_and_without_groups_independent():
    groups = torch.tensor([[0.3, 0.1], [-0.1, 0.1], [-0.2, -0.2]])
    one = pv.Estimate(torch.ones(2), torch.full((2,), 0.3), influences=groups)
    assert torch.equal(one.minus(one).standard_error, torch.zeros(2))
    twice = one.minus(pv.Estimate(torch.zeros(2), torch.zeros(2), influences=-groups))
    torch.testing.assert_close(twice.standard_error, (1.5 * (2 * groups).square().sum(0)).sqrt())
    torch.testing.assert_close(twice.minus(one).standard_error, (1.5 * groups.square().sum(0)).sqrt())
    known = one.minus(pv.Estimate(torch.zeros(2), torch.full((2,), 0.4)))
    torch.testing.assert_close(known.standard_error, torch.full((2,), 0.5))
    single = pv.Estimate(torch.ones(2), torch.full((2,), math.nan), influences=torch.zeros(1, 2))
    assert single.minus(single).standard_error.isnan().all()


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


PIXELS = torch.tensor([[[True, False], [True, False]], [[True, True], [False, False]], [[True, True], [True, True]]])
MASKS = {
    "none": (lambda fn: fn.to_event(2), 12),
    "half of the pixels of every datum": (lambda fn: fn.mask(PIXELS[0]).to_event(2), 6),
    "pixels that differ between data": (lambda fn: fn.mask(PIXELS).to_event(2), 8),
    "of columns": (lambda fn: fn.to_event(1).mask(PIXELS[:, 0]).to_event(1), 10),
    "whole data": (lambda fn: fn.to_event(2).mask(PIXELS[:, 1, 1]), 4),
    "twice": (lambda fn: fn.mask(PIXELS).to_event(2).mask(PIXELS[:, 0, 1]), 6),
    "everything": (lambda fn: fn.mask(False).to_event(2), 0),
}


@pytest.mark.parametrize("where", ["of the distribution", "of a handler"])
@pytest.mark.parametrize("name", MASKS)
def test_bits_are_per_dimension_that_is_observed(name, where):
    """A fair coin is one bit whatever a mask leaves out; with half of the pixels masked it was 0.5."""
    masked, num_observed = MASKS[name]

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            fn = dist.Bernoulli(0.5 * torch.ones(len(x), 2, 2))
            if where == "of a handler" and name == "whole data":
                with pyro.poutine.mask(mask=PIXELS[:, 1, 1]):
                    pyro.sample("x", fn.to_event(2), obs=x)
            else:
                pyro.sample("x", masked(fn), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    x = (torch.rand(3, 2, 2) > 0.5).float()
    found = evaluate(model, guide, x, methods=["elbo", "is_50"])
    assert found.event_size == pytest.approx(num_observed / 3)
    for row in found.rows():
        assert row["nats"] == pytest.approx(-num_observed / 3 * math.log(2), abs=1e-6)
        assert row["bits_per_dimension"] == (pytest.approx(1.0) if num_observed else None)


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
