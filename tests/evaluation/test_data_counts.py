"""Data that count otherwise than once beside latents that they share: a subsample outside the data plate, and a scale.

The kind of fault: measuring leaves scales out, so that N / B and weights of the likelihood were dropped in silence.
"""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.nn import Parameter

import pyrovae as pv

X, Y = torch.tensor([1.0, 2.0, -0.5]), torch.arange(6.0)
WEIGHTS = torch.tensor([3.0, 1.0, 1.0])
FEW = {"progress": False}


def program(scale=1.0, beta=1.0, size=None, locals_=True, in_plate=True):
    """Returns t, z_n ~ N(t, 1), x_n ~ N(z_n, 1) under `scale`, and y ~ N(t, 1) of which `size` are taken.

    Without `locals_` there is no z, and without `in_plate` no plate.
    """

    def model(x, y):
        with poutine.scale(scale=beta):
            t = pyro.sample("t", dist.Normal(0.0, 1.0))
        if not in_plate:
            with poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(t.unsqueeze(-1), torch.ones(len(x))).to_event(1), obs=x)
            return
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(t, 1.0)) if locals_ else t
            with poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        with nullcontext() if size is None else pyro.plate("others", len(y), subsample_size=size) as index:
            if size is not None:
                pyro.sample("y", dist.Normal(t, 1.0), obs=y[index])

    def guide(x, y):
        with poutine.scale(scale=beta):
            t = pyro.sample("t", dist.Normal(0.6, 0.5))
        if locals_ and in_plate:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((t + x) / 2, 0.8))

    return model, guide


FEW_CHAINS = {"num_distributions": 2, "num_chains": 2, "num_leapfrog": 1, **FEW}
DOORS = {
    "log_marginal": lambda pair: pv.log_marginal(*pair, X, Y, num_samples=20, **FEW),
    "the bound of one particle": lambda pair: pv.importance_bound(*pair, X, Y, num_particles=1, **FEW),
    "evaluate": lambda pair: pv.evaluate(*pair, X, Y, methods=("elbo",), **FEW),
    "posterior": lambda pair: pv.posterior(*pair, X, Y, num_samples=20, **FEW),
    "annealed_log_marginal": lambda pair: pv.annealed_log_marginal(*pair, X, Y, **FEW_CHAINS),
    "annealed_posterior": lambda pair: pv.annealed_posterior(*pair, X, Y, **FEW_CHAINS),
    "annealed_rate_distortion": lambda pair: pv.annealed_rate_distortion(*pair, X, Y, **FEW_CHAINS),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_subsample_outside_the_data_plate_is_refused(door):
    with pytest.raises(pv.InputError, match=r'all of the data that share a latent, and the plate "others" holds'):
        DOORS[door](program(size=2))


@pytest.mark.parametrize("door", DOORS)
def test_a_scale_of_the_likelihood_beside_shared_latents_is_refused(door):
    with pytest.raises(pv.InputError, match=r'each datum once, and poutine.scale counts those of site "x" 5 times'):
        DOORS[door](program(5.0))


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({"scale": WEIGHTS, "locals_": False}, "1 to 3"),
        ({"scale": 0.5, "locals_": False}, "0.5"),
        ({"scale": 5.0, "in_plate": False}, "5"),
        ({"scale": 5.0, "beta": 2.0}, "5"),
    ],
)
def test_log_weights_are_of_data_that_count_once(settings, times):
    with pytest.raises(pv.InputError, match=rf'log_weights takes .+ of site "x" {times} times against latents'):
        pv.log_weights(*program(**settings), X, Y, num_particles=2)


def test_a_model_alone_counts_data_once():
    with pytest.raises(pv.InputError, match=r'quadrature_log_marginal takes .+ of site "x" 1 to 3 times'):
        pv.quadrature_log_marginal(program(WEIGHTS, locals_=False)[0], X, Y)


@pytest.mark.parametrize(
    ("pair", "size"),
    [
        (program(beta=0.2), None),
        (program(beta=torch.tensor(0.2), size=6), 6),
        (tuple(poutine.scale(one, 0.01) for one in program()), None),
        (program(scale=0.5, beta=0.5), None),
    ],
    ids=["beta", "beta beside all of a plate", "a scale of everything", "one of data and shared latents"],
)
def test_a_beta_and_a_scale_of_everything_are_taken(pair, size):
    found = []
    for one in (pair, program(size=size)):
        pyro.set_rng_seed(0)
        found.append(pv.log_marginal(*one, X, Y, num_samples=20, **FEW).log_px)
    assert torch.equal(*found)


def test_a_scale_of_the_likelihood_is_a_beta_where_latents_are_of_a_datum():
    def model(x, scale):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, scale):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    truth = dist.Normal(0.0, 2**0.5).log_prob(X)
    for scale in (1.0, 5.0):
        found = pv.log_marginal(model, guide, X, scale, num_samples=5, **FEW)
        torch.testing.assert_close(found.log_px.to(truth), truth, atol=1e-5, rtol=0)


def test_training_and_comparing_take_the_scale():
    loc = Parameter(torch.tensor(0.3))

    def guide(x, y):
        pyro.sample("t", dist.Normal(pyro.param("loc", loc), 0.5))

    model = program(5.0, locals_=False)[0]
    found = pv.compare(model, guide, X, Y, objectives=["elbo"], num_particles=[1], repeats=4, compile=False, **FEW)
    assert found["elbo", 1].gap is None
