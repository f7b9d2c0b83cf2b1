"""Each particle has the density that it has alone: work across leading dimensions is refused, and rounding is not."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from scalar_pairs import double

import pyrovae as pv
from pyrovae.objectives import ELBO
from pyrovae.programs import run_pair

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


def normal(shape=(2,)):
    return dist.Normal(ZERO, ONE).expand(shape).to_event(len(shape))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sd", [1.0, 30.0, 60.0])
def test_rounding_is_not_taken_for_work_across_leading_dimensions(sd, seed):
    torch.manual_seed(seed)
    vae = pv.VAE((2,), latent_dim=2, hidden=(16,), likelihood=pv.Gaussian(sd), posterior="flow")
    x = sd * torch.randn(64, 2)
    assert math.isfinite(replace(ELBO(), num_particles=2).loss(vae.model, vae.guide, x))


def test_work_across_leading_dimensions_is_found_in_large_values_too():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 100.0).to_event(1))
            pyro.sample("x", dist.Normal(z + 0.1 * torch.softmax(z, 0), 1.0).to_event(1), obs=x)

    pyro.param("unused", double(0.0))
    with pytest.warns(UserWarning, match="something in it works across leading dimensions"):
        ELBO().loss(model, guide, 100 * torch.randn(8, 2))


def test_particles_of_a_network_that_works_across_leading_dimensions_run_one_after_another():
    """With a dimension of particles it runs, and normalises over the batch in place of the features."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal((3,)))
            pyro.sample("x", dist.Normal(3 * z.softmax(1), 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.5).to_event(1))

    vectorized = pv.objectives.IWAE(3, vectorize_particles=True)
    with pytest.raises(pv.InputError, match="the model must give each particle the density that it has alone"):
        vectorized.loss(model, guide, X)
    with pytest.warns(UserWarning, match="something in it works across leading dimensions"):
        log_w = pv.log_weights(model, guide, X, num_particles=3)
    assert log_w.shape == (3, 4)
    pair = run_pair(model, guide, X, num_particles=3)
    z = pair.draws()["z"]
    log_likelihood = dist.Normal(3 * z.softmax(-1), 0.1).log_prob(X).sum(-1)
    torch.testing.assert_close(pair.terms().log_likelihood, log_likelihood, atol=1e-10, rtol=0)
