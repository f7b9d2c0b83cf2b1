"""ELBO surgery: the identity, each term against quadrature and closed form, its words about its own bias."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import KnownNoise, off_its_posterior, with_guide
from helpers import assert_within_standard_errors, draw, linear_gaussian, mean_and_error, refusal, suite_seed

import pyrovae as pv
from pyrovae.evaluation.elbo_decomposition import elbo_surgery

TERMS = ("elbo", "reconstruction", "kl", "mutual_information", "marginal_kl")


# The terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_draws", [2, 7])
def test_the_identity_holds_to_rounding_on_the_same_draws(num_draws):
    vae = off_its_posterior()
    result = elbo_surgery(vae.model, vae.guide, draw(vae, 30), num_draws=num_draws)
    elbo, reconstruction, kl, information, marginal = (getattr(result, name) for name in TERMS)
    torch.testing.assert_close(elbo.value, reconstruction.value - kl.value, rtol=0, atol=1e-10)
    torch.testing.assert_close(kl.value, information.value + marginal.value, rtol=0, atol=1e-10)
    assert elbo.mean == pytest.approx(reconstruction.mean - information.mean - marginal.mean, abs=1e-10)
    assert all(getattr(result, name).value.shape == (30,) for name in TERMS)
    assert not any(getattr(result, name).value.requires_grad for name in TERMS)


@pytest.mark.parametrize(("num_data", "latent_dim"), [(1, 1), (2, 1), (4, 1), (3, 2)])
def test_every_term_of_every_datum_is_that_of_quadrature_over_the_mixture(num_data, latent_dim):
    vae = off_its_posterior(latent_dim=latent_dim)
    x = draw(vae, num_data)
    with torch.no_grad():
        vae.guide_log_scale.add_(0.7)  # or the overlap of a component far from the rest would never be drawn
        q = vae.encode(x)
        low, high = (q.mean - 8 * q.stddev).min().item(), (q.mean + 8 * q.stddev).max().item()
        axis = torch.linspace(low, high, 4_001 if latent_dim == 1 else 501, dtype=torch.float64)
        spacing = (axis[1] - axis[0]) ** latent_dim
        grid = torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, 1, latent_dim)
        log_q_given_x, log_prior = q.log_prob(grid), vae.prior.log_prob(grid)
        density = log_q_given_x.exp() * spacing
        torch.testing.assert_close(density.sum(0), torch.ones(num_data, dtype=torch.float64), rtol=0, atol=1e-9)
        log_q = log_q_given_x.exp().mean(1, keepdim=True).log()
        truth = {
            "elbo": vae.elbo(x),
            "mutual_information": (density * (log_q_given_x - log_q)).nan_to_num().sum(0),
            "marginal_kl": (density * (log_q - log_prior)).nan_to_num().sum(0),
        }
        truth["kl"] = torch.distributions.kl_divergence(q.base_dist, vae.prior.base_dist).sum(-1)
        truth["reconstruction"] = truth["elbo"] + truth["kl"]
    torch.testing.assert_close(truth["mutual_information"] + truth["marginal_kl"], truth["kl"])
    result = elbo_surgery(vae.model, vae.guide, x, num_draws=20_000)
    for name, expected in truth.items():
        found = getattr(result, name)
        if num_data == 1 and name == "mutual_information":
            assert found.value.abs().max() < 1e-10
            continue
        assert_within_standard_errors(found.value, expected, found.standard_error, note=name)
        assert_within_standard_errors(found.mean, expected.mean(), found.monte_carlo_error, note=name)
        assert found.monte_carlo_error < 0.05


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 64, 10_000])
def test_whatever_the_chunks_it_is_the_sum_over_all_data_also_where_they_do_not_divide(chunk_size, monkeypatch):
    monkeypatch.setattr("pyrovae.evaluation.elbo_decomposition.DENSITIES_PER_DECODING", 3)
    vae, num_draws = off_its_posterior(), 3
    x = draw(vae, 11)

    def guide(x):
        q = vae.encode(x).base_dist
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", KnownNoise(*(p.expand(len(x), 2) for p in (q.loc, q.scale))).to_event(1))

    with torch.no_grad():
        q = vae.encode(x)
        noise = torch.sin(1_000 * q.mean + 7 * torch.arange(num_draws, dtype=torch.float64).view(-1, 1, 1))
        z = q.mean + 1.3 * q.stddev * noise
        log_q = q.log_prob(z.unsqueeze(2)).logsumexp(-1) - math.log(11)
        draws = {
            "reconstruction": vae.decode(z).log_prob(x),
            "kl": q.log_prob(z) - vae.prior.log_prob(z),
            "mutual_information": q.log_prob(z) - log_q,
            "marginal_kl": log_q - vae.prior.log_prob(z),
        }
    result = elbo_surgery(vae.model, guide, x, num_draws=num_draws, chunk_size=chunk_size)
    for name, values in draws.items():
        found = getattr(result, name)
        torch.testing.assert_close(found.value, values.mean(0), rtol=0, atol=1e-10)
        error = values.std(0) / math.sqrt(num_draws)
        torch.testing.assert_close(found.standard_error, error, rtol=0, atol=1e-10)
        assert found.mean == pytest.approx(values.mean().item(), abs=1e-10)


@pytest.mark.usefixtures("particles_unchecked")
def test_the_standard_errors_are_those_of_repetitions():
    vae = off_its_posterior()
    x = draw(vae, 8)
    found = [elbo_surgery(vae.model, vae.guide, x, num_draws=5) for _ in range(150)]
    for name in TERMS:
        means = torch.tensor([getattr(result, name).mean for result in found])
        stated = torch.tensor([getattr(result, name).monte_carlo_error for result in found]).square().mean().sqrt()
        assert 0.8 < means.std() / stated < 1.25, f"{name}: {means.std():.3g} of repetitions, stated {stated:.3g}"


# Bias -----------------------------------------------------------------------------------------------------------------


def test_a_guide_that_ignores_x_has_no_information_and_one_far_apart_has_log_n():
    vae = linear_gaussian(0)
    x = draw(vae, 20)
    ignoring = elbo_surgery(*with_guide(vae, lambda x: torch.zeros(len(x), 2, dtype=x.dtype), 0.4), x)
    assert ignoring.mutual_information.value.abs().max() < 1e-10
    torch.testing.assert_close(ignoring.marginal_kl.value, ignoring.kl.value)
    assert "at its ceiling" not in ignoring.bias
    apart = elbo_surgery(*with_guide(vae, lambda x: 100 * x[:, :2], 1e-3), x)
    torch.testing.assert_close(apart.mutual_information.value, torch.full((20,), math.log(20), dtype=torch.float64))
    assert apart.ceiling == pytest.approx(math.log(20))
    assert "at its ceiling log N = 3.00" in apart.bias


@pytest.mark.usefixtures("particles_unchecked")
def test_the_information_of_few_data_is_low_for_the_population_and_the_marginal_kl_high_by_as_much():
    """z ~ q(z|x), x ~ p(x) are Gaussian: I = 1/2 log det(Var z) - 1/2 log det(Var[z|x])."""
    vae = off_its_posterior(pinned=True)  # of another the few data may say nearly as much
    with torch.no_grad():
        covariance = vae.weight @ vae.weight.T + vae.scale**2 * torch.eye(5, dtype=torch.float64)
        noise = (2 * vae.guide_log_scale).exp().diag()
        spread = vae.guide_weight @ covariance @ vae.guide_weight.T + noise
        information = 0.5 * (torch.logdet(spread) - torch.logdet(noise))
        mean = vae.guide_weight @ (vae.weight @ vae.prior_mean + vae.bias) + vae.guide_bias - vae.prior_mean
        marginal = 0.5 * (spread.trace() + mean @ mean - 2 - torch.logdet(spread))
    found = {}
    for num, repeats in ((4, 50), (40, 10), (1_000, 2)):
        results = [elbo_surgery(vae.model, vae.guide, draw(vae, num), num_draws=2) for _ in range(repeats)]
        terms = torch.tensor([[r.mutual_information.mean, r.marginal_kl.mean, r.kl.mean] for r in results])
        found[num] = mean_and_error(terms.double())
    lows, highs = ([found[num][0][i].item() for num in found] for i in (0, 1))
    noise = 5 * found[40][1]  # between 40 and 1,000 data little is left to gain
    assert lows[0] < lows[1] < lows[2] + noise[0]
    assert highs[0] > highs[1] > highs[2] - noise[1]
    assert lows[0] < information - 10 * found[4][1][0]
    assert highs[0] > marginal + 10 * found[4][1][1]
    for num in (4, 40):
        assert_within_standard_errors(found[num][0][2], information + marginal, found[num][1][2], note=f"KL, N = {num}")
    assert lows[2] == pytest.approx(information.item(), abs=0.1)
    assert highs[2] == pytest.approx(marginal.item(), abs=0.1)


def test_the_bias_is_said_in_words_and_every_term_printed_with_its_error():
    vae = off_its_posterior()
    result = elbo_surgery(vae.model, vae.guide, draw(vae, 30))
    assert "mutual information is low in expectation and the marginal KL high by as much" in result.bias
    lines = str(result).splitlines()
    assert len(lines) == 7
    assert lines[-1] == result.bias
    for line, name in zip(lines[1:], TERMS, strict=False):
        term = getattr(result, name)
        assert line.split()[-3:] == [f"{term.mean:.4f}", "±", f"{term.monte_carlo_error:.2g}"]


# Any pair -------------------------------------------------------------------------------------------------------------


def test_latent_sites_that_depend_on_each_other_are_one_latent():
    """Model and guide draw z2 given z1, and the guide needs z1 in the shape of x."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(z1, 0.5).to_event(1))
            pyro.sample("x", dist.Normal(z2, 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(0.5 * x, 0.8).to_event(1))
            both = torch.cat((z1, x.expand_as(z1)), -1)
            pyro.sample("z2", dist.Normal(0.5 * (both[..., :2] + both[..., 2:]), 0.3).to_event(1))

    x = torch.randn(9, 2)
    torch.manual_seed(suite_seed(3))
    result = elbo_surgery(model, guide, x, num_draws=3)
    torch.manual_seed(suite_seed(3))  # the draws once more: 9 data in one chunk
    z1 = 0.5 * x + 0.8 * torch.randn(3, 9, 2)
    z2 = 0.5 * (z1 + x) + 0.3 * torch.randn(3, 9, 2)

    def log_q(a, b, x):
        return dist.Normal(0.5 * x, 0.8).log_prob(a).sum(-1) + dist.Normal(0.5 * (a + x), 0.3).log_prob(b).sum(-1)

    mixture = log_q(z1.unsqueeze(2), z2.unsqueeze(2), x).logsumexp(-1) - math.log(9)
    expected = (log_q(z1, z2, x) - mixture).mean(0)
    torch.testing.assert_close(result.mutual_information.value.float(), expected, rtol=1e-4, atol=1e-4)
    assert result.mutual_information.value.max() <= math.log(9) + 1e-5


def test_it_takes_labels_grey_pixels_and_any_beta():
    settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Bernoulli(allow_grey=True)}
    vae = pv.VAE((4,), condition=pv.OneHot(3), **settings)
    x, y, found = torch.rand(10, 4), torch.arange(10) % 3, []
    for beta in (1.0, 5.0):
        vae.set_beta(beta)
        torch.manual_seed(suite_seed(0))
        found.append(elbo_surgery(vae.model, vae.guide, x, y))
    assert all(torch.equal(getattr(found[0], name).value, getattr(found[1], name).value) for name in TERMS)


def test_every_datum_has_its_own_label_in_its_elbo_and_in_the_mixture():
    settings = {"latent_dim": 2, "hidden": (8,), "likelihood": pv.Gaussian(1.0), "condition": pv.Embedding()}
    vae, x, y = pv.VAE((4,), **settings), torch.randn(10, 4), 30 * torch.randn(10, 1)
    result = elbo_surgery(vae.model, vae.guide, x, y, num_draws=2_000, chunk_size=6_000)
    with torch.no_grad():
        q = vae.encode(x, y)
        z = q.sample((2_000,))
        information, error = mean_and_error(q.log_prob(z) - q.log_prob(z.unsqueeze(2)).logsumexp(-1) + math.log(10))
        reconstruction, its_error = mean_and_error(vae.decode(z, y.expand(2_000, 10, 1)).log_prob(x))
    assert information.std() > 8 * error.mean()  # the data differ, so that a mix-up would show
    for found, truth, other in (
        (result.kl, pv.diagnostics.kl_per_dimension(vae, x, y).sum(-1), 0.0),
        (result.mutual_information, information, error),
        (result.reconstruction, reconstruction, its_error),
    ):
        assert_within_standard_errors(found.value, truth, (found.standard_error**2 + other**2).sqrt())


refused = partial(refusal, elbo_surgery)


@pytest.mark.parametrize("first", [1, 5, 2_500, 5_999])
def test_a_prior_that_depends_on_the_label_is_refused_wherever_the_label_changes(first):
    """The first 2,048 of 6,000 data sorted by label share their prior: KL(q(z) || p(z)) was -0.53."""

    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(3 * y.unsqueeze(-1).to(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    x = torch.randn(6_000, 1)
    y = (torch.arange(6_000) >= first).long()
    assert refused(model, guide, x, y).startswith("p(z) must be the same for every datum")
    assert elbo_surgery(model, guide, x[:6], torch.ones(6)).kl.value.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_draws": 1}, "num_draws must be a whole number >= 2, got 1"),
        ({"chunk_size": 0}, "chunk_size must be a whole number >= 1, got 0"),
        ({"x": torch.full((3, 5), math.inf)}, "x must be finite, got inf at index (0, 0)"),
        ({"x": torch.zeros(0, 5)}, "x must hold at least one datum, got 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(change, message):
    vae = linear_gaussian(0)
    settings = dict(change)
    assert refused(vae.model, vae.guide, settings.pop("x", draw(vae, 3)), **settings) == message


@pytest.mark.parametrize("kind", ["Delta", "auxiliary", "masked"])
def test_a_guide_without_a_density_to_take_apart_is_refused(kind):
    vae = linear_gaussian(0)

    def guide(x):
        q = vae.encode(x)
        with pyro.plate("data", len(x), dim=-1):
            if kind == "auxiliary":
                pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            latent = {"Delta": dist.Delta(q.mean, event_dim=1), "masked": q.mask(torch.arange(len(x)) > 0)}.get(kind, q)
            pyro.sample("z", latent)

    message = refused(vae.model, guide, draw(vae, 6))
    assert {"masked": "the same mask"}.get(kind, kind) in message
    assert f'site "{"a" if kind == "auxiliary" else "z"}"' in message
    autoencoder = pv.VAE((3,), latent_dim=2, hidden=(), likelihood=pv.Gaussian(0.5), posterior="delta")
    assert 'site "z"' in refused(autoencoder.model, autoencoder.guide, torch.randn(4, 3))
