"""What `fit` cannot train of a pair with sites outside the data plate is refused in one line."""

import pyro
import pyro.distributions as dist
import torch
from global_pairs import BATCH, Unknown, X, double, pair_of
from helpers import Pair, refusal
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pyrovae as pv
from pyrovae.objectives import IWAE


def fit(pair, data, **settings) -> None:
    pv.fit(pair, data, epochs=1, batch_size=BATCH, progress=False, **settings)


def local_model(x):
    theta = pyro.sample("theta", dist.Normal(double(0.0), 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(theta, 1.0)), 0.5), obs=x)


def test_an_unknown_number_of_data_is_refused():
    assert "must be known for a pair with sites outside the data plate: give a tensor" in refusal(
        fit, pair_of(), Unknown()
    )
    fit(pair_of("declared"), Unknown())


def test_the_number_of_data_of_each_of_two_plates_is_asked_for():
    def model(x):
        theta = pyro.sample("theta", dist.Normal(double(0.0), 3.0))
        for name, part in (("first", x[:1]), ("second", x[1:])):
            with pyro.plate(name, len(part)):
                pyro.sample(f"x_{name}", dist.Normal(theta, 0.5), obs=part)

    pair = Pair(model, pair_of().guide)
    assert 'is not for each of the plates "first" and "second"' in refusal(fit, pair, X)
    pv.fit(pair, X, epochs=1)


def test_one_bound_for_all_data_takes_one_batch():
    pair, joint = pair_of(has_local=True), IWAE(3, joint=True)
    message = refusal(fit, pair, X, objective=joint)
    assert "joint=True puts all data under one bound: they must be in one batch, got 4" in message
    pv.fit(pair, X, epochs=1, objective=joint)


def test_a_guide_of_given_data_takes_one_batch():
    for guide, why in (
        (AutoNormal(local_model), "AutoNormal has parameters for each datum: all data must be in one batch"),
        (AutoMultivariateNormal(local_model), "draws the latents of all data at once: they must be in one batch"),
    ):
        assert why in refusal(fit, Pair(local_model, guide), X)


def test_a_global_site_that_comes_after_the_first_batch_is_refused():
    def model(x):
        theta = pyro.sample("theta", dist.Normal(double(0.0), 3.0)) if x[0] > 0 else double(0.0)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(theta + pyro.param("shift", double(0.1)), 0.5), obs=x)

    def guide(x):
        if x[0] > 0:
            pyro.sample("theta", dist.Normal(pyro.param("loc", double(0.0)), 0.3))

    message = refusal(fit, Pair(model, guide), [-torch.ones(2).double(), torch.ones(2).double()])
    assert 'site "theta" must be there at the first batch, as a site outside the data plate' in message
