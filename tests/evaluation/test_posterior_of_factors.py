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


def draws_of_the_guide(*args):
    return pv.posterior(model, guide, *args, num_samples=3_000)


def ends_of_chains(*args):
    return pv.annealed_posterior(model, guide, *args, num_distributions=20, num_chains=200, num_leapfrog=3)


@pytest.mark.parametrize(
    ("ask", "where"),
    [
        (draws_of_the_guide, (True, False)),
        (draws_of_the_guide, (False, True)),
        (draws_of_the_guide, (True, True)),
        (ends_of_chains, (True, True)),
    ],
)
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


def two_cells(x, kind):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
        if kind == "of x":
            pyro.factor("pull", -x.nan_to_num()[:, 0] * z)
        elif kind != "in plates":
            pyro.factor("pull", -STRENGTH * z.square() / 2)
        both = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0)
        if kind == "in plates":
            with pyro.plate("columns", 2, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.mT)
        else:
            pyro.sample("x", both.to_event(1), obs=x)
    if kind == "outside":
        pyro.factor("regulariser", -torch.tensor(3.0).double())


def guide_of_cells(x, kind, mask):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.where(mask, x, 0.0).sum(-1) / 3, 0.8))


def programs(kind):
    return (lambda x: two_cells(x, kind)), (lambda x, mask: guide_of_cells(x, kind, mask))


@pytest.mark.parametrize("kind", ["of z", "outside"])
def test_cells_are_filled_in_where_a_factor_weighs_the_latents(kind):
    x, gone = torch.stack([X, X + 1], 1), torch.tensor([False, True]).expand(3, 2)
    torch.manual_seed(suite_seed(2))
    filled = pv.impute(*programs(kind), x, missing=gone, num_samples=3_000)
    assert_within_standard_errors(filled.value[:, 1], X / (2 + STRENGTH), filled.standard_error[:, 1])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "of x",
            'reads x at its observed sites alone; what it says of another one depends on x, at the site "pull"',
        ),
        ("in plates", 'in one plate, that of the data, and site "x" lies in "data" and "columns"'),
    ],
)
def test_cells_that_depend_on_more_than_the_latents_of_their_datum_are_refused(kind, said):
    x, gone = torch.stack([X, X + 1], 1), torch.tensor([False, True]).expand(3, 2)
    assert refusal(pv.impute, *programs(kind), x, missing=gone).endswith(said)
    model, observing = programs(kind)
    whole = lambda x: observing(x, torch.ones_like(x).bool())  # noqa: E731
    assert refusal(pv.predictive_check, model, whole, x, statistic=lambda x: x.amax(-1)).endswith(said)
