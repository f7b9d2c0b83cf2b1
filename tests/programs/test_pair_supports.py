"""Draws, data and priors outside a support: the numbers are right if a pair is taken, and else it is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, linear_gaussian, refusal
from pyro import poutine
from pyro.distributions.transforms import block_autoregressive
from pyro.distributions.util import sum_rightmost
from scalar_pairs import OUTSIDE, SHORT, at, double, given, normal, pair, quadrature, short_of_the_prior

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, VIMCO, ScoreFunction


def test_a_draw_outside_the_priors_support_has_weight_0_in_every_chunk():
    """`Exponential.log_prob` is finite below 0: without validation the mean would be -4.25."""
    broad = pair(lambda: dist.Exponential(double(1.0)), dist.Normal, lambda z: dist.Normal(z, 3.0))
    found = pv.log_marginal(*given(broad, 1.0, 0.27), at(-6.0), num_samples=200_000, chunk_size=1_000)
    truth = quadrature(lambda z: -z + dist.Normal(z, 3.0).log_prob(double(-6.0)), 0.0, 30.0)
    assert found.mean == pytest.approx(truth.item(), abs=5 * found.monte_carlo_error)
    assert truth == pytest.approx(-4.565, abs=1e-3)
    draws = pv.log_weights(*given(broad, -1.0, 0.27), at(-6.0), num_particles=100)
    assert (draws == -math.inf).double().mean() > 0.9


def test_a_prior_beyond_the_guides_support_is_warned_of_once_and_the_bound_is_below_log_px():
    half = given(short_of_the_prior(), 0.2, 1.0)
    with pytest.warns(UserWarning, match="the bound is valid but never tight") as caught:
        losses = [IWAE(8).loss(*half, at(-1.0, 500)) / 500 for _ in range(3)]
    assert len(caught) == 1
    assert max(-loss for loss in losses) < dist.Normal(0.0, math.sqrt(1 + 0.49)).log_prob(torch.tensor(-1.0))


def test_a_defensive_guide_reaches_all_of_the_prior():
    half = given(short_of_the_prior(), 0.2, 1.0)
    x, truth = at(0.5), dist.Normal(double(0.0), math.sqrt(1 + 0.49)).log_prob(double(0.5))
    found = pv.log_marginal(half.model, pv.proposals.defensive(*half), x, num_samples=50_000)
    assert_within_standard_errors(found.value[0], truth, found.standard_error[0])


def drawn_from(**latents):
    """Returns a pair of independent latents, each given by its prior and what the guide draws it from."""

    def model(x):
        with pyro.plate("data", len(x)):
            sums = [sum_rightmost(pyro.sample(name, prior), prior.event_dim) for name, (prior, _) in latents.items()]
            pyro.sample("x", dist.Normal(sum(sums), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            for name, (_, proposal) in latents.items():
                pyro.sample(name, proposal)

    return model, guide


NORMAL, POSITIVE = dist.Normal(double(0.0), 1.0), dist.HalfNormal(double(1.0))
ONE_STATE = dist.Bernoulli(double(0.5)), dist.Bernoulli(double(1.0))
PAIR_OF_NORMALS = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)


@pytest.mark.parametrize(
    ("latents", "mixes"),
    [
        ({"z": (NORMAL, POSITIVE)}, True),
        ({"z": ONE_STATE}, True),
        ({"z": (NORMAL, POSITIVE), "b": (NORMAL, NORMAL)}, False),
        (
            {"z": (PAIR_OF_NORMALS, dist.TransformedDistribution(PAIR_OF_NORMALS, block_autoregressive(2).double()))},
            False,
        ),
    ],
    ids=["one latent", "a state", "two latents", "a flow without an inverse"],
)
def test_a_defensive_guide_is_advised_where_it_helps(latents, mixes):
    model, guide = drawn_from(**latents)
    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    said, mixed = refusal(pv.log_marginal, model, guide, x), pv.proposals.defensive(model, guide)
    if mixes:
        assert said.endswith(": log p(x) would be too low; use proposals.defensive")
        assert pv.log_marginal(model, mixed, x, num_samples=500).value.isfinite().all()
    else:
        assert said.endswith(": log p(x) would be too low; the guide must draw wherever the prior can")
        assert "defensive needs" in refusal(pv.log_marginal, model, mixed, x)


@pytest.mark.parametrize(
    ("prior", "proposal"),
    [
        (lambda: dist.Uniform(double(-1.0), 1.0), dist.Normal),
        (lambda: dist.Categorical(torch.ones(3, dtype=torch.float64)), lambda loc, scale: five(loc)),
    ],
    ids=["an interval with tensors as bounds", "fewer classes"],
)
def test_supports_are_known_by_their_constraints_or_by_draws(prior, proposal):
    said = pair(prior, proposal, lambda z: dist.Normal(z.double(), 0.7))
    for objective in (ELBO(), ScoreFunction()):
        with pytest.raises(pv.InputError, match=f"{OUTSIDE}|no rsample"):
            objective.loss(*said, at(0.5, 50))
    assert math.isfinite(VIMCO(64).loss(*said, at(0.5, 50)))
    assert pv.log_marginal(*given(said, 0.2, 0.5), at(0.5), num_samples=500).value.isfinite().all()


def five(loc):
    return dist.Categorical(logits=loc * torch.arange(5, dtype=torch.float64))


@pytest.mark.parametrize("z", [double(0.3), double(0.9)], ids=str)
def test_data_whose_support_depends_on_a_latent_may_have_weight_0(z):
    """For x ~ Uniform(0, z), z ~ Uniform(0, 1), the density is p(x) = -log x."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("z", dist.Uniform(double(0.0), 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Uniform(double(0.0), top).to_event(1), obs=x)

    def guide(x):
        edge = pyro.param("edge", double(0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(double(0.0) * edge, 1.0).expand([1]).to_event(1))

    x = z.reshape(1, 1)
    found = pv.log_marginal(model, guide, x, num_samples=20_000)
    assert_within_standard_errors(found.value[0], (-z.log()).log(), found.standard_error[0])
    with pytest.raises(pv.InputError, match="all are zero"):  # under every latent
        pv.log_marginal(model, guide, -x, num_samples=10)


def test_quadrature_takes_data_whose_support_depends_on_a_latent():
    """For x ~ Uniform(0, exp(z)), z ~ N(0, 1), the density is p(x) = E[exp(-z); z > log x]."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal().expand([1]).to_event(1))
            pyro.sample("x", dist.Uniform(double(0.0), z.exp()).to_event(1), obs=x)

    value, error = pv.quadrature_log_marginal(model, at(0.7))
    truth = quadrature(lambda z: normal().log_prob(z) - z, math.log(0.7), 12.0)
    assert abs(value.item() - truth.item()) <= error.item() + 1e-5


def test_values_outside_the_support_that_a_mask_excludes_are_no_fault():
    vae = linear_gaussian(0, data_dim=1)
    seen = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            with poutine.mask(mask=seen[: len(x)]):
                pyro.sample("x", dist.Exponential(vae.decode(z).mean.exp()).to_event(1), obs=x)

    x = torch.tensor([[0.5], [-3.0], [0.5]], dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", vae.prior)

    found = pv.log_marginal(model, guide, x, num_samples=200)
    assert found.value.isfinite().all()
    assert found.value[1] == 0  # nothing was seen: every weight is 1
    assert math.isfinite(IWAE(4).loss_and_grads(model, guide, x))
    with pytest.raises(pv.InputError, match=r"-3.0 at index .* is outside GreaterThanEq"):
        pv.log_marginal(poutine.mask(model, torch.tensor(True)), guide, x[[1, 0, 2]], num_samples=10)


@pytest.mark.parametrize("shape", [(2, 3), (2, 2)], ids=str)
def test_masks_of_elements_within_an_event_exclude_what_they_say(shape):
    mask = torch.tensor([[True, False, True], [False, True, True]])[:, : shape[1]]
    x = torch.where(mask, torch.linspace(0.2, 0.9, shape[1], dtype=torch.float64).expand(shape), -1.0)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal())
            rate = z.exp().unsqueeze(-1).expand(*z.shape, x.shape[-1])
            pyro.sample("x", dist.Exponential(rate).mask(mask).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("loc", double(0.2)), 1.0))

    def log_joint(z, x, seen):
        prior = dist.Normal(double(0.0), 1.0).log_prob(z)
        return prior + dist.Exponential(z.exp().unsqueeze(-1)).log_prob(x[seen]).sum(-1)

    truth = [quadrature(lambda z, n=n: log_joint(z, x[n], mask[n]), -8.0, 8.0, 4_001) for n in range(2)]
    found = pv.log_marginal(model, guide, x, num_samples=4_000)
    assert_within_standard_errors(found.value, torch.stack(truth), found.standard_error)
    assert math.isfinite(ELBO().loss_and_grads(model, guide, x))
    with pytest.raises(ValueError, match=r"-2.0 at index .* is outside"):
        ELBO().loss(model, guide, torch.where(mask, -2.0, x))


def test_a_masked_event_outside_its_support_costs_nothing():
    rows = torch.tensor([True, False])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal())
            rate = z.exp().unsqueeze(-1).expand(*z.shape, 2)
            pyro.sample("x", dist.Exponential(rate).to_event(1).mask(rows), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("loc", double(0.2)), 1.0))

    x = torch.tensor([[0.5, 0.7], [0.5, -1.0]], dtype=torch.float64)
    losses = []
    for data in (x, x.abs()):
        torch.manual_seed(1)
        losses.append(ELBO().loss(model, guide, data))
    assert losses[0] == losses[1]


def test_a_defensive_guide_draws_from_all_of_a_prior_on_an_interval():
    uniform = pair(lambda: dist.Uniform(double(0.0), 1.0), lambda loc, scale: dist.Uniform(double(0.2), 0.8))
    x, truth = at(0.1), quadrature(lambda z: dist.Normal(z, 0.7).log_prob(double(0.1)), 0.0, 1.0)
    with pytest.raises(pv.InputError, match=SHORT):  # the bounds are tensors, and compared by their values
        pv.log_marginal(*uniform, x, num_samples=100)
    found = pv.log_marginal(uniform.model, pv.proposals.defensive(*uniform), x, num_samples=20_000)
    assert_within_standard_errors(found.value[0], truth, found.standard_error[0])
