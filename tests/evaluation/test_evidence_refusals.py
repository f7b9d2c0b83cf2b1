"""Which parts of data and of particles no evidence is taken of: each is refused by the name of the function."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import conjugate
from exact.hierarchical import Hierarchy, data
from helpers import assert_within_standard_errors, suite_seed

import pyrovae as pv


def with_plate(**settings):
    def model(x):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), **settings) as index:
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(x):
        pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), **settings):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return model, guide


@pytest.mark.parametrize("settings", [{"subsample_size": 2}, {"subsample": torch.tensor([0, 1])}])
@pytest.mark.parametrize("name", ["log_marginal", "importance_bound", "annealed_log_marginal", "evaluate"])
def test_a_part_of_the_data_that_share_latents_is_refused(name, settings):
    given = {"importance_bound": {"num_particles": 2}, "evaluate": {"methods": ["elbo"]}}.get(name, {})
    rule = f'^{name} needs all of the data that share a latent, and the plate "data" holds a subsample of 2 of the 5$'
    with pytest.raises(pv.InputError, match=rule):
        getattr(pv, name)(*with_plate(**settings), torch.randn(5), **given)


def test_a_part_of_the_terms_of_a_datum_is_refused():
    def model(x):
        with pyro.plate("documents", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("words", x.shape[1], subsample_size=2, dim=-1) as index:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])

    def guide(x):
        with pyro.plate("documents", len(x), dim=-2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.randn(4, 3)
    for name, call in {
        "log_marginal": lambda: pv.log_marginal(model, guide, x),
        "importance_bound": lambda: pv.importance_bound(model, guide, x, num_particles=2),
        "evaluate": lambda: pv.evaluate(model, guide, x, methods=["elbo", "iwae_2"]),
    }.items():
        rule = f'^{name} needs all terms of a datum, and the plate "words" subsamples them'
        with pytest.raises(pv.InputError, match=rule):
            call()
    torch.manual_seed(suite_seed(14))
    found = pv.importance_bound(model, guide, x, num_particles=1, num_repeats=500)  # the ELBO, with all words
    truth = -0.5 * (x.square() + 1).sum(1) - 1.5 * math.log(2 * math.pi)
    assert_within_standard_errors(found.value, truth, found.standard_error, dtype=torch.float32)
    pv.evaluate(model, guide, x, methods=["elbo"])


def test_num_particles_is_for_pairs_with_both_kinds_of_latents():
    x = conjugate.tosses(2, 2)
    rule = "num_particles is for pairs with latents of each datum beside shared ones, and this is no such pair; got 8"
    with pytest.raises(pv.InputError, match=rule):
        pv.log_marginal(conjugate.coin, conjugate.coin_guide, x, num_particles=8)
    with pytest.raises(pv.InputError, match="num_particles must be <= num_samples = 10, got 64"):
        pv.log_marginal(Hierarchy(), data(3), num_samples=10, num_particles=64)
