"""Student's t, the log-normal, the Beta and the digits: they are normalised, and those of SciPy."""

import numpy as np
import pytest
import scipy.stats
import torch
from families import LIKELIHOODS
from helpers import assert_within_standard_errors, doubles, refusal, small_vae, unit_quadrature

import pyrovae as pv


def scipy_of(name: str, outputs: torch.Tensor):
    values = outputs.numpy()
    if name == "student":
        return scipy.stats.t(3.0, values, 0.5)
    if name == "log_normal":
        return scipy.stats.lognorm(0.5, scale=np.exp(values))
    return scipy.stats.beta(*np.exp(values))


def points_of(name: str, unit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of the support for points of (0, 1), and dx / dunit."""
    if name == "beta":
        return unit, torch.ones_like(unit)
    t = torch.logit(unit)
    if name == "log_normal":
        return t.exp(), t.exp() / (unit * (1 - unit))
    return t.sinh(), t.cosh() / (unit * (1 - unit))


@pytest.mark.parametrize("name", ["student", "log_normal", "beta"])
def test_densities_integrate_to_one_are_those_of_scipy_and_give_mean_and_draws(name):
    likelihood, num = LIKELIHOODS[name]().double(), 40_000
    outputs = 0.5 * doubles(*likelihood.output_shape((4,)))
    outputs = outputs.abs() + 0.5 if name == "beta" else outputs  # no poles at 0 and 1
    p = likelihood(outputs, event_dim=1).base_dist
    unit, weight = unit_quadrature(panels=400)
    x, slope = points_of(name, unit)
    log_density = p.log_prob(x[:, None])
    some = slice(None, None, 997)
    expected = scipy_of(name, outputs)
    np.testing.assert_allclose(log_density[some].detach(), expected.logpdf(x[some, None].numpy()), rtol=1e-6, atol=1e-6)
    mass = (weight * slope)[:, None] * log_density.exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(p.mean, torch.from_numpy(expected.mean()), rtol=1e-6, atol=1e-9)
    draws = p.sample((num,))
    assert_within_standard_errors(draws.mean(0), p.mean, draws.std(0) / num**0.5)
    for quantile in (0.2, 0.7):
        below = (draws < torch.from_numpy(expected.ppf(quantile))).double().mean(0)
        assert_within_standard_errors(below, quantile, (quantile * (1 - quantile) / num) ** 0.5)


def test_beta_in_float32_is_right_at_large_concentrations():
    outputs, x = torch.tensor([[12.0], [11.0]]), torch.tensor([0.7311])
    exact = pv.Beta()(outputs.double(), 1).log_prob(x.double())
    assert abs(pv.Beta()(outputs, 1).log_prob(x).item() - exact.item()) < 1e-3
    assert abs(torch.distributions.Beta(*outputs.exp()).log_prob(x).item() - exact.item()) > 0.01


def test_digits_have_the_masses_of_the_softmax_and_are_seen_one_hot():
    likelihood, outputs = pv.Categorical(5), doubles(7, 5, 3)
    p = likelihood(outputs, event_dim=1).base_dist
    digits = torch.arange(5, dtype=torch.float64)[:, None, None]
    mass = p.log_prob(digits).exp()
    torch.testing.assert_close(mass, outputs.softmax(1).movedim(1, 0))
    torch.testing.assert_close(p.mean, (digits * mass).sum(0))
    assert torch.equal(p.mode, outputs.argmax(1).double())
    assert set(p.sample((100,)).unique().tolist()) <= set(range(5))
    images = torch.tensor([[[[0.0, 4.0], [2.0, 2.0]]]])
    seen = likelihood.encoder_input(images, event_dim=3)
    assert seen.shape == (1, 5, 2, 2)
    assert torch.equal(seen.argmax(1, keepdim=True).float(), images)
    assert torch.equal(seen.sum(1), torch.ones(1, 2, 2))
    assert refusal(pv.Categorical, 1) == "num_categories must be a whole number >= 2, got 1"


VIEWS = {"poisson": lambda x: x.log1p(), "log_normal": lambda x: x.log(), "gaussian": lambda x: x}


@pytest.mark.parametrize("name", VIEWS)
def test_the_encoder_of_each_model_sees_the_data_as_the_likelihood_says(name):
    """VAE and VQ-VAE alike; the decoder and the density get x itself."""
    x = torch.arange(1.0, 13.0).reshape(4, 3)
    vae = small_vae((3,), likelihood=LIKELIHOODS[name]())
    assert torch.equal(vae.encode(x).mean, vae.encoder(VIEWS[name](x))[:, 0])
    sizes = {"num_tokens": 2, "num_codes": 3, "code_dim": 2, "hidden": (4,)}
    book = pv.VQVAE((3,), **sizes, likelihood=LIKELIHOODS[name]())
    expected = torch.nn.functional.rms_norm(book.encoder(VIEWS[name](x)), (2,))
    assert torch.equal(book.encoded(x), expected)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_images_of_digits_train(network):
    x = torch.randint(17, (20, 1, 8, 8)).float()
    vae = small_vae((1, 8, 8), likelihood=pv.Categorical(17), network=network)
    history = pv.fit(vae, x, epochs=1)
    assert history.loss[0] < 64 * 4
    assert vae.sample(3).max() <= 16


def test_what_does_not_fit_is_refused_by_name():
    message = "prior vamp needs a likelihood whose encoder sees x as it is, got Poisson"
    assert refusal(small_vae, likelihood=pv.Poisson(), prior=pv.priors.Vamp(torch.zeros(3, 2))) == message
    assert refusal(pv.StudentT, 1.0, 0.5) == "df must be a finite number > 1, got 1.0"

    class Own(pv.Likelihood):
        def forward(self, outputs, event_dim):
            return pv.Gaussian(1.0)(outputs, event_dim)

    message = "data_mean needs a likelihood with an output_bias, and Own has none"
    assert refusal(small_vae, likelihood=Own(), data_mean=torch.zeros(2)) == message
    message = "data_mean must be one that LogNormal can have, got -1"
    assert refusal(small_vae, likelihood=pv.LogNormal(0.5), data_mean=torch.tensor([-1.0, 2.0])) == message
    assert (
        refusal(small_vae, data_mean=torch.tensor([0.0, torch.nan]))
        == "data_mean must be finite, got nan at index (1,)"
    )
