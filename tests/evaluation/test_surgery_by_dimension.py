"""ELBO surgery dimension by dimension: total correlation, and each dimension's own KL and share of it."""

import math
from functools import partial

import pyro
import pytest
import torch
from evaluation_pairs import KnownNoise, off_its_posterior, with_guide
from helpers import draw, linear_gaussian, mean_and_error, refusal, small_vae, suite_seed

import pyrovae as pv
from pyrovae.evaluation import latent_marginals
from pyrovae.evaluation.elbo_decomposition import elbo_surgery

refused = partial(refusal, elbo_surgery)


def by_hand(z, loc, scale, prior):
    """Total correlation, KL and shared information of each dimension at draws `(draws, N, L)`, with nothing shared."""
    density = torch.distributions.Normal(loc, scale).log_prob(z.unsqueeze(2)).exp()  # draws, N, component, L
    whole, alone = density.prod(-1).mean(2), density.mean(2)
    rest = [density[..., [i for i in range(density.shape[-1]) if i != j]].prod(-1).mean(2) for j in range(z.shape[-1])]
    shared = whole.log().unsqueeze(-1) - alone.log() - torch.stack(rest, -1).log()
    return whole.log() - alone.log().sum(-1), alone.log() - prior.log_prob(z), shared


@pytest.mark.parametrize("chunk_size", [3, None])
def test_dimensions_are_split_as_by_hand_at_the_same_draws(chunk_size, monkeypatch):
    monkeypatch.setattr("pyrovae.evaluation.elbo_decomposition.DENSITIES_PER_DECODING", 3)
    vae = linear_gaussian(0, latent_dim=3)
    x = draw(vae, 11)

    def guide(x):
        q = vae.encode(x).base_dist
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", KnownNoise(*(p.expand(len(x), 3) for p in (q.loc, q.scale))).to_event(1))

    with torch.no_grad():
        q = vae.encode(x)
        noise = torch.sin(1_000 * q.mean + 7 * torch.arange(3, dtype=torch.float64).view(-1, 1, 1))
        z = q.mean + 1.3 * q.stddev * noise
        correlation, kl, shared = by_hand(z, q.mean, q.stddev, vae.prior.base_dist)
    result = elbo_surgery(vae.model, guide, x, num_draws=3, per_dimension=True, chunk_size=chunk_size)
    pairs = [(result.total_correlation, correlation)]
    pairs += [*zip(result.dimension_kl, kl.unbind(-1), strict=True)]
    pairs += [*zip(result.dimension_shared, shared.unbind(-1), strict=True)]
    for found, values in pairs:
        torch.testing.assert_close(found.value, values.mean(0), rtol=0, atol=1e-10)
        torch.testing.assert_close(found.standard_error, values.std(0) / math.sqrt(3), rtol=0, atol=1e-10)
    total = result.total_correlation.value + sum(one.value for one in result.dimension_kl)
    torch.testing.assert_close(result.marginal_kl.value, total, rtol=0, atol=1e-10)


def test_of_a_gaussian_aggregate_the_split_is_the_closed_form(monkeypatch):
    """z = A x + c + noise is Gaussian: TC = -1/2 log det R, I_j = -1/2 log(1 - R_j^2), KL_j that of two normals."""
    monkeypatch.setattr(latent_marginals, "DEALS", 2)  # what is found by chance is not looked at here
    vae = off_its_posterior(latent_dim=3)
    with torch.no_grad():
        vae.guide_log_scale.add_(0.5)  # wide posteriors, which fewer data fill
        mixing = torch.tensor([[1.0, 0.9, 0.0], [0.0, 1.0, 0.7], [0.0, 0.0, 1.0]], dtype=torch.float64)
        vae.guide_weight.copy_(mixing @ vae.guide_weight)
        covariance = vae.weight @ vae.weight.T + vae.scale**2 * torch.eye(5, dtype=torch.float64)
        spread = vae.guide_weight @ covariance @ vae.guide_weight.T + (2 * vae.guide_log_scale).exp().diag()
        mean = vae.guide_weight @ (vae.weight @ vae.prior_mean + vae.bias) + vae.guide_bias - vae.prior_mean
        variance = spread.diagonal()
        truth = {
            "total_correlation": 0.5 * (variance.log().sum() - torch.logdet(spread)),
            "dimension_kl": 0.5 * (variance + mean**2 - 1 - variance.log()),
            "dimension_shared": 0.5 * (variance * torch.linalg.inv(spread).diagonal()).log(),
        }
    found = [elbo_surgery(vae.model, vae.guide, draw(vae, 400), num_draws=2, per_dimension=True) for _ in range(4)]
    assert truth["total_correlation"] > 0.03
    for name, expected in truth.items():
        results = [getattr(one, name) for one in found]
        means = torch.tensor([[e.mean for e in (r if isinstance(r, tuple) else (r,))] for r in results]).double()
        value, error = mean_and_error(means)
        assert (value - expected.reshape(-1)).abs().max() < 0.03 + 5 * error.max(), name


def test_independent_dimensions_share_nothing_and_one_alone_has_no_correlation():
    vae = linear_gaussian(0)
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 7, dtype=torch.float64)] * 2)
    x = torch.cat((grid, torch.zeros(49, 3, dtype=torch.float64)), 1)
    result = elbo_surgery(*with_guide(vae, lambda x: x[:, :2], 0.3), x, per_dimension=True)
    for term in (result.total_correlation, *result.dimension_shared):
        assert term.value.abs().max() < 1e-10
    one = linear_gaussian(0, latent_dim=1)
    alone = elbo_surgery(one.model, one.guide, draw(one, 6), per_dimension=True)
    assert alone.total_correlation.value.abs().max() < 1e-10
    torch.testing.assert_close(alone.dimension_kl[0].value, alone.marginal_kl.value)


def independent(num_data, noise=0.15, seed=4):
    """x = z + noise in 6 dimensions with the exact guide: q(z) = N(0, I), whose total correlation is 0."""
    eye = torch.eye(6, dtype=torch.float64)
    vae, spread = pv.LinearGaussianVAE(eye, eye[0] * 0, noise, eye[0] * 0), 1 + noise**2
    generator = torch.Generator().manual_seed(suite_seed(seed))
    x = spread**0.5 * torch.randn(num_data, 6, generator=generator, dtype=torch.float64)
    return with_guide(vae, lambda x: x / spread, noise / spread**0.5), x


@pytest.mark.parametrize("chunk_size", [None, 30])
def test_the_total_correlation_of_independent_dimensions_is_what_it_is_by_chance(chunk_size):
    pair, x = independent(100)
    torch.manual_seed(suite_seed())
    found = elbo_surgery(*pair, x, num_draws=2, per_dimension=True, chunk_size=chunk_size)
    assert found.total_correlation.mean > 3  # of which nothing is true
    assert found.total_correlation_by_chance.mean == pytest.approx(found.total_correlation.mean, abs=0.3)
    for shared, chance in zip(found.dimension_shared, found.dimension_shared_by_chance, strict=True):
        assert shared.mean > 0.8
        assert chance.mean == pytest.approx(shared.mean, abs=0.2)
    assert "The terms of dimensions are high, too" in found.bias


@pytest.mark.usefixtures("particles_unchecked")
def test_of_independent_dimensions_the_difference_to_what_is_by_chance_is_within_its_error():
    """The data are one more deal, of the same draws. The error had been that of the draws, which have no part in it."""
    torch.manual_seed(suite_seed(6))
    z, shared = [], []
    for repetition in range(40):
        pair, x = independent(40, 0.3, seed=100 + repetition)
        found = elbo_surgery(*pair, x, num_draws=6, per_dimension=True, progress=False)
        for ours, chance, kept in (
            (found.total_correlation, found.total_correlation_by_chance, z),
            (found.dimension_shared[2], found.dimension_shared_by_chance[2], shared),
        ):
            kept.append((ours.mean - chance.mean) / chance.monte_carlo_error)
    for kept in (z, shared):
        kept = torch.tensor(kept)
        assert 0.4 < kept.square().mean() < 3  # 9/7 of Student's t of nine degrees of freedom
        assert kept.mean().abs() < 4 / 40**0.5


def test_dependence_is_above_what_it_is_by_chance():
    pair, x = independent(400, 0.5)  # wide enough for so few: narrow posteriors look fully dependent either way
    x[:, 1] = x[:, 0]
    found = elbo_surgery(*pair, x, num_draws=2, per_dimension=True)
    assert found.total_correlation.mean > found.total_correlation_by_chance.mean + 0.2
    assert found.dimension_shared[0].mean > found.dimension_shared_by_chance[0].mean + 0.2


def test_what_is_found_by_chance_takes_none_of_the_callers_random_numbers():
    pair, x = independent(20)
    after, chances = [], []
    for split in (False, True, True):
        torch.manual_seed(3)
        found = elbo_surgery(*pair, x, num_draws=2, per_dimension=split)
        after.append(torch.rand(()))
        chances.append(found.total_correlation_by_chance)
    assert after[0] == after[1] == after[2]
    assert torch.equal(chances[1].value, chances[2].value)


def test_dimensions_are_printed_with_their_errors_and_only_when_asked_for():
    vae = off_its_posterior()
    x = draw(vae, 9)
    plain, split = (elbo_surgery(vae.model, vae.guide, x, per_dimension=flag) for flag in (False, True))
    assert (plain.total_correlation, plain.dimension_kl, plain.dimension_shared) == (None, (), ())
    lines = str(split).splitlines()
    assert len(lines) == len(str(plain).splitlines()) + 8
    for start, term in (
        ("total correlation  ", split.total_correlation),
        ("total correlation by chance", split.total_correlation_by_chance),
        ("I_q(z_2; the others) by chance", split.dimension_shared_by_chance[1]),
        ("KL(q(z_2) || p(z_2))", split.dimension_kl[1]),
    ):
        (line,) = (line for line in lines if line.startswith(start))
        assert line.split()[-3:] == [f"{term.mean:.4f}", "±", f"{term.monte_carlo_error:.2g}"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"posterior": "full_covariance"}, 'in the guide site "z" is MultivariateNormal'),
        ({"posterior": "flow"}, 'in the guide site "z" is FlowDistribution'),
        ({"posterior": "bernoulli"}, 'in the guide site "z" is Bernoulli'),
        ({"prior": "mixture"}, 'in the model site "z" is NormalMixture'),
        ({"posterior": pv.posteriors.Layered((2, 2), ((4,),))}, "the guide has 2 sites"),
    ],
)
def test_a_pair_whose_dimensions_are_not_known_is_refused(settings, said):
    vae = small_vae((3,), **settings)
    message = refused(vae.model, vae.guide, torch.randn(4, 3), per_dimension=True)
    assert message.startswith("per_dimension needs a guide with one latent site, a diagonal Gaussian")
    assert message.endswith(said)
    assert elbo_surgery(vae.model, vae.guide, torch.randn(4, 3)).total_correlation is None
