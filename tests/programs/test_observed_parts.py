"""A model of which a part is observed: what it leaves out must be the hidden cells, and nothing may read them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, refusal, suite_seed

import pyrovae as pv
from pyrovae.common import device_of
from pyrovae.programs import observing_parts

HALF = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double() / math.sqrt(2)
FIRST_GIVEN, LAST_GIVEN = torch.tensor([True, False]), torch.tensor([False, True])
RULE = 'the model must observe cells of x as they are, or say missing = "mask" and leave out those of NaN'


def normal(loc, scale=1.0):
    return dist.Normal(torch.as_tensor(loc).double(), scale)


def guide(x, mask):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", normal(torch.zeros(len(x)), 1.0))


def of_columns(observe):
    """A model of z ~ N(0, 1) and what `observe(x, z)` observes of two columns."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal(0.0))
            observe(x, z)

    return model


def transformed(x, z):
    both = torch.stack([z, torch.zeros_like(z)], -1)
    pyro.sample("x", dist.Normal(both, 1.0).to_event(1), obs=x @ HALF)


def differences(x, z):
    pyro.sample("x_0", normal(z), obs=x[:, 0])
    pyro.sample("x", normal(z), obs=x[:, 1] - x[:, 0])


def sums(x, z):
    pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x.cumsum(-1))


def signs(x, z):
    pyro.sample("x_0", normal(z), obs=x[:, 0])
    pyro.sample("x_1", dist.Bernoulli(logits=z), obs=(x[:, 1] > 0).double())


def filled(x, z):
    pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x.nan_to_num())


def whole_numbers(x, z):
    pyro.sample("x_0", normal(z), obs=x[:, 0])
    pyro.sample("x_1", dist.Poisson(z.exp()), obs=x[:, 1].long())


@pytest.mark.parametrize("observe", [transformed, differences, sums, signs, filled, whole_numbers])
@pytest.mark.parametrize("num", [2, 150])
def test_a_function_of_cells_in_their_place_is_refused(observe, num):
    """Of x @ Q all was masked: log p(x_a|x_b) was -2.18 for -1.06; of a sign the NaN was an observed 0."""
    x = torch.ones(num, 2).double()
    given = torch.stack([FIRST_GIVEN, LAST_GIVEN]).repeat(num // 2, 1)
    said = refusal(pv.conditional_log_marginal, of_columns(observe), guide, x, given=given)
    assert said.startswith(RULE)


def test_cells_in_another_order_are_cells():
    def turned(x, z):
        scale = torch.tensor([1.0, 1e6]).double()
        pyro.sample("x", dist.Normal(torch.zeros_like(x), scale).to_event(1), obs=x.flip(-1))

    x = torch.tensor([[1_000_003.0, 0.5]]).double()  # a value where the numbers of cells might lie
    found = pv.conditional_log_marginal(of_columns(turned), guide, x, given=FIRST_GIVEN, num_samples=30)
    assert found.value.item() == pytest.approx(normal(0.0).log_prob(torch.tensor(0.5)).item(), abs=1e-10)


def a_chain(x, z):
    """x_1 follows what the first site returns."""
    first = pyro.sample("x_0", normal(z), obs=x[:, 0])
    pyro.sample("x_1", normal(first, 0.1), obs=x[:, 1])


def test_a_site_that_follows_another_one_reads_no_value_made_up():
    """log p(x_1 = 1) of N(0, 2.01) is -1.52, and was -48.6, the density at x_0 = 0."""
    x = torch.ones(1, 2).double()
    said = refusal(pv.conditional_log_marginal, of_columns(a_chain), guide, x, given=LAST_GIVEN)
    assert said.startswith('the site "x_1" of the model must not depend on cells of x that are left out')
    # x_1 given x_0 reads a cell that is there
    torch.manual_seed(suite_seed(1))
    found = pv.conditional_log_marginal(of_columns(a_chain), guide, x, given=FIRST_GIVEN, num_samples=2_000)
    exact = normal(1.0, 0.1).log_prob(torch.tensor(1.0).double())
    assert_within_standard_errors(found.value[0], exact, found.standard_error[0])


def test_what_is_left_out_in_one_row_of_many_is_looked_at_too():
    x = torch.ones(200, 2).double()
    given = torch.tensor([[True, False]] * 200)
    given[150] = LAST_GIVEN
    said = refusal(pv.conditional_log_marginal, of_columns(a_chain), guide, x, given=given)
    assert said.startswith('the site "x_1" of the model must not depend')


def test_the_model_of_parts_is_where_its_module_is():
    """A model on a GPU and x on the CPU failed, as a closure hides its module."""
    vae = pv.LinearGaussianVAE(torch.ones(3, 2), torch.zeros(3), 0.5, torch.zeros(2)).to("meta")
    model, _ = observing_parts(vae.model, guide)
    assert device_of(model, (torch.zeros(1),)).type == "meta"


def test_a_factor_is_refused_for_what_it_is():
    """Its empty value was refused first, as one without a density of its elements."""

    def with_factor(x, z):
        pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0).to_event(1), obs=x)
        pyro.factor("one", torch.full_like(z, 0.5))

    x = torch.tensor([[1.0, 0.5]]).double()
    said = refusal(pv.conditional_log_marginal, of_columns(with_factor), guide, x, given=FIRST_GIVEN)
    assert said.endswith('site "one" is a factor, and the joint is then not normalised')


def test_a_vae_that_is_not_for_missing_cells_takes_parts_with_another_guide():
    """Its model is handed on as that of its module, which must not refuse the NaN that stand for what is left out."""

    def prior(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2) + 0 * mask.sum(), 1.0).to_event(1))

    own, x = pv.VAE((3,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(1.0)), torch.randn(3, 3)
    found = pv.conditional_log_marginal(own.model, prior, x, given=torch.arange(3) < 1, num_samples=30)
    assert found.value.isfinite().all()
    holes = torch.where(torch.arange(3) < 1, torch.nan, x)
    assert pv.impute(own.model, prior, holes, num_samples=30, num_draws=1).value.isfinite().all()
