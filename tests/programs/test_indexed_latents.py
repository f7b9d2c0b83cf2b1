"""A program that indexes its latents from the left runs slowly, and hears why once, at every door."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import suite_seed
from pyro.infer.autoguide import AutoNormal

import pyrovae as pv

GROUPS = torch.arange(12) % 3
X = torch.arange(24.0).view(12, 2).sin()
Y = X.sum(-1).exp().round()


def model_of(eta):
    def model(x, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("groups", 3):
            alpha = pyro.sample("alpha", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Poisson(eta(x, alpha, beta).exp()), obs=y)

    return model


FROM_THE_LEFT = {
    "index": lambda x, alpha, beta: alpha[GROUPS] + (x * beta).sum(-1),
    "product": lambda x, alpha, beta: alpha[..., GROUPS] + x @ beta,
}
DOORS = {
    "log_marginal": lambda *pair: pv.log_marginal(*pair, X, Y, num_samples=30),
    "importance_bound": lambda *pair: pv.importance_bound(*pair, X, Y, num_particles=3, num_repeats=2),
    "evaluate": lambda *pair: pv.evaluate(*pair, X, Y, methods=("is_30",)),
    "posterior": lambda *pair: pv.posterior(*pair, X, Y, num_samples=30),
    "log_weights": lambda *pair: pv.log_weights(*pair, X, Y, num_particles=3),
    "a loss": lambda *pair: pv.objectives.IWAE(4, joint=True).loss(*pair, X, Y),
    "CompiledSVI": lambda *pair: pv.CompiledSVI(
        *pair, pyro.optim.Adam({"lr": 1e-3}), pv.objectives.IWAE(4, joint=True), inductor=False
    ).step(X, Y),
}


def said_at(door, eta):
    """Returns what a door says of a new pair, and what it returns."""
    pyro.clear_param_store()
    torch.manual_seed(suite_seed())
    model = model_of(eta)
    guide = AutoNormal(model, init_scale=0.3)
    guide(X, Y)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = DOORS[door](model, guide)
    return [str(one.message) for one in caught], found


@pytest.mark.parametrize("form", FROM_THE_LEFT)
@pytest.mark.parametrize("door", DOORS)
def test_one_line_names_the_cure_at_every_door(door, form):
    """`log_marginal` said nothing, the others "index 2 is out of bounds for dimension 0 with size 2", twice."""
    said, _ = said_at(door, FROM_THE_LEFT[form])
    [line] = [one for one in said if "particles" in one]
    assert line.startswith("particles run one after another, which is slower")
    assert "latents are indexed and multiplied from the right, as in alpha[..., g], (X * beta).sum(-1)" in line


@pytest.mark.parametrize("door", DOORS)
def test_the_cure_helps(door):
    said, _ = said_at(door, lambda x, alpha, beta: alpha[..., GROUPS] + (x * beta).sum(-1))
    assert not [one for one in said if "particles" in one]
