"""A pair that was run for one objective is asked, without another run, for what the next one needs."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.objectives import check_on_runs


def test_the_next_objective_is_checked_on_the_run_of_the_one_before_it():
    calls = []

    def model(x):
        calls.append(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(loc))

    x, runs = torch.randn(4), {}
    first = check_on_runs(pv.objectives.ELBO(2), model, guide, (x,), runs)
    ran = len(calls)
    assert list(runs.values()) == [first]
    assert check_on_runs(pv.objectives.ELBO(3), model, guide, (x,), runs) is first
    with pytest.raises(pv.InputError, match="Delta"):
        check_on_runs(pv.objectives.IWAE(2), model, guide, (x,), runs)
    assert len(calls) == ran > 0
