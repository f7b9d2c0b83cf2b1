"""Laws that every likelihood obeys, and the scales, supports and refusals of some."""

import math

import pytest
import torch
from families import LIKELIHOODS, data_of
from helpers import doubles, refusal, suite_seed

import pyrovae as pv


def test_every_likelihood_that_is_public_is_tested_here():
    named = [getattr(pv, name) for name in pv.__all__]
    public = {v for v in named if isinstance(v, type) and issubclass(v, pv.Likelihood)} - {pv.Likelihood}
    assert public == {type(make()) for make in LIKELIHOODS.values()} | {pv.Columns}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_output_bias_inverts_the_mean(name, dtype):
    likelihood = LIKELIHOODS[name]()
    mean = torch.tensor([[[0.01, 0.2, 0.4999], [0.5, 0.7, 0.99]]], dtype=dtype)
    bias = likelihood.output_bias(mean)
    assert bias.shape == likelihood.output_shape(mean.shape)
    found = likelihood(bias, event_dim=3)
    assert found.batch_shape == ()
    assert found.event_shape == mean.shape
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=3e-6 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "categorical", "beta", "discretized_logistic"])
def test_the_output_bias_is_finite_for_a_pixel_that_is_always_black_or_white(name):
    likelihood = LIKELIHOODS[name]()
    bias = likelihood.output_bias(torch.tensor([0.0, 1e-6, 1.0]))
    assert bias.isfinite().all()
    torch.testing.assert_close(likelihood(bias, 1).mean, torch.tensor([0.001, 0.001, 0.999]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_a_vae_starts_from_the_data_mean_of_each_pixel(name, network):
    mean = torch.linspace(0.05, 0.95, 16).reshape(1, 4, 4)
    settings = {"latent_dim": 2, "hidden": (3,), "network": network, "likelihood": LIKELIHOODS[name]()}
    vae = pv.VAE((1, 4, 4), **settings, data_mean=mean)
    with torch.no_grad():
        for key, parameter in vae.decoder.named_parameters():
            if "output" not in key or "weight" in key:
                parameter.zero_()
    torch.testing.assert_close(vae.sample(3, mean=True), mean.expand(3, 1, 4, 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_takes_any_leading_dimensions(name):
    likelihood, event_shape = LIKELIHOODS[name](), (2, 3)
    outputs = torch.randn(4, 5, *likelihood.output_shape(event_shape))
    x = data_of(name, 5, *event_shape)
    together = likelihood(outputs, event_dim=2)
    assert together.batch_shape == (4, 5)
    assert together.sample().shape == together.mean.shape == (4, 5, *event_shape)
    for k in range(4):
        torch.testing.assert_close(together.log_prob(x)[k], likelihood(outputs[k], event_dim=2).log_prob(x))


def test_heteroscedastic_gaussian_is_the_normal_of_the_formula():
    outputs, x = 2 * doubles(5, 2, 3, 4), doubles(5, 3, 4)
    loc, scale = outputs[:, 0], 0.1 + (1 + outputs[:, 1].exp()).log()
    expected = -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    found = pv.HeteroscedasticGaussian(min_scale=0.1)(outputs, event_dim=2)
    torch.testing.assert_close(found.log_prob(x), expected.sum((1, 2)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.variance, scale**2)


def test_the_floor_of_heteroscedastic_gaussian_bounds_the_density_of_a_constant_pixel():
    likelihood, x = pv.HeteroscedasticGaussian(min_scale=0.05), torch.zeros(1)
    bound = -math.log(0.05) - 0.5 * math.log(2 * math.pi)
    for raw in (0.0, -5.0, -50.0, -1e6):
        found = likelihood(torch.tensor([[0.0], [raw]]), event_dim=1)
        assert found.stddev.item() >= 0.05
        assert found.log_prob(x).item() <= bound + 1e-6
    assert found.log_prob(x).item() == pytest.approx(bound, abs=1e-5)


@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, None, "0.1", True])
@pytest.mark.parametrize(
    ("make", "field"),
    [
        (pv.HeteroscedasticGaussian, "min_scale"),
        (pv.DiscretizedLogistic, "scale"),
        (pv.Gaussian, "scale"),
        (pv.LogNormal, "scale"),
        (lambda value: pv.StudentT(3, value), "scale"),
    ],
)
def test_a_scale_that_is_not_a_positive_number_is_refused(make, field, value):
    assert refusal(make, value) == f"{field} must be a finite number > 0, got {value!r}"


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("continuous_bernoulli", [0.0, 0.3, 1.0], -0.25, "x must lie in [0, 1], got -0.25 at index (1, 2)"),
        ("continuous_bernoulli", [0.0, 0.3, 1.0], 1.5, "x must lie in [0, 1], got 1.5 at index (1, 2)"),
        ("categorical", [0.0, 7 / 255, 1.0], 0.5, "x must be one of the 256 grey levels k / 255, got 0.5 at index (1"),
        ("categorical", [0.0, 7 / 255, 1.0], 256 / 255, "x must be one of the 256 grey levels k / 255, got 1.00392"),
        ("discretized_logistic", [0.0, 7 / 255, 1.0], -1 / 255, "x must be one of the 256 grey levels k / 255, got -0"),
        ("discretized_logistic", [0.0, 7 / 255, 1.0], 7.0, "x must be one of the 256 grey levels k / 255, got 7 at"),
        ("log_normal", [0.1, 1.0, 1e9], 0.0, "x must be > 0 under LogNormal, got 0 at index (1, 2)"),
        ("beta", [0.1, 0.5, 0.999], 1.0, "x must lie strictly between 0 and 1 under Beta, got 1 at index (1, 2)"),
        ("beta", [0.1, 0.5, 0.999], 0.0, "x must lie strictly between 0 and 1 under Beta, got 0 at index (1, 2)"),
        ("categorical, digits", [0.0, 3.0, 4.0], 5.0, "x must be a whole number 0 ... 4 under Categorical(5), got 5"),
        ("categorical, digits", [0.0, 3.0, 4.0], -1.0, "x must be a whole number 0 ... 4 under Categorical(5), got -1"),
        ("categorical, digits", [0.0, 3.0, 4.0], 0.5, "x must be a whole number 0 ... 4 under Categorical(5), got 0.5"),
        ("poisson", [0.0, 3.0, 1e6], 0.5, "x must be a whole number >= 0 under Poisson, got 0.5 at index (1, 2)"),
        ("poisson", [0.0, 3.0, 1e6], -1.0, "x must be a whole number >= 0 under Poisson, got -1 at index (1, 2)"),
        ("negative_binomial", [0.0, 3.0, 1e6], 2.5, "x must be a whole number >= 0 under NegativeBinomial, got 2.5 at"),
    ],
)
def test_data_outside_the_support_are_refused_by_value_and_index(name, good, bad, message):
    likelihood = LIKELIHOODS[name]()
    x = torch.tensor([good, good])
    likelihood.check(x)
    x[1, 2] = bad
    assert refusal(likelihood.check, x).startswith(message)


def test_all_256_grey_levels_of_an_image_are_levels():
    x = torch.arange(256, dtype=torch.uint8).float() / 255
    for name in ("categorical", "discretized_logistic", "continuous_bernoulli"):
        LIKELIHOODS[name]().check(x)


def test_only_grey_pixels_under_a_bernoulli_have_no_density():
    grey = torch.tensor([0.0, 51 / 255])
    assert not pv.Bernoulli(allow_grey=True).has_density(grey)
    assert pv.Bernoulli(allow_grey=True).has_density(torch.tensor([0.0, 1.0]))
    for name in set(LIKELIHOODS) - {"bernoulli", "bernoulli, grey"}:
        assert LIKELIHOODS[name]().has_density(grey)
    table = pv.Columns({"grey": pv.Bernoulli(allow_grey=True), "real": pv.Gaussian(1.0)})
    assert not table.has_density(grey.flip(0))
    assert table.has_density(grey)


@pytest.mark.parametrize("name", ["discretized_logistic", "gaussian, learned"])
def test_a_learned_scale_goes_to_that_of_the_data(name):
    """The data have a known spread about a mean that stays fixed: the best scale is that spread."""
    x = (torch.full((2_000, 1), 0.5) + 0.06 * torch.randn(2_000, 1)).mul(255).round() / 255
    vae = pv.VAE((1,), latent_dim=1, hidden=(), likelihood=LIKELIHOODS[name](), data_mean=torch.tensor([0.5]))
    with torch.no_grad():
        vae.decoder.output.weight.zero_()

    def adam_of_the_scale(parameters, lr):
        return torch.optim.Adam([p for p in parameters if p is vae.likelihood.log_scale], lr)

    settings = {"epochs": 60, "lr": 0.2, "batch_size": 2_000, "schedule": "cosine", "compile": False}
    pv.fit(vae, x, **settings, seed=suite_seed(0), optimizer=adam_of_the_scale)
    # The standard deviation of a logistic is its scale times pi / sqrt(3); its best fit to a Gaussian is a little off.
    factor = math.pi / math.sqrt(3) if name == "discretized_logistic" else 1.0
    assert vae.likelihood.log_scale.exp().item() * factor == pytest.approx(0.06, rel=0.08)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_mean_is_that_of_the_draws(name):
    """`impute`, `reconstruct` and `sample(mean=True)` call it E[x|z]."""
    likelihood = LIKELIHOODS[name]()
    outputs = 0.3 + 0.2 * doubles(*likelihood.output_shape((20,)))  # a pixel's mean near 0 would need rare draws
    with torch.no_grad():
        family = likelihood.double()(outputs, event_dim=1)
        draws = family.sample((10_000,))
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - family.mean).abs() < 5.5 * error + 1e-9).all()
