"""An improper prior has no log p(x), as its constant may be any; answers about the latents do not depend on it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, refusal, suite_seed
from pyro import poutine
from pyro.infer.reparam import SplitReparam
from torch.distributions import constraints

import pyrovae as pv

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
FLAT = dist.ImproperUniform(constraints.real, (), ())


def model(x, prior=FLAT):
    with pyro.plate("data", len(x)):
        m = pyro.sample("m", prior)
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("m", dist.Normal(x, 1.2))


def transformed(x):
    model(x, dist.TransformedDistribution(FLAT, [dist.transforms.AffineTransform(1.0, 2.0)]))


def shared(x):
    m = pyro.sample("m", FLAT)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def shared_guide(x):
    pyro.sample("m", dist.Normal(x.mean(), 1.0))


PAIRS = {"of each datum": (model, guide), "shared": (shared, shared_guide), "transformed": (transformed, guide)}
CHAINS = {"num_distributions": 2, "num_chains": 2}
DOORS = {
    "log_marginal": lambda *pair: pv.log_marginal(*pair, X, num_samples=10),
    "importance_bound": lambda *pair: pv.importance_bound(*pair, X, num_particles=3),
    "evaluate": lambda *pair: pv.evaluate(*pair, X, methods=["is_10"]),
    "annealed from the guide": lambda *pair: pv.annealed_log_marginal(*pair, X, start="guide", **CHAINS),
    "annealed from the prior": lambda *pair: pv.annealed_log_marginal(*pair, X, **CHAINS),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("pair", PAIRS)
def test_every_estimate_of_log_px_refuses_it(door, pair):
    """It was a number around 0, and "reliable"."""
    said = refusal(DOORS[door], *PAIRS[pair])
    assert said.endswith('site "m" is improper, and the joint is then not normalised')


@pytest.mark.parametrize(
    "call",
    [
        lambda: pv.quadrature_log_marginal(model, X),
        lambda: pv.enumerated_log_marginal(model, X),
        lambda: pv.bidirectional_gap(model, guide, X, **CHAINS),
        lambda: pv.simulation_based_calibration(model, guide, X),
        lambda: pv.annealed_posterior(model, guide, X, **CHAINS),
        lambda: pv.posterior(model, pv.proposals.defensive(model, guide), X, num_samples=10),
    ],
    ids=["quadrature", "enumerated", "bidirectional_gap", "calibration", "annealed_posterior", "defensive"],
)
def test_where_the_prior_is_drawn_from_it_is_said_that_it_has_no_draws(call):
    """It was a traceback of Pyro's."""
    assert (
        refusal(call) == "model must draw its latents, and one has no draws: ImproperUniform does not support sampling"
    )


def test_answers_about_the_latents_are_right():
    torch.manual_seed(suite_seed())
    found = pv.posterior(model, guide, X, num_samples=2_000).mean("m")
    assert_within_standard_errors(found.value, X, found.standard_error)


def test_a_part_that_pyro_splits_off_a_proper_site_is_no_improper_prior():
    def whole(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def parts(x):
        with pyro.plate("data", len(x)):
            for i in range(2):
                pyro.sample(f"z_split_{i}", dist.Normal(x.unsqueeze(-1) / 3, 1.0).to_event(1))

    torch.manual_seed(suite_seed())
    split = poutine.reparam(whole, {"z": SplitReparam([1, 1], -1)})
    found = pv.log_marginal(split, parts, X, num_samples=4_000)
    assert_within_standard_errors(found.log_px, dist.Normal(0.0, 3.0**0.5).log_prob(X), found.standard_error)


def test_an_improper_prior_whose_support_is_not_compared_by_numbers_can_be_asked_about():
    def of_shares(x):
        with pyro.plate("data", len(x)):
            m = pyro.sample("m", dist.ImproperUniform(constraints.simplex, (), (3,)))
            pyro.sample("x", dist.Normal(m[..., 0], 1.0), obs=x)

    def from_a_mixture(x):
        with pyro.plate("data", len(x)):
            each = dist.Dirichlet(torch.ones(2, 3, dtype=torch.float64))
            pyro.sample("m", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), each))

    found = pv.posterior(of_shares, from_a_mixture, X, num_samples=50).mean("m")
    assert found.value.shape == (3, 3)
