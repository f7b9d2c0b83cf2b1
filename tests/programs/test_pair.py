"""A pair gives per-datum terms, or is refused and never summed in silence."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from broken_pairs import guide
from helpers import draw, linear_gaussian
from pyro import poutine

import pyrovae as pv
from pyrovae.programs import log_joint, run_pair

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


def normal(shape=(2,)):
    return dist.Normal(ZERO, ONE).expand(shape).to_event(len(shape))


def test_terms_are_the_log_densities_of_the_sites_and_sum_to_the_log_weight():
    vae = linear_gaussian(0)
    x = draw(vae, 4)
    pair = run_pair(vae.model, vae.guide, x, num_particles=7)
    terms, z = pair.terms(), pair.model_sites["z"]["value"]
    torch.testing.assert_close(terms.log_likelihood, vae.decode(z).log_prob(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(terms.log_prior, vae.prior.log_prob(z), atol=1e-12, rtol=0)
    torch.testing.assert_close(terms.log_posterior, vae.encode(x).log_prob(z), atol=1e-12, rtol=0)
    expected = terms.log_likelihood + terms.log_prior - terms.log_posterior
    torch.testing.assert_close(pair.terms().log_weights, expected, atol=0, rtol=0)
    assert expected.shape == (7, 4)
    # The particles are draws of their own, and so are the data's.
    assert len(z.flatten().unique()) == z.numel()


def test_log_weights_carry_gradients_to_model_and_guide():
    vae = linear_gaussian(0)
    loss = pv.log_weights(vae.model, vae.guide, draw(vae, 4), num_particles=3).sum()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in vae.parameters())


def test_several_latent_sites_that_depend_on_each_other_are_summed():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", normal())
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z2.sum(-1, keepdim=True), 1.0).expand((*z2.shape[:-1], 3)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(x[:, :2], 0.5).to_event(1))
            pyro.sample("z2", dist.Normal(z1, 0.5).to_event(1))

    pair = run_pair(model, guide, X, num_particles=5)
    z1, z2 = (pair.model_sites[name]["value"] for name in ("z1", "z2"))
    expected = (
        normal().log_prob(z1)
        + dist.Normal(z1, 1.0).to_event(1).log_prob(z2)
        + dist.Normal(z2.sum(-1, keepdim=True), 1.0).log_prob(X).sum(-1)
        - dist.Normal(X[:, :2], 0.5).log_prob(z1).sum(-1)
        - dist.Normal(z1, 0.5).log_prob(z2).sum(-1)
    )
    torch.testing.assert_close(pair.terms().log_weights, expected, atol=1e-12, rtol=0)


def test_a_mask_on_the_observed_site_is_kept_and_data_that_are_masked_with_their_latents_have_density_1():
    vae = linear_gaussian(0)
    x = draw(vae, 4)
    seen = torch.tensor([True, False, True, True])

    def masked(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            with poutine.mask(mask=seen):
                pyro.sample("x", vae.decode(z), obs=x)

    terms = run_pair(masked, vae.guide, x, num_particles=2).terms()
    assert (terms.log_likelihood == 0).tolist() == [[False, True, False, False]] * 2
    both = (poutine.mask(program, mask=seen) for program in (vae.model, vae.exact_guide))
    found = pv.log_marginal(*both, x, num_samples=5).log_px
    torch.testing.assert_close(found, torch.where(seen, vae.log_px(x), 0.0).detach(), atol=1e-10, rtol=0)


def test_log_joint_takes_latents_shared_by_all_data_or_one_for_each():
    vae = linear_gaussian(0)
    x = draw(vae, 4)
    z = torch.randn(6, 4, 2, dtype=torch.float64)
    expected = vae.prior.log_prob(z) + vae.decode(z).log_prob(x)
    torch.testing.assert_close(log_joint(vae.model, {"z": z}, x), expected, atol=1e-12, rtol=0)
    shared = z[:, :1]
    expected = vae.prior.log_prob(shared) + vae.decode(shared).log_prob(x)
    torch.testing.assert_close(log_joint(vae.model, {"z": shared}, x), expected, atol=1e-12, rtol=0)
    with pytest.raises(pv.InputError, match=r"every latent site of the model, none for \['z'\]"):
        log_joint(vae.model, {"u": z}, x)


# What is refused (see also bad_input/test_bad_pairs.py) --------------------------------------------------------------


def test_a_guide_that_draws_outside_the_priors_support_is_refused_in_one_line():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) * torch.ones(3), 1.0).to_event(1), obs=x)

    for use in (pv.elbo_surgery, pv.evaluate):
        with pytest.raises(pv.InputError, match=r'^the guide must draw what the prior can give at site "z"') as caught:
            use(model, guide, X)
        assert "\n" not in str(caught.value)


def test_a_network_that_takes_no_particle_dimension_runs_its_particles_one_after_another():
    """Trap 9: convolutions take one leading dimension only."""
    conv = torch.nn.Conv1d(1, 1, 1).double()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal((1, 3)))
            pyro.sample("x", dist.Normal(conv(z), 1.0).to_event(2), obs=x[:, None])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, None], 1.0).to_event(2))

    vectorized = pv.objectives.IWAE(2, vectorize_particles=True)
    with pytest.raises(pv.InputError, match="must take 2 particles in a dimension left of the batch") as caught:
        vectorized.loss(model, guide, X)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="particles run one after another"):
        log_w = pv.log_weights(model, guide, X, num_particles=3)
    pair = run_pair(model, guide, X, num_particles=3)
    z = pair.draws()["z"]
    assert log_w.shape == (3, 4)
    assert len(z.flatten().unique()) == z.numel()  # draws of their own
    expected = (
        normal((1, 3)).log_prob(z)
        + dist.Normal(torch.stack([conv(one) for one in z]), 1.0).log_prob(X[:, None]).sum((-1, -2))
        - dist.Normal(X[:, None], 1.0).log_prob(z).sum((-1, -2))
    )
    torch.testing.assert_close(pair.terms().log_weights, expected, atol=1e-12, rtol=0)


# Pairs that once gave a wrong log p(x) without a word ----------------------------------------------------------------


def test_a_prior_masked_by_its_distribution_and_a_factor_in_the_model_are_refused():
    vae = linear_gaussian(0)

    def masked(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", vae.decode(pyro.sample("z", vae.prior.mask(False))), obs=x)

    def factored(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            pyro.factor("penalty", -z.square().sum(-1))
            pyro.sample("x", vae.decode(z), obs=x)

    unequal = 'the latent site "z" must have the same mask in model and guide'
    for model, message in ((masked, unequal), (factored, 'site "penalty" is a factor')):
        with pytest.raises(pv.InputError, match=message):
            pv.log_marginal(model, vae.guide, draw(vae, 4), num_samples=5)


def test_a_forgotten_to_event_is_refused_also_where_particles_and_data_are_as_many():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO, ONE))
            pyro.sample("x", dist.Normal(z, ONE), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, 0], ONE))

    with pytest.raises(pv.InputError, match=r"got shape \(5, 1\) \(is a to_event missing\?\)"):
        pv.log_weights(model, guide, torch.zeros(5, 1, dtype=torch.float64), num_particles=5)


def test_deterministic_sites_are_no_latents():
    vae = linear_gaussian(0)

    def model(x):
        pyro.deterministic("count", torch.tensor(len(x)))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            pyro.deterministic("mean", vae.decode(z).mean, event_dim=1)
            pyro.sample("x", vae.decode(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.deterministic("location", vae.posterior(x).mean, event_dim=1)
            pyro.sample("z", vae.posterior(x))

    x = draw(vae, 4)
    result = pv.log_marginal(model, guide, x, num_samples=5)
    torch.testing.assert_close(result.log_px, vae.log_px(x).detach(), atol=1e-10, rtol=0)
