"""Annealed chains for pairs with other supports, several latent sites, and labels."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from evaluation_pairs import FEW, X5, number, one_site, two_site_guide, two_site_model
from helpers import assert_within_standard_errors, linear_gaussian
from pyro import poutine

import pyrovae as pv
from pyrovae.evaluation.annealed_importance_sampling import annealed_log_marginal, bidirectional_gap
from pyrovae.evaluation.hmc import STARTS, unconstrained
from pyrovae.programs import Layout, sample_sites


def integral(log_density, points):
    """Returns the log of the integral over a fine grid, for each column."""
    return torch.trapezoid(log_density.exp(), points, dim=0).log()


# Chains side by side cost little, and distributions one after another much.
MANY = {"num_distributions": 6, "num_chains": 2_000, "num_leapfrog": 2}
MIXTURE = dist.MixtureSameFamily(dist.Categorical(number([0.3, 0.7])), dist.Normal(number([-1.0, 1.5]), number(0.5)))
SHIFT = dist.transforms.AffineTransform(-0.5, 1.0)
ABOVE = [dist.TransformedDistribution(dist.Gamma(number(shape), number(1.0)), [SHIFT]) for shape in (1.0, 1.5)]
# Maps a name to (prior, guide, mean of x given z, ends of a grid over the support).
SUPPORTS = {
    "positive": (dist.LogNormal(number(0.0), 1.0), dist.LogNormal(number(0.3), 0.8), lambda z: z, (1e-7, 80.0)),
    "interval": (dist.Beta(number(2.0), number(3.0)), dist.Beta(number(2.5), number(2.0)), lambda z: 3 * z, (0.0, 1.0)),
    "bounded": (dist.Uniform(number(-1.0), 2.0), dist.Uniform(number(-1.0), 2.0), lambda z: z, (-1.0, 2.0)),
    "shifted": (*ABOVE, lambda z: z, (-0.5, 40.0)),
    "mixture": (MIXTURE, dist.Normal(number(0.5), 1.5), lambda z: z, (-9.0, 9.0)),
}


@pytest.mark.parametrize(
    ("name", "start"),
    [*itertools.product(("positive", "interval", "shifted"), STARTS), ("bounded", "prior"), ("mixture", "guide")],
)
def test_latents_on_other_supports_give_log_px_by_quadrature(name, start):
    prior, q, decode, (low, high) = SUPPORTS[name]
    model, guide = one_site(prior, q, decode, 0.4)
    x = number([0.3, 1.0, 2.0])
    z = torch.linspace(low, high, 40_001, dtype=torch.float64).unsqueeze(-1)[1:-1]
    truth = integral(prior.log_prob(z) + dist.Normal(decode(z), 0.4).log_prob(x), z)
    result = annealed_log_marginal(model, guide, x, start=start, **MANY)
    assert_within_standard_errors(result.log_px, truth, result.standard_error)
    assert result.standard_error.max() < 0.1
    torch.testing.assert_close(result.acceptance, torch.full_like(result.acceptance, 0.65), atol=0.25, rtol=0)


def test_a_simplex_of_two_is_a_beta():
    # A simplex of two numbers has one unconstrained number.
    concentration = number([2.0, 3.0])
    model, guide = one_site(dist.Dirichlet(concentration), dist.Dirichlet(concentration), lambda z: 3 * z[..., 0], 0.4)
    x, z = number([0.3, 1.0, 2.0]), torch.linspace(0, 1, 100_001, dtype=torch.float64).unsqueeze(-1)[1:-1]
    truth = integral(dist.Beta(*concentration).log_prob(z) + dist.Normal(3 * z, 0.4).log_prob(x), z)
    result = annealed_log_marginal(model, guide, x, **MANY)
    assert_within_standard_errors(result.log_px, truth, result.standard_error)
    bounds = bidirectional_gap(model, guide, torch.zeros(50, dtype=torch.float64), **{**FEW, "num_distributions": 15})
    assert abs(bounds.gap.mean) < 0.2


@pytest.mark.parametrize("start", STARTS)
def test_a_pair_with_two_latent_sites_of_other_supports(start):
    x = number([-0.5, 1.5, 3.0])
    z1 = torch.linspace(-6, 7, 401, dtype=torch.float64)[:, None, None]
    log_z2 = torch.linspace(-6, 6, 401, dtype=torch.float64)[None, :, None]
    log_joint = dist.Normal(number(0.5), 1.0).log_prob(z1) + dist.Normal(0.5 * z1, 0.6).log_prob(log_z2)
    joint = log_joint + dist.Normal(z1 + log_z2.exp(), 0.6).log_prob(x)
    truth = integral(integral(joint, z1), log_z2.squeeze(0))
    result = annealed_log_marginal(two_site_model, two_site_guide, x, start=start, **MANY)
    assert_within_standard_errors(result.log_px, truth, result.standard_error)
    assert result.standard_error.max() < 0.1
    settings = {"num_distributions": 20, "num_chains": 16, "num_leapfrog": 3}
    bounds = bidirectional_gap(two_site_model, two_site_guide, x.expand(30, 3).flatten(), start=start, **settings)
    assert -5 * bounds.gap.data_error < bounds.gap.mean
    assert bounds.gap.value.median() < 0.3  # of a short pilot's chains a few stick where they start


def test_the_order_in_which_sites_are_drawn_does_not_matter():
    # The layout is learnt from the guide's draws, and the model's exact draws are placed by it.
    sites = sample_sites(poutine.trace(two_site_model).get_trace(X5))
    latent = [(name, sites[name]) for name in ("z1", "z2")]
    layout = Layout(("data",))
    (u, places), (other_u, other_places) = (unconstrained(dict(one), layout) for one in (latent, latent[::-1]))
    assert places == other_places == [("z1", torch.Size([1]), -1), ("z2", torch.Size([]), -1)]
    assert torch.equal(u, torch.stack([sites["z1"]["value"].squeeze(-1), sites["z2"]["value"].log()], -1))
    assert torch.equal(u, other_u)


def test_a_support_may_depend_on_another_latent():
    def sample(loc):
        scale = pyro.sample("z1", dist.LogNormal(number(loc), 0.5))
        return pyro.sample("z2", dist.Uniform(0 * scale, scale))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(sample(0.0), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            sample(0.2)

    x = number([0.3, 1.0])
    truth = pv.log_marginal(model, guide, x, num_samples=20_000)
    result = annealed_log_marginal(model, guide, x, **MANY)
    error = (result.standard_error.square() + truth.standard_error.square()).sqrt()
    assert_within_standard_errors(result.log_px, truth.log_px, error)
    assert error.max() < 0.05


def test_a_conditional_pair_keeps_its_labels():
    vae, shift = linear_gaussian(7), 3 * torch.randn(3, 5, dtype=torch.float64)

    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", vae.decode(pyro.sample("z", vae.prior)), obs=x - shift[y])

    def labelled(x, y):
        with pyro.plate("data", len(x), dim=-1):
            mean = vae.decode(pyro.sample("z", vae.prior)).base_dist.loc + shift[y]
            pyro.sample("x", dist.Normal(mean, vae.scale).to_event(1), obs=x)

    def guide(x, y):
        vae.exact_guide(x - shift[y])

    y = torch.arange(30) % 3
    result = bidirectional_gap(labelled, guide, torch.zeros(30, 5, dtype=torch.float64), y, start="guide", **FEW)
    x, same = result.args
    assert torch.equal(same, y)
    truth = vae.log_px(x - shift[y]).detach()
    for bound in (result.lower, result.upper):
        torch.testing.assert_close(bound.log_px, truth, atol=1e-8, rtol=0)
    with pytest.raises(pv.InputError, match='the site "x" must observe one of the arguments as it is'):
        bidirectional_gap(model, guide, x, y, **FEW)


def test_a_conditional_vae_runs_and_its_bounds_are_in_order():
    vae = pv.VAE((4,), latent_dim=2, hidden=(8,), likelihood=pv.Bernoulli(), condition=pv.OneHot(3))
    y = torch.arange(8) % 3
    settings = {"num_distributions": 6, "num_leapfrog": 3, "num_chains": 256}  # enough chains for a reliable error
    result = bidirectional_gap(vae.model, vae.guide, torch.zeros(8, 4), y, **settings)
    assert set(result.args[0].unique().tolist()) == {0.0, 1.0}
    assert -5 * result.gap.data_error < result.gap.mean < 0.5
    by_quadrature, _ = pv.quadrature_log_marginal(vae.model, *result.args)
    assert_within_standard_errors(result.lower.log_px, by_quadrature, result.lower.standard_error + 1e-5)
