"""A data plate that draws its subsample: every estimate refuses it, as its runs would be of different data.

The kind of fault: enumeration and quadrature took it, and gave values up to 1.4 nats from log p of any datum.
"""

import inspect
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, suite_seed

import pyrovae as pv

X = torch.tensor([[1.0, -2.0], [0.5, 0.0], [-1.0, 3.0], [2.0, 1.0]]).repeat(30, 1)
FEW = {"progress": False}
FEW_CHAINS = {"num_distributions": 2, "num_chains": 2, "num_leapfrog": 1, **FEW}


class Normals:
    """x ~ N(z, 1) with z ~ N(0, 1) or, if `is_discrete`, Bernoulli(1/2), of a subsample that the plate draws."""

    def __init__(self, size=20, is_discrete=False, subsample=None):
        self.size, self.is_discrete, self.subsample = size, is_discrete, subsample

    def plate(self, x):
        given = {"subsample_size": self.size} if self.subsample is None else {"subsample": self.subsample}
        return pyro.plate("data", len(x), **given)

    def model(self, x):
        with self.plate(x) as index:
            zero, one = torch.zeros(2), torch.ones(2)
            prior = dist.Bernoulli(0.5 * one) if self.is_discrete else dist.Normal(zero, one)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[index])

    def guide(self, x):
        with self.plate(x) as index:
            rows = x[index].nan_to_num()
            posterior = dist.Bernoulli(logits=rows - 0.5) if self.is_discrete else dist.Normal(rows / 2, 0.8)
            pyro.sample("z", posterior.to_event(1))


DOORS = {
    "log_marginal": {"num_samples": 20, **FEW},
    "importance_bound": {"num_particles": 1, **FEW},
    "quadrature_log_marginal": {"num_points": 21},
    "enumerated_log_marginal": {},
    "annealed_log_marginal": FEW_CHAINS,
    "annealed_posterior": FEW_CHAINS,
    "annealed_rate_distortion": FEW_CHAINS,
    "bidirectional_gap": FEW_CHAINS,
    "evaluate": {"methods": ("elbo",), **FEW},
    "elbo_surgery": FEW,
    "inference_gaps": FEW,
    "simulation_based_calibration": FEW,
    "posterior": {"num_samples": 20, **FEW},
    "impute": {"num_samples": 20, **FEW},
    "conditional_log_marginal": {"given": torch.tensor([True, False]), "num_samples": 20, **FEW},
    "predictive_check": {"statistic": lambda x: x.mean(-1), "num_samples": 20, **FEW},
    "elbo_terms": {},
    "active_units": {},
}
# What these look at first shows it, too.
SEEN_BEFORE = {
    "simulation_based_calibration": r'a draw of the observed site "x" must be like the data, \(120, 2\)',
    "impute": "the model must observe cells of x as they are",
    "conditional_log_marginal": "the model must observe cells of x as they are",
}
# Training and what compares its gradients scale a subsample by N / B; log-weights are of one run.
TAKE_IT = {"CompiledSVI", "compare", "log_weights"}


def called(name):
    return getattr(pv, name, None) or getattr(pv.diagnostics, name)


def test_every_estimate_of_a_program_is_among_the_doors():
    found = {name: getattr(pv, name) for name in pv.__all__}
    of_module = inspect.getmembers(pv.diagnostics, inspect.isfunction)
    found |= {name: function for name, function in of_module if function.__module__ == pv.diagnostics.__name__}
    takes_model = {
        name for name, one in found.items() if callable(one) and "model" in inspect.signature(one).parameters
    }
    assert takes_model - TAKE_IT == set(DOORS)


@pytest.mark.parametrize("name", DOORS)
def test_a_subsample_that_the_data_plate_draws_is_refused(name):
    pair = Normals(is_discrete=name == "enumerated_log_marginal")
    x = X.masked_fill(X > 2, torch.nan) if name == "impute" else X
    programs = (pair.model,) if name.startswith(("quadrature", "enumerated")) else (pair.model, pair.guide)
    rule = 'needs the same data in every run, and the plate "data" holds a subsample of 20 of the 120, drawn anew'
    rule = SEEN_BEFORE.get(name, rule)
    with pytest.raises(pv.InputError, match=rule):
        called(name)(*programs, x, **DOORS[name])


@pytest.mark.parametrize("is_discrete", [False, True])
def test_a_subsample_that_is_given_is_that_of_its_rows(is_discrete):
    index = torch.tensor([2, 0, 3])
    pair = Normals(is_discrete=is_discrete, subsample=index)
    truth = dist.Normal(0.0, 2**0.5).log_prob(X[index]).sum(-1)
    if is_discrete:
        each = torch.stack([dist.Normal(z, 1.0).log_prob(X[index]) for z in (0.0, 1.0)])
        truth = (each.logsumexp(0) - torch.tensor(2.0).log()).sum(-1)
    take = pv.enumerated_log_marginal if is_discrete else partial(pv.quadrature_log_marginal, num_points=51)
    found = take(pair.model, X)
    torch.testing.assert_close((found if is_discrete else found.log_px).to(truth), truth)
    terms = pv.diagnostics.elbo_terms(pair.model, pair.guide, X)
    assert terms["elbo"].shape == (3,)


def test_log_weights_are_those_of_the_subsample_of_their_run():
    """Of data that are all alike it does not matter which they are."""
    torch.manual_seed(suite_seed(0))
    x = torch.ones(120, 2)
    log_w = pv.log_weights(Normals().model, Normals().guide, x, num_particles=2_000)
    assert log_w.shape == (2_000, 20)
    w = log_w.exp()
    truth = dist.Normal(0.0, 2**0.5).log_prob(x[:20]).sum(-1).exp()
    assert_within_standard_errors(w.mean(0), truth, w.std(0) / 2_000**0.5, dtype=torch.float32)
