"""Sums and integrals over the latents of a model alone, whose plates lie otherwise."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import suite_seed

import pyrovae as pv


def switch(x, dim=-1, size=True):
    shape = (len(x), *(1,) * (-1 - dim))
    with pyro.plate("data", len(x) if size else None, dim=dim):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double().expand(shape)))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x.reshape(shape))


def line(x, dim=-1, size=True):
    shape = (len(x), *(1,) * (-1 - dim))
    with pyro.plate("data", len(x) if size else None, dim=dim):
        z = pyro.sample("z", dist.Normal(torch.zeros(*shape, 1).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.squeeze(-1), 0.02), obs=x.reshape(shape))


@pytest.mark.parametrize("settings", [{"dim": -3}, {"size": False}, {"dim": -2, "size": False}])
def test_sums_and_integrals_over_latents_at_other_dims(settings):
    torch.manual_seed(suite_seed(7))
    x = torch.randn(9).double()
    summed = pv.enumerated_log_marginal(lambda x: switch(x, **settings), x)
    torch.testing.assert_close(summed, pv.enumerated_log_marginal(switch, x), rtol=0, atol=1e-12)
    value, error = pv.quadrature_log_marginal(lambda x: line(x, **settings), x, num_points=51)  # refined in cells
    truth = dist.Normal(0.0, torch.tensor(1.0004).double().sqrt()).log_prob(x)
    assert error.max() < 0.02
    torch.testing.assert_close(value, truth, rtol=0, atol=1e-3)


def test_shared_latents_alone_are_summed_and_integrated_for_all_data_together():
    x = torch.tensor([0.3, 1.9, 2.2]).double()

    def shared(x):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def mean(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0) if z.dim() == 1 else dist.Normal(z.squeeze(-1), 1.0), obs=x)

    def at(value):
        return dist.Normal(value, torch.ones(()).double()).log_prob(x).sum()

    by_hand = torch.stack([at(0.0) + torch.tensor(0.7).log(), at(2.0) + torch.tensor(0.3).log()]).logsumexp(0)
    torch.testing.assert_close(pv.enumerated_log_marginal(shared, x), by_hand.reshape(1).double(), rtol=0, atol=1e-6)
    value, error = pv.quadrature_log_marginal(mean, x)
    covariance = torch.ones(3, 3).double() + torch.eye(3).double()
    truth = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x)
    torch.testing.assert_close(value, truth.reshape(1), rtol=0, atol=1e-6)
    assert error.item() < 1e-3


def test_sums_take_data_that_cannot_be_cut():
    scale = torch.linspace(0.5, 2.0, 300).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
            pyro.sample("x", dist.Normal(2 * z, scale[: len(x)]), obs=x)

    x = torch.zeros(300).double()
    parts = [
        dist.Normal(mean, scale).log_prob(x) + torch.tensor(p).double().log() for mean, p in ((0, 0.7), (2.0, 0.3))
    ]
    with pytest.warns(UserWarning, match="all 300 data are taken at once"):
        found = pv.enumerated_log_marginal(model, x)
    torch.testing.assert_close(found, torch.stack(parts).logsumexp(0), rtol=0, atol=1e-10)
