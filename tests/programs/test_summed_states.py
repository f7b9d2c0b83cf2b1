"""Discrete sites in the model alone, marked for enumeration: every log-weight is the sum over their states."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import discrete_states
from exact.discrete_states import chain, chain_log_px, mixture, mixture_log_px, no_latent
from helpers import assert_within_standard_errors, mean_and_error, refusal, suite_seed
from scalar_pairs import gradients
from torch.testing import assert_close

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, DReG
from pyrovae.programs import run_pair

POINTS = torch.linspace(-2, 3, 7, dtype=torch.float64)
SEQUENCES = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CASES = {"mixture": (mixture, POINTS, mixture_log_px), "chain": (chain, SEQUENCES, chain_log_px)}


@pytest.mark.parametrize("case", CASES)
def test_log_px_is_the_sum_over_the_states(case):
    model, x, log_px = CASES[case]
    for num_samples in (1, 3):
        result = pv.log_marginal(model, no_latent, x, num_samples=num_samples)
        assert_close(result.log_px, log_px(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("objective", [ELBO(1), ELBO(3), IWAE(1)], ids=str)
def test_an_objective_of_summed_states_is_the_likelihood_with_its_gradient(case, objective):
    model, x, log_px = CASES[case]
    assert objective.loss(model, no_latent, x) == pytest.approx(-log_px(x).sum().item(), abs=1e-10)
    means = discrete_states.MEANS.clone().requires_grad_()
    truth = torch.autograd.grad(-log_px(x, means).sum(), means)[0]
    objective.loss_and_grads(model, no_latent, x)
    assert_close(pyro.get_param_store()._params["means"].grad, truth, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_it_is_pyros_own_sum(case):
    model, x, log_px = CASES[case]
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    assert elbo.loss(model, no_latent, x) == pytest.approx(-log_px(x).sum().item(), abs=1e-8)


def test_many_steps_are_no_harder_than_few():
    """A sum over the 3^40 paths of states is taken step by step."""
    x = torch.randn(2, 40).double()
    result = pv.log_marginal(chain, no_latent, x, num_samples=1)
    assert_close(result.log_px, chain_log_px(x), rtol=0, atol=1e-9)


def mixed_pair(states):
    """A mixture of `states` components, all equal; with 0 of them there is no site for the component."""

    def model(x, c=None):
        with pyro.plate("data", len(x)):
            mean = torch.tensor(0.5)
            if states:
                fn = dist.Categorical(torch.ones(states))
                mean = mean + 0 * pyro.sample("c", fn, infer={"enumerate": "parallel"}, obs=c)
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(x, c=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.6 * x, pyro.param("scale", torch.tensor(0.8))))

    return model, guide


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("objective", [ELBO, DReG])
def test_a_state_that_is_the_only_one_changes_nothing(objective, vectorized):
    losses = []
    for states in (0, 1, 2):
        torch.manual_seed(suite_seed(1))
        losses.append(objective(3, vectorize_particles=vectorized).loss(*mixed_pair(states), POINTS.float()))
    assert losses == pytest.approx(losses[:1] * 3, abs=1e-5)


@pytest.mark.parametrize("vectorized", [True, False])
def test_states_may_be_given_for_a_part_of_the_batches(vectorized):
    model, guide = mixed_pair(2)
    objective, x = ELBO(3, vectorize_particles=vectorized), POINTS.float()
    for c in (None, torch.zeros(len(x)), None):
        losses = []
        for pair in ((model, guide), mixed_pair(2)):
            objective.loss(*pair, x, c)  # once more with the states as they are
            torch.manual_seed(suite_seed(2))
            losses.append(objective.loss(*pair, x, c))
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# With a continuous latent beside the state ----------------------------------------------------------------------------


def shifted_mixture(x):
    """The mixture's means are moved by a latent of each datum's own, which the guide draws."""
    with pyro.plate("data", len(x), dim=-1):
        component = pyro.sample(
            "component", dist.Categorical(discrete_states.WEIGHTS), infer=dict(discrete_states.SUMMED)
        )
        shift = pyro.sample("shift", dist.Normal(torch.zeros(()).double(), 0.5))
        pyro.sample("x", dist.Normal(discrete_states.MEANS[component] + shift, discrete_states.SD), obs=x)


def shift_guide(x):
    loc = pyro.param("loc", torch.tensor(0.2, dtype=torch.float64))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("shift", dist.Normal(loc + 0.1 * x, 0.6))


def shifted_log_px(x):
    """A mixture of Gaussians, whose variances add."""
    sd = math.hypot(0.5, discrete_states.SD)
    return (discrete_states.WEIGHTS.log() + dist.Normal(discrete_states.MEANS, sd).log_prob(x[:, None])).logsumexp(-1)


def test_weights_beside_a_continuous_latent_are_the_sum_at_its_draws():
    pair = run_pair(shifted_mixture, shift_guide, POINTS, num_particles=4)
    shift = pair.draws()["shift"]
    likelihood = mixture_log_px((POINTS - shift).flatten()).reshape(shift.shape)
    prior = dist.Normal(torch.zeros(()).double(), 0.5).log_prob(shift)
    truth = likelihood + prior - dist.Normal(0.2 + 0.1 * POINTS, 0.6).log_prob(shift)
    assert_close(pair.terms().log_weights, truth, rtol=0, atol=1e-10)


def test_log_px_beside_a_continuous_latent_is_within_its_error():
    result = pv.log_marginal(shifted_mixture, shift_guide, POINTS, num_samples=4_000)
    assert_within_standard_errors(result.log_px, shifted_log_px(POINTS), result.standard_error)


def test_dreg_has_iwaes_gradient_beside_a_sum():
    """The path of the continuous latent goes through the sum over states."""
    x = POINTS.repeat(200)
    means = [
        gradients(objective, (shifted_mixture, shift_guide), x, num=30).squeeze(1) for objective in (IWAE(4), DReG(4))
    ]
    difference = means[0].mean() - means[1].mean()
    error = sum(one.var() / len(one) for one in means).sqrt()
    assert_within_standard_errors(difference, 0.0, error)
    assert means[1].mean().abs() > 5 * means[1].std() / math.sqrt(30)


# With globals ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:particles run one after another")
def test_global_means_leave_the_sum_of_each_datum():
    """The evidence of all data is the sum over their joint assignments, within the error of nested weights."""
    x = POINTS[:5]
    result = pv.log_marginal(discrete_states.unknown_means, discrete_states.means_guide, x, num_samples=500)
    assert result.log_px.shape == (1,)
    assert_within_standard_errors(result.log_px[0], discrete_states.unknown_means_log_px(x), result.standard_error[0])
    assert result.standard_error.item() < 0.2


def test_a_state_that_all_data_share_makes_them_one_datum():
    x = POINTS[:4]
    truth = discrete_states.one_state_log_px(x)
    result = pv.log_marginal(discrete_states.one_state_for_all, no_latent, x, num_samples=1)
    assert_close(result.log_px, truth[None], rtol=0, atol=1e-10)
    assert ELBO().loss(discrete_states.one_state_for_all, no_latent, x) == pytest.approx(-truth.item(), abs=1e-10)


@pytest.mark.parametrize("objective", [ELBO(1), IWAE(1)], ids=str)
def test_a_subsample_of_a_mixture_is_unbiased(objective):
    def subsampled(x):
        with pyro.plate("data", len(x), subsample_size=3, dim=-1) as index:
            component = pyro.sample(
                "component", dist.Categorical(discrete_states.WEIGHTS), infer=dict(discrete_states.SUMMED)
            )
            pyro.sample("x", dist.Normal(discrete_states.MEANS[component], discrete_states.SD), obs=x[index])

    losses = torch.tensor([objective.loss(subsampled, no_latent, POINTS) for _ in range(120)], dtype=torch.float64)
    assert_within_standard_errors(*mean_and_error(-losses)[:1], mixture_log_px(POINTS).sum(), mean_and_error(losses)[1])


def test_a_state_that_all_data_share_is_not_subsampled():
    """Its sum is outside the product over all data, of which a part says nothing unbiased."""

    def subsampled(x):
        state = pyro.sample("state", dist.Categorical(discrete_states.WEIGHTS), infer=dict(discrete_states.SUMMED))
        with pyro.plate("data", len(x), subsample_size=3, dim=-1) as index:
            pyro.sample("x", dist.Normal(discrete_states.MEANS[state], discrete_states.SD), obs=x[index])

    for call in (ELBO().loss, IWAE(1).loss):
        assert "data" in refusal(call, subsampled, no_latent, POINTS)
