"""Priors: their densities, and the priors and posteriors that a VAE accepts and refuses."""

import math

import pyro.distributions as dist
import pytest
import torch
from helpers import (
    assert_within_standard_errors,
    perturbed,
    refusal,
    small_vae,
    suite_seed,
)

import pyrovae as pv
from pyrovae.models import posteriors, priors


def one_dimensional():
    torch.manual_seed(suite_seed(0))
    vamp = pv.VAE((3,), latent_dim=1, hidden=(4,), likelihood=pv.Gaussian(0.5), prior=priors.Vamp(torch.randn(5, 3)))
    return {
        "standard": (priors.Standard(1), None),
        "mixture": (perturbed(priors.Mixture(1, 4)), None),
        "flow": (perturbed(priors.Flow(1)), None),
        "vamp": (vamp.prior_family, vamp.encode),
    }


@pytest.mark.parametrize("name", priors.PRIORS)
def test_a_priors_density_integrates_to_one_and_is_that_of_its_draws(name):
    prior, encode = one_dimensional()[name]
    with torch.no_grad():
        p = prior(encode)
        grid = torch.linspace(-12, 12, 20_001).unsqueeze(-1)
        mass = p.log_prob(grid).double().exp()
        assert torch.trapezoid(mass, grid[:, 0].double()).item() == pytest.approx(1, abs=1e-4)
        mean = torch.trapezoid(mass * grid[:, 0], grid[:, 0].double())
        draws = p.sample((20_000,))
    assert_within_standard_errors(draws.mean(), mean, draws.std() / math.sqrt(len(draws)))


def test_vamp_is_the_mean_of_the_posteriors_of_its_pseudo_inputs(float64):
    start = torch.rand(6, 3)
    vae = small_vae((3,), prior=priors.Vamp(start, "unit_interval"), latent_dim=2).double()
    torch.testing.assert_close(vae.prior_family.pseudo_inputs, start.clamp(0.01, 0.99))
    z = torch.randn(4, 2)
    each = torch.stack([vae.encode(u[None]).log_prob(z) for u in vae.prior_family.pseudo_inputs])
    torch.testing.assert_close(vae.prior.log_prob(z), each.logsumexp(0) - math.log(6))
    vae.prior.log_prob(z).sum().backward()
    assert vae.prior_family.unconstrained.grad.abs().sum() > 0
    assert vae.encoder.output.weight.grad.abs().sum() > 0


def test_parts_given_to_two_vaes_are_not_shared():
    prior, posterior = priors.Mixture(2), posteriors.Flow(2)
    one, two = (small_vae((3,), prior=prior, posterior=posterior) for _ in range(2))
    shared = {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in two.parameters()}
    assert not shared


@pytest.mark.parametrize("name", ["standard", "mixture", "flow"])
def test_a_prior_by_name_is_the_class_of_that_name(name):
    vae = small_vae((3,), prior=name, latent_dim=2)
    assert type(vae.prior_family) is priors.PRIORS[name]
    assert vae.prior.sample().shape == (2,)


def test_a_prior_or_posterior_of_your_own_is_one_method():
    class Student(pv.posteriors.Posterior):
        def forward(self, outputs):
            loc, log_scale = outputs.unbind(-2)
            return dist.StudentT(5.0, loc, log_scale.exp()).to_event(1)

    class Laplace(pv.priors.Prior):
        def forward(self, encode):
            return dist.Laplace(torch.zeros(2), torch.ones(2)).to_event(1)

    vae = small_vae((3,), posterior=Student(2), prior=Laplace())
    x = torch.randn(6, 3)
    pv.fit(vae, x, epochs=2, objective="dreg", num_particles=3)
    sampled = pv.log_marginal(vae.model, vae.guide, x, num_samples=20_000)
    exact, _ = pv.quadrature_log_marginal(vae.model, x, limit=12.0, num_points=401)
    assert_within_standard_errors(sampled.log_px, exact, sampled.standard_error + 0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"posterior": "gaussian"},
            f"posterior must be one of {', '.join(posteriors.POSTERIORS)}; got 'gaussian'",
        ),
        ({"posterior": posteriors.Diagonal(3)}, "posterior must be of latent_dim, 2, got one of 3"),
        (
            {"posterior": pv.Categorical(5)},  # the likelihood
            "posterior must be made as pv.posteriors.Categorical(latent_dim, num_classes), got a Categorical",
        ),
        (
            {"posterior": "relaxed_categorical"},
            "posterior must be made as pv.posteriors.RelaxedCategorical(latent_dim, num_classes), got "
            "'relaxed_categorical'",
        ),
        ({"prior": "bernoulli"}, "prior must be made as pv.priors.Bernoulli(latent_dim), got 'bernoulli'"),
        ({"prior": "normal"}, "prior must be one of standard, mixture, vamp, flow; got 'normal'"),
        ({"prior": 3}, "prior must be one of standard, mixture, vamp, flow; got 3"),
        ({"prior": priors.Mixture(3)}, "prior must have z of shape (2,), as the posterior has, got (3,)"),
        ({"prior": priors.Vamp(torch.zeros(4, 5))}, "x must have shape (batch, 2), got (4, 5)"),
        (
            {"prior": priors.Vamp(torch.zeros(4, 2)), "condition": pv.OneHot(3)},
            "a prior that is made of posteriors needs a VAE without conditions",
        ),
        ({"prior": "vamp"}, "prior vamp needs its pseudo-inputs: priors.Vamp(data.train_x[:500])"),
    ],
)
def test_parts_that_do_not_fit_a_vae_are_refused(settings, message):
    assert refusal(small_vae, **settings) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: posteriors.Flow(1, kind="autoregressive"),
            "an autoregressive flow needs at least 2 dimensions, got 1",
        ),
        (lambda: posteriors.Flow(9, hidden=(8,), kind="autoregressive"), "hidden of an autoregressive flow must be >="),
        (lambda: posteriors.Flow(2, kind="planar"), "kind must be one of coupling, autoregressive; got 'planar'"),
        (lambda: posteriors.Flow(2, num_features=0), "num_features must be a whole number >= 1, got 0"),
        (lambda: posteriors.Flow(2, 0), "num_transforms must be a whole number >= 1, got 0"),
        (lambda: posteriors.Layered((3,), ()), "latent_dims must hold the sizes of two or more layers, got (3,)"),
        (lambda: posteriors.Layered((3, 0), ((4,),)), "latent_dims must be a whole number >= 1, got 0"),
        (
            lambda: priors.Layered((3, 2), ()),
            "hidden must list the units of each of 1 networks, such as",
        ),
        (lambda: posteriors.Layered((3, 2), (32,)), "hidden must list the units of each of 1 networks"),
        (lambda: posteriors.Bernoulli(2, 0.0), "temperature must be a finite number > 0, got 0.0"),
        (lambda: posteriors.RelaxedBernoulli(2, 0.0), "temperature must be a finite number > 0, got 0.0"),
        (lambda: posteriors.RelaxedCategorical(2, 1, 0.5), "num_classes must be a whole number >= 2, got 1"),
        (lambda: posteriors.RelaxedCategorical(2, 3, -1.0), "temperature must be a finite number > 0, got -1.0"),
        (lambda: priors.RelaxedBernoulli(0, 0.5), "latent_dim must be a whole number >= 1, got 0"),
        (lambda: priors.RelaxedCategorical(2, 1, 0.5), "num_classes must be a whole number >= 2, got 1"),
        (lambda: posteriors.Categorical(2, 1), "num_classes must be a whole number >= 2, got 1"),
        (lambda: priors.Categorical(2, 1), "num_classes must be a whole number >= 2, got 1"),
        (lambda: priors.Mixture(2, 0), "num_components must be a whole number >= 1, got 0"),
        (lambda: priors.Vamp(torch.zeros(3)), "pseudo_inputs must have shape (C, *event_shape)"),
        (lambda: priors.Vamp(torch.zeros(3, 2), "simplex"), "constraint must be one of real, unit_interval"),
    ],
)
def test_parts_of_bad_sizes_are_refused(make, message):
    assert message in refusal(make)
