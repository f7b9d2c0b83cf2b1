"""Inference gaps against their closed forms, refusals, and warnings if q* was not found."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, correlated, draw, linear_gaussian, refusal, suite_seed

import pyrovae as pv
from pyrovae.evaluation import best_gaussian, inference_gap
from pyrovae.evaluation.inference_gap import inference_gaps
from pyrovae.models.gaussian_distributions import IsotropicNormal

SLACK = 2e-3  # nats that q* may lack: the optimisation stops at steps of a finite size
EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture
def full_search():
    """The search takes as many steps as users' own."""


@pytest.fixture(autouse=True)
def _short_search(request, monkeypatch):
    """It looks at the ELBO more often, and so ends in a third of its steps; more draws make up for them."""
    if "full_search" not in request.fixturenames:
        fit, more = best_gaussian.fit_best_gaussian, {"num_draws": 100}
        monkeypatch.setattr(best_gaussian, "STEPS_PER_ROUND", 8)
        monkeypatch.setattr(
            inference_gap, "fit_best_gaussian", lambda *args, **kwargs: fit(*args, **{**kwargs, **more})
        )


def perturbed(vae, shift=0.3, slope=0.1, narrower=0.3):
    with torch.no_grad():
        vae.guide_bias.add_(shift)
        vae.guide_weight.add_(slope * torch.randn_like(vae.guide_weight))
        vae.guide_log_scale.sub_(narrower)
    return vae


@torch.no_grad()
def truth(vae, x):
    """Returns log p(x), the ELBO of the best diagonal Gaussian and that of the guide; a new instance has the best."""
    best = pv.LinearGaussianVAE(vae.weight, vae.bias, vae.scale.item(), vae.prior_mean)
    return vae.log_px(x), best.elbo(x), vae.elbo(x)


@torch.no_grad()
def exact_elbo(vae, x, loc, scale):
    """Returns log p(x) - KL(N(loc, scale^2) || p(z|x)), by the formula for two Gaussians."""
    p = vae.posterior(x)
    mine = dist.MultivariateNormal(loc, covariance_matrix=scale.square().diag_embed())
    return vae.log_px(x) - torch.distributions.kl_divergence(mine, p)


def assert_close_to(found, expected, slack=SLACK, note=""):
    """Asserts that each datum's estimate, and their mean, is right within five standard errors and the slack."""
    assert_within_standard_errors(found.value, expected, found.standard_error + slack / 5, note=note)
    assert_within_standard_errors(found.mean, expected.mean(), found.monte_carlo_error + slack / 5, note=note)


# Closed form ----------------------------------------------------------------------------------------------------------


NEAR_AND_WIDE = {"shift": 0.05, "slope": 0.02, "narrower": -0.2}


@pytest.mark.parametrize(  # each change with one number of latents
    ("seed", "latent_dim", "change"), [(0, 1, {}), (1, 2, NEAR_AND_WIDE), (3, 4, {"shift": 4.0})]
)
def test_the_gaps_of_a_perturbed_guide_are_those_of_the_closed_form(seed, latent_dim, change, full_search):
    torch.manual_seed(0)  # at every base seed: how near the optimiser comes is for these models and data
    vae = perturbed(linear_gaussian(seed, latent_dim=latent_dim, pinned=True), **change)
    x = draw(vae, 6)
    torch.manual_seed(suite_seed(1))
    log_px, best, own = truth(vae, x)
    gaps = inference_gaps(vae.model, vae.guide, x, log_px=vae.log_px(x), num_final_draws=2_000)
    assert gaps.converged
    assert_close_to(gaps.total, log_px - own, slack=0, note="total")
    assert_close_to(gaps.approximation, log_px - best, note="approximation")
    assert_close_to(gaps.amortisation, best - own, note="amortisation")
    torch.testing.assert_close(gaps.total.value, gaps.approximation.value + gaps.amortisation.value, **EXACT)
    # Without Monte Carlo: q* itself is the optimum, in nats and in its parameters, m(x) and 1 / P_jj.
    lacking = best - exact_elbo(vae, x, gaps.loc, gaps.scale)
    assert lacking.min() > -1e-9
    assert lacking.max() < SLACK
    precision = vae._posterior_parts()[2].diagonal().detach()
    assert ((gaps.loc - vae.posterior(x).mean) * precision.sqrt()).abs().max() < 0.1
    assert (gaps.scale.square() * precision - 1).abs().max() < 0.1


def test_the_amortisation_gap_of_the_best_guide_is_zero_and_the_approximation_gap_that_of_the_correlations():
    vae = correlated()
    x = draw(vae, 20)
    gaps = inference_gaps(vae.model, vae.guide, x, log_px=vae.log_px(x))
    precision = vae._posterior_parts()[2].detach()
    approximation = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert approximation > 0.2
    # On the same draws: what the two ELBOs have in common cancels.
    assert gaps.amortisation.monte_carlo_error < 0.1 * gaps.elbo.monte_carlo_error
    assert gaps.amortisation.value.abs().max() < 0.02
    assert abs(gaps.amortisation.mean) < SLACK
    assert_close_to(gaps.approximation, approximation.expand(20))


def test_where_the_posterior_is_diagonal_and_the_guide_right_both_gaps_are_nothing_without_noise(full_search):
    """Every log-weight is log p(x): the path-derivative gradient is exactly 0, and q* stays where it was."""
    weight = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q
    vae = pv.LinearGaussianVAE(weight, torch.zeros(5, dtype=torch.float64), 0.5)
    x = draw(vae, 4)
    gaps = inference_gaps(vae.model, vae.guide, x, log_px=vae.log_px(x), num_steps=300)
    for gap in (gaps.total, gaps.approximation, gaps.amortisation):
        torch.testing.assert_close(gap.value, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-6)
        assert gap.standard_error.max() < 1e-6


def test_a_posterior_that_is_no_gaussian_against_a_search_by_quadrature():
    """One latent: the ELBO of N(m, s^2) is an integral, and its best over a grid of (m, s) takes no gradient."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).to(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + 0.3 * z**2, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.2 * x + 0.1, 0.6 * torch.ones_like(x)).to_event(1))

    x = torch.tensor([[0.2], [0.8], [2.0]], dtype=torch.float64)
    fine = torch.linspace(-7, 7, 401, dtype=torch.float64)
    axis = fine[::8]  # the ELBO's integrand is a polynomial under a Gaussian, for which this is near to exact
    spacing, standard = fine[1] - fine[0], dist.Normal(0.0, 1.0)
    weights = standard.log_prob(axis).exp() * 8 * spacing
    m = torch.linspace(-0.5, 1.5, 101, dtype=torch.float64).view(-1, 1, 1)
    s = torch.linspace(0.1, 0.8, 71, dtype=torch.float64).view(-1, 1)

    def log_p(z, datum):
        likelihood = dist.Normal(z + 0.3 * z**2, 0.5).log_prob(datum)
        return standard.log_prob(z) + likelihood

    def elbo(m, s, datum):
        return (weights * log_p(m + s * axis, datum)).sum(-1) + (
            s.log() + 0.5 * math.log(2 * math.pi * math.e)
        ).squeeze(-1)

    best = torch.stack([elbo(m, s, datum).max() for datum in x])
    own = torch.stack([elbo(0.2 * d + 0.1, torch.tensor([0.6]).double(), d).squeeze() for d in x])
    log_px = torch.stack([(log_p(fine, datum).exp() * spacing).sum().log() for datum in x])
    gaps = inference_gaps(model, guide, x, num_final_draws=20_000, num_samples=20_000)
    assert (log_px - best).min() > 0.001
    assert_close_to(gaps.total, log_px - own, slack=0)
    assert_close_to(gaps.amortisation, best - own)
    assert_close_to(gaps.approximation, log_px - best)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_the_stated_errors_are_those_of_repetitions():
    """The data of a chunk share no draws: 60 copies of one datum are 60 repetitions."""
    vae = perturbed(linear_gaussian(0))
    x = draw(vae, 1).expand(60, -1)
    log_px = pv.Estimate(vae.log_px(x).detach(), torch.full((60,), 0.2, dtype=torch.float64))
    gaps = inference_gaps(vae.model, vae.guide, x, log_px=log_px, num_final_draws=40)
    for name in ("elbo", "best_elbo", "total", "approximation", "amortisation"):
        found = getattr(gaps, name)
        stated = found.standard_error.square().mean()
        if name in ("total", "approximation"):
            stated = stated - 0.2**2  # the log p(x) of all repetitions is the same
        ratio = (found.value.var() / stated).sqrt()
        assert 0.65 < ratio < 1.45, f"{name}: {ratio:.3g}"


def test_log_px_is_estimated_where_it_is_not_given():
    vae = perturbed(linear_gaussian(1), shift=0.1, slope=0.03, narrower=-0.3)  # wider: the weights have a variance
    x = draw(vae, 8)
    log_px, best, own = truth(vae, x)
    gaps = inference_gaps(vae.model, vae.guide, x, num_samples=20_000)
    assert isinstance(gaps.log_px, pv.MarginalLikelihood)
    assert gaps.log_px.num_samples == 20_000
    assert (gaps.total.standard_error > gaps.log_px.standard_error).all()
    for gap, expected in ((gaps.total, log_px - own), (gaps.approximation, log_px - best)):
        assert_close_to(gap, expected)


def test_a_search_cut_short_says_so_and_its_gap_is_a_lower_bound():
    vae = perturbed(linear_gaussian(0), shift=8.0)
    x = draw(vae, 5)
    log_px, best, own = truth(vae, x)
    with pytest.warns(UserWarning, match="still improving after num_steps"):
        gaps = inference_gaps(vae.model, vae.guide, x, log_px=log_px, num_steps=25)
    assert not gaps.converged
    assert "still improving after num_steps" in str(gaps)
    assert 0 < gaps.amortisation.mean < (best - own).mean() - 1
    assert gaps.approximation.mean > (log_px - best).mean() + 1


def test_a_search_that_makes_it_worse_keeps_the_guides_own():
    vae = linear_gaussian(0)
    x = draw(vae, 5)
    with pytest.warns(UserWarning, match="still improving"):
        gaps = inference_gaps(vae.model, vae.guide, x, log_px=vae.log_px(x), lr=50.0, num_steps=25)
    torch.testing.assert_close(gaps.loc, vae.encode(x).mean)
    assert (gaps.amortisation.value == 0).all()


def test_a_small_gap_is_not_taken_for_none():
    """The gain is 0.02 nats, as large as the noise of the test that decides if q* is worse than the guide's own."""
    vae = linear_gaussian(0)
    with torch.no_grad():
        vae.guide_bias[0] += 0.2 * vae.guide_log_scale[0].exp()
    x = draw(vae, 60)
    log_px, best, own = truth(vae, x)
    assert 0.015 < (best - own).min() < (best - own).max() < 0.025
    gaps = inference_gaps(vae.model, vae.guide, x, log_px=log_px)
    assert (gaps.loc != vae.encode(x).mean).double().mean() > 0.95
    assert_within_standard_errors(gaps.amortisation.mean, 0.02, gaps.amortisation.monte_carlo_error + SLACK / 5)


def test_an_elbo_that_is_not_a_number_is_refused():
    vae = linear_gaussian(0)
    x = draw(vae, 3)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            loc = torch.where(x[:, :1] == x[1, 0], math.nan, vae.decode(z).mean)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False).to_event(1), obs=x)

    found = refused(model, vae.guide, x, log_px=torch.zeros(3), num_steps=25)
    assert found == "the ELBO of the guide must be finite, got nan at index (1,)"


# Any pair -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [30, 100])
def test_each_datum_has_its_own_gap_also_where_chunks_do_not_divide(chunk_size, monkeypatch):
    monkeypatch.setattr(inference_gap, "DATA_PER_CHUNK", 2)
    vae = perturbed(linear_gaussian(0), shift=0.5)
    x = draw(vae, 3) * torch.tensor([[1.0], [3.0], [0.2]], dtype=torch.float64)
    log_px, best, own = truth(vae, x)
    settings = {"num_final_draws": 200, "num_draws": 16, "chunk_size": chunk_size}
    gaps = inference_gaps(vae.model, vae.guide, x, log_px=log_px, **settings)
    assert gaps.loc.shape == gaps.scale.shape == (3, 2)
    assert_close_to(gaps.amortisation, best - own, slack=5e-3)
    assert_close_to(gaps.approximation, log_px - best, slack=5e-3)


def test_a_vae_of_networks_keeps_its_parameters_and_gets_its_gaps_at_beta_one():
    torch.manual_seed(suite_seed(0))
    vae = pv.VAE((3,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5), condition=pv.OneHot(2), beta=4.0)
    x, y = torch.randn(4, 3), torch.arange(4) % 2
    before = [p.detach().clone() for p in vae.parameters()]
    log_px, error = pv.quadrature_log_marginal(vae.model, x, y)
    assert error.max() < 1e-3
    with torch.no_grad():
        gaps = inference_gaps(vae.model, vae.guide, x, y, log_px=log_px)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, vae.parameters(), strict=True))
    assert (gaps.amortisation.value > -5 * gaps.amortisation.standard_error - SLACK).all()
    assert gaps.amortisation.mean > 5 * gaps.amortisation.monte_carlo_error
    assert (gaps.approximation.value > -5 * gaps.approximation.standard_error - 1e-5).all()
    bound = pv.importance_bound(vae.model, vae.guide, x, y, num_particles=1, num_repeats=2_000)
    error = (gaps.elbo.standard_error.square() + bound.standard_error.square()).sqrt()
    assert_within_standard_errors(gaps.elbo.value, bound.value, error)
    assert not any(term.value.requires_grad for term in (gaps.total, gaps.approximation, gaps.amortisation))
    assert not gaps.loc.requires_grad


# Refusals -------------------------------------------------------------------------------------------------------------


refused = partial(refusal, inference_gaps)


@pytest.mark.parametrize(
    ("family", "named"),
    [
        (lambda q: dist.MultivariateNormal(q.mean, q.variance.diag_embed()), "MultivariateNormal, event_dim 1"),
        (lambda q: dist.LogNormal(q.mean, q.stddev).to_event(1), "LogNormal, event_dim 1"),
        (lambda q: dist.Laplace(q.mean, q.stddev).to_event(1), "Laplace, event_dim 1"),
        (lambda q: IsotropicNormal(q.mean, torch.zeros_like(q.mean[0, 0])).to_event(1), "IsotropicNormal, event_dim 1"),
    ],
)
def test_a_guide_that_is_no_diagonal_gaussian_is_refused_before_log_px_is_estimated(family, named, monkeypatch):
    monkeypatch.setattr("pyrovae.evaluation.inference_gap.log_marginal", None)
    vae = linear_gaussian(0)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family(vae.encode(x).base_dist))

    message = refused(vae.model, guide, draw(vae, 3))
    assert message == f"the guide must have one latent site, Normal(...).to_event(1), got {{'z': '{named}'}}"


def latents(event_dims):
    """Returns a pair with standard normal sites, which hold two numbers each if they are vectors."""
    normals = {name: dist.Normal(torch.zeros([2] * dims), 1.0).to_event(dims) for name, dims in event_dims.items()}
    return [pyro.sample(name, normal) for name, normal in normals.items()]


@pytest.mark.parametrize("event_dims", [{"z1": 1, "z2": 1}, {"z": 0}])
def test_two_latent_sites_are_refused_and_so_is_a_latent_that_is_no_vector(event_dims):
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z, *_ = latents(event_dims)
            loc = z if "z1" in event_dims else z.unsqueeze(-1) * torch.ones(2)
            pyro.sample("x", dist.Normal(loc, 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            latents(event_dims)

    found = ", ".join(f"'{name}': 'Normal, event_dim {event_dim}'" for name, event_dim in event_dims.items())
    message = refused(model, guide, torch.randn(3, 2))
    assert message == f"the guide must have one latent site, Normal(...).to_event(1), got {{{found}}}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 24}, "num_steps must be a whole number >= 25, got 24"),
        ({"num_draws": 0}, "num_draws must be a whole number >= 1, got 0"),
        ({"num_final_draws": 1}, "num_final_draws must be a whole number >= 2, got 1"),
        ({"lr": 0}, "lr must be a finite number > 0, got 0"),
        ({"chunk_size": 0}, "chunk_size must be a whole number >= 1, got 0"),
        ({"log_px": 3.0}, "log_px must be a tensor, an Estimate or None, got float"),
        ({"log_px": torch.zeros(3, 1)}, "log_px must have shape (3,), got (3, 1)"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    vae = linear_gaussian(0)
    assert refused(vae.model, vae.guide, draw(vae, 3), **settings) == message


def test_grey_pixels_and_an_autoencoder_have_no_gaps():
    settings = {"latent_dim": 2, "hidden": (8,)}
    grey = pv.VAE((4,), likelihood=pv.Bernoulli(allow_grey=True), **settings)
    assert "cross-entropy" in refused(grey.model, grey.guide, torch.rand(6, 4), log_px=torch.zeros(6))
    point = pv.VAE((4,), likelihood=pv.Gaussian(0.5), posterior="delta", **settings)
    assert 'site "z"' in refused(point.model, point.guide, torch.rand(6, 4))
