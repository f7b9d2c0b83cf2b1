"""A guide that draws what the prior cannot give, where the model does not run, is refused by site, whatever it drew."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import refusal, suite_seed

import pyrovae as pv

X = torch.tensor([0.5, -1.0, 2.0])
SAID = (
    'the guide must draw what the prior can give at site "tau", GreaterThanEq(lower_bound=0), got a guide on Real(): '
    "the model does not run at such draws"
)


def pair_with(is_shared, runs_outside=False):
    """A scale with a HalfNormal prior and a Normal guide, which is below 0 at a third of its draws."""

    def model(x):
        tau = pyro.sample("tau", dist.HalfNormal(1.0)) if is_shared else None
        with pyro.plate("data", len(x)):
            tau = tau if is_shared else pyro.sample("tau", dist.HalfNormal(torch.ones(len(x))))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, tau.abs() if runs_outside else tau), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        if is_shared:
            pyro.sample("tau", dist.Normal(loc, 1.0))
        with pyro.plate("data", len(x)):
            if not is_shared:
                pyro.sample("tau", dist.Normal(loc.expand(len(x)), 1.0))
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    return model, guide


CALLS = {
    "log_marginal": lambda m, g: pv.log_marginal(m, g, X, num_samples=100),
    "posterior": lambda m, g: pv.posterior(m, g, X, num_samples=50),
    "bound": lambda m, g: pv.importance_bound(m, g, X, num_particles=3),
    "annealed": lambda m, g: pv.annealed_log_marginal(m, g, X, num_distributions=2, num_chains=2),
    "evaluate": lambda m, g: pv.evaluate(m, g, X, methods=["is_100"]),
    "log_weights": lambda m, g: pv.log_weights(m, g, X, num_particles=3),
    "iwae": lambda m, g: pv.objectives.IWAE(4).loss(m, g, X),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "of each datum"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_named_by_site(call, is_shared, seed):
    """It was "log p(x) does not exist", a bound of nan without a word, or Pyro's words on the likelihood's scale."""
    pyro.clear_param_store()
    torch.manual_seed(suite_seed(seed))
    assert refusal(lambda: call(*pair_with(is_shared))) == SAID


@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "of each datum"])
def test_where_the_model_runs_at_such_draws_they_have_no_weight(is_shared):
    pyro.clear_param_store()
    torch.manual_seed(suite_seed())
    assert pv.log_marginal(*pair_with(is_shared, runs_outside=True), X, num_samples=500).log_px.isfinite().all()


def test_a_scale_below_0_that_is_not_a_draw_outside_the_prior_is_still_named_by_pyro():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(0.0, z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    assert "Expected parameter scale" in refusal(lambda: pv.log_marginal(model, guide, X, num_samples=50))
