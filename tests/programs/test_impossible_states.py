"""A guide that gives a state of a discrete latent a probability of 0, where the prior does not, never draws it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, refusal, suite_seed
from scalar_pairs import SHORT

import pyrovae as pv
from pyrovae.objectives import VIMCO
from pyrovae.programs.impossible_outcomes import impossible_alone

X = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
MEANS = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
NONE = -math.inf
STATES = dist.Categorical(torch.ones(3))
TOSS, HALF = dist.Bernoulli(torch.tensor(0.5)), torch.tensor(0.5)
ZERO, ONE = torch.zeros(()), torch.ones(())


def model(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.ones(3, dtype=torch.float64)))
        pyro.sample("x", dist.Normal(MEANS[c], 0.7), obs=x)


def guide_by(**parameters):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(**parameters))

    return guide


def weights(*values):
    return torch.tensor(values, dtype=torch.float64)


WITHOUT = {"logits": {"logits": weights(0.0, 0.0, NONE)}, "probs": {"probs": weights(0.5, 0.5, 0.0)}}
DOORS = {
    "log_marginal": lambda guide: pv.log_marginal(model, guide, X, num_samples=10),
    "posterior": lambda guide: pv.posterior(model, guide, X, num_samples=10),
    "evaluate": lambda guide: pv.evaluate(model, guide, X, methods=["is_10"]),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("given", WITHOUT)
def test_every_estimate_refuses_it(door, given):
    """log p(x) was 4 nats too low, 292 standard errors, and "reliable"."""
    said = refusal(DOORS[door], guide_by(**WITHOUT[given]))
    assert said.startswith(
        f"{SHORT.replace('z', 'c')}: the guide gives state 2 a probability of 0, and the prior does not"
    )
    assert ("give the guide logits" in said) == (given == "probs")


def test_a_training_is_warned_once_and_goes_on():
    guide = guide_by(**WITHOUT["logits"])
    with pytest.warns(UserWarning, match="state 2 a probability of 0.*the bound is valid but never tight") as caught:
        losses = [VIMCO(4).loss(model, guide, X) for _ in range(3)]
    assert len(caught) == 1
    assert all(map(math.isfinite, losses))


def test_it_is_found_at_one_datum_of_the_last_chunk():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "c", dist.Categorical(logits=torch.where(x.unsqueeze(-1) == 9, WITHOUT["logits"]["logits"], 0.0))
            )

    x = torch.zeros(200, dtype=torch.float64)
    pv.log_marginal(model, guide, x, num_samples=2)
    assert SHORT.replace("z", "c") in refusal(pv.log_marginal, model, guide, x.index_fill(0, torch.tensor(199), 9.0))


def test_a_defensive_guide_gives_it_the_priors_probability():
    torch.manual_seed(suite_seed())
    defended = pv.proposals.defensive(model, guide_by(**WITHOUT["probs"]), 0.5)
    found = pv.log_marginal(model, defended, X, num_samples=4_000)
    assert_within_standard_errors(found.log_px, pv.enumerated_log_marginal(model, X), found.standard_error)


def site(fn):
    return {"fn": fn, "mask": None}


def pairs_of_components(*probs, weights=(1.0, 1.0)):
    each = dist.Categorical(torch.tensor(probs))
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor(weights)), each)


@pytest.mark.parametrize(
    ("prior", "proposal"),
    [
        (TOSS, dist.Bernoulli(ONE)),
        (TOSS, dist.Bernoulli(ZERO)),
        (dist.OneHotCategorical(torch.ones(3)), dist.OneHotCategoricalStraightThrough(torch.tensor([1.0, 1.0, 0.0]))),
        (dist.Multinomial(4, torch.ones(3)), dist.Multinomial(4, torch.tensor([1.0, 1.0, 0.0]))),
        (dist.Binomial(4, HALF), dist.Binomial(4, ZERO)),
        (dist.BetaBinomial(ONE, ONE, 4), dist.Binomial(4, ONE)),
        (dist.Geometric(HALF), dist.Geometric(ONE)),
        (dist.NegativeBinomial(3.0, HALF), dist.NegativeBinomial(3.0, ZERO)),
        (dist.Poisson(ONE), dist.Poisson(ZERO)),
        (dist.Poisson(ONE), dist.ZeroInflatedPoisson(ONE, gate=ONE)),
        (STATES, pairs_of_components([1.0, 1.0, 0.0], [1.0, 0.0, 0.0])),
        (STATES, pairs_of_components([1.0, 1.0, 0.0], [1.0, 0.0, 1.0], weights=(1.0, 0.0))),
        (TOSS.expand([3]).to_event(1), dist.Bernoulli(torch.tensor([0.5, 0.5, 1.0])).to_event(1)),
        (
            STATES.expand([2]).mask(torch.tensor([False, True])),
            dist.Categorical(torch.tensor([[1.0, 1, 1], [1, 1, 0]])),
        ),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_every_family_of_states_and_counts(prior, proposal):
    assert impossible_alone(site(prior), site(proposal)) is not None


@pytest.mark.parametrize(
    ("prior", "proposal"),
    [
        (dist.Categorical(torch.tensor([1.0, 1.0, 0.0])), dist.Categorical(torch.tensor([1.0, 2.0, 0.0]))),
        (dist.Categorical(logits=torch.tensor([0.0, 0.0, NONE])), dist.Categorical(torch.tensor([1.0, 2.0, 0.0]))),
        (dist.Bernoulli(ONE), dist.Bernoulli(ONE)),
        (dist.Categorical(torch.ones(2)), dist.Categorical(torch.tensor([1.0, 1.0, 0.0]))),
        (STATES, dist.Categorical(logits=torch.tensor([0.0, 0.0, -200.0]))),
        (TOSS, dist.Bernoulli(logits=torch.tensor(30.0))),
        (TOSS, dist.Bernoulli(logits=torch.tensor(-200.0))),
        (STATES, pairs_of_components([1.0, 1.0, 0.0], [1.0, 0.0, 1.0])),
        (
            STATES.expand([2]),
            dist.Categorical(torch.tensor([[1.0, 1, 1], [1, 1, 0]])).mask(torch.tensor([True, False])),
        ),
        (dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.0)),
        (dist.GammaPoisson(ONE, ONE), dist.GammaPoisson(ONE, ONE)),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_what_the_prior_does_not_give_a_mask_excludes_or_a_logit_keeps_is_no_fault(prior, proposal):
    assert impossible_alone(site(prior), site(proposal)) is None
