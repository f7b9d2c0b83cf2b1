"""Answers about a joint density that is known up to a constant: a model with factors."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, refusal, suite_seed

import pyrovae as pv

STRENGTH = 1.5
X = torch.tensor([0.5, -1.0, 2.0]).double()


def model(x, inside=True, outside=True):
    """z ~ N(0, 1) and x ~ N(z, 1), with exp(-STRENGTH z^2 / 2) for each datum: the posterior is Normal still."""
    if outside:
        pyro.factor("regulariser", -torch.tensor(3.0).double())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
        if inside:
            pyro.factor("pull", -STRENGTH * z.square() / 2)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, *which):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 3, 0.8))


@pytest.mark.parametrize(
    "ask",
    [
        lambda *args: pv.posterior(model, guide, *args, num_samples=3_000),
        lambda *args: pv.annealed_posterior(model, guide, *args, num_distributions=40, num_chains=300, num_leapfrog=3),
    ],
    ids=["guide", "chains"],
)
@pytest.mark.parametrize("where", [(True, False), (False, True), (True, True)])
def test_the_constant_of_the_joint_cancels(ask, where):
    torch.manual_seed(suite_seed(1))
    post, precision = ask(X, *where), 2 + STRENGTH * where[0]
    mean, squares = post.mean("z"), post.expectation(lambda site: site["z"].square())
    assert mean.value.shape == (3,)
    assert_within_standard_errors(mean.value, X / precision, mean.standard_error)
    assert_within_standard_errors(squares.value, (X / precision).square() + 1 / precision, squares.standard_error)
    assert post.verdict.startswith("reliable")
    name = "regulariser" if where[1] else "pull"
    said = f'log p(x) does not exist or cannot be had: site "{name}" is a factor, and the joint is then not normalised'
    assert refusal(lambda: post.log_marginal) == said


def test_estimates_of_log_p_x_are_refused_as_before():
    for function in (pv.log_marginal, pv.annealed_log_marginal, pv.annealed_rate_distortion):
        assert "is a factor, and the joint is then not normalised" in refusal(function, model, guide, X, True, False)
