"""Sums and integrals over the latents of a model alone, at any plate, and estimates where the model sums out states."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import discrete_states
from helpers import assert_within_standard_errors, refusal, suite_seed

import pyrovae as pv

# A model alone --------------------------------------------------------------------------------------------------------


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


def test_latents_in_further_plates_are_refused_by_name():
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("units", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    rule = 'needs latents with one value for each datum, or one for all, and site "z" lies in the plate "units"'
    for function in (pv.enumerated_log_marginal, pv.quadrature_log_marginal):
        assert refusal(function, model, torch.zeros(3, 2)) == f"{function.__name__} {rule}"


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


# States that the model sums out ---------------------------------------------------------------------------------------


def with_component(x):
    """x = z + 2 c + noise, with a component c that the model sums out."""
    with pyro.plate("data", len(x), dim=-1):
        component = dist.Bernoulli(torch.tensor(0.3).double())
        c = pyro.sample("c", component, infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.squeeze(-1) + 2 * c, 0.5), obs=x)


def log_px_of_components(x):
    scale = torch.tensor(1.25).double().sqrt()
    parts = [dist.Normal(2.0 * c, scale).log_prob(x) + torch.tensor(p).double().log() for c, p in ((0, 0.7), (1, 0.3))]
    return torch.stack(parts).logsumexp(0)


def test_states_that_the_model_sums_out_are_summed_in_every_estimate():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.4 * x.unsqueeze(-1), 1.2).to_event(1))

    torch.manual_seed(suite_seed(10))
    x = torch.randn(6).double() + 1
    truth = log_px_of_components(x)
    value, _ = pv.quadrature_log_marginal(with_component, x)
    torch.testing.assert_close(value, truth, rtol=0, atol=1e-8)
    sampled = pv.log_marginal(with_component, guide, x, num_samples=1_000)
    assert_within_standard_errors(sampled.log_px, truth, sampled.standard_error)
    for start in ("prior", "guide"):
        chains = {"num_distributions": 10, "num_chains": 60, "num_leapfrog": 3, "start": start}
        annealed = pv.annealed_log_marginal(with_component, guide, x, **chains)
        assert_within_standard_errors(annealed.log_px, truth, annealed.standard_error)
    assert pv.diagnostics.active_units(with_component, guide, x) == 1
    found = pv.evaluate(with_component, guide, x, methods=("elbo", "is_50"))
    assert found.event_size == 1


def test_a_model_may_sum_out_all_of_its_latents():
    def marked(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    x = torch.randn(7).double()
    summed = pv.enumerated_log_marginal(marked, x)
    torch.testing.assert_close(summed, pv.enumerated_log_marginal(switch, x), rtol=0, atol=1e-12)
    x = torch.randn(5, 4).double()
    summed = pv.enumerated_log_marginal(discrete_states.chain, x)
    torch.testing.assert_close(summed, discrete_states.chain_log_px(x), rtol=0, atol=1e-10)


def test_a_mark_of_the_guide_is_for_training_and_its_site_is_drawn_in_estimates():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            probability = 0.1 + 0.8 * (2 * x - 2).sigmoid()  # no state so rare that it may not be drawn
            pyro.sample("z", dist.Bernoulli(probability), infer={"enumerate": "parallel"})

    torch.manual_seed(suite_seed(11))
    x = torch.randn(7).double()
    found = pv.log_marginal(switch, guide, x, num_samples=1_000)
    assert_within_standard_errors(found.log_px, pv.enumerated_log_marginal(switch, x), found.standard_error)
