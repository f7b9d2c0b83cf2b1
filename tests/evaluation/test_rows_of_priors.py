"""Data are cut only where their latents' own densities stay what they are, in whatever rows these differ."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import suite_seed

import pyrovae as pv

NUM = 300
MEANS = torch.linspace(-3, 3, NUM)


@pytest.fixture
def x():
    torch.manual_seed(suite_seed(1))
    return (2 * torch.randn(NUM)).sort().values


def by_index(x, plate):
    return MEANS[plate]


def by_length(x, plate):
    return MEANS[: len(x)]


def of_the_batch(x, plate):
    return x.mean().expand(len(x))


def of_the_place(x, plate):
    return 0.02 * torch.arange(len(x))


def of_a_parameter(x, plate):
    return pyro.param("means", MEANS)[plate]


@pytest.mark.filterwarnings("ignore:all 300 data are taken at once")
@pytest.mark.parametrize("mean", [by_index, by_length, of_the_batch, of_the_place, of_a_parameter])
def test_a_guide_that_draws_from_the_prior_of_each_datum_gives_each_its_own_log_px(x, mean):
    """Prior and guide cancel in the log-weights, and each chunk drew from the first rows' prior, without a word."""

    def model(x):
        with pyro.plate("data", len(x)) as plate:
            z = pyro.sample("z", dist.Normal(mean(x, plate), 1.0))
            pyro.sample("x", dist.Normal(z, 2.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)) as plate:
            pyro.sample("z", dist.Normal(mean(x, plate), 1.0))

    with torch.no_grad():
        truth = dist.Normal(mean(x, torch.arange(NUM)), math.sqrt(5)).log_prob(x)
    found = pv.log_marginal(model, guide, x, num_samples=500)
    off = (found.log_px - truth) / found.standard_error
    assert off.square().mean().sqrt() < 1.5
    log_px, error = pv.quadrature_log_marginal(model, x, limit=12)
    assert bool(((log_px - truth).abs() <= error + 1e-5).all())
    assert error.max() < 0.01


@pytest.mark.filterwarnings("ignore:all 300 data are taken at once")
def test_enumeration_takes_the_states_probabilities_of_each_row(x):
    probs = torch.linspace(0.05, 0.95, NUM)

    def model(x):
        with pyro.plate("data", len(x)) as plate:
            z = pyro.sample("z", dist.Bernoulli(probs[plate]))
            pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)

    parts = probs.log() + dist.Normal(3.0, 1.0).log_prob(x), (-probs).log1p() + dist.Normal(0.0, 1.0).log_prob(x)
    found = pv.enumerated_log_marginal(model, x)
    torch.testing.assert_close(found, torch.logaddexp(*parts).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("more", [0, 951])
@pytest.mark.parametrize("first", [1_200, 2_048])
def test_of_many_data_all_are_compared_where_the_programs_hold_something_as_long(first, more):
    """A thousand data that stand for all have other places than among all, and none of them saw the later rows."""
    num = 2_049
    offsets = torch.zeros(num + more)
    offsets[first:] = 4.0
    torch.manual_seed(suite_seed(1))
    x = math.sqrt(2) * torch.randn(num) + offsets[:num]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)) + offsets[: len(x)], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - offsets[: len(x)]) / 2, math.sqrt(0.5)))  # the posterior

    with pytest.warns(UserWarning, match="all 2,049 data are taken at once"):
        found = pv.log_marginal(model, guide, x, num_samples=20)
    truth = dist.Normal(offsets[:num], math.sqrt(2)).log_prob(x).double()
    torch.testing.assert_close(found.log_px, truth, rtol=0, atol=1e-4)


# Models alone ---------------------------------------------------------------------------------------------------------

RULE = "a datum has a log p[(]x[)] of its own only if it has its own latents"


@pytest.mark.parametrize("mix", [lambda z: z.cumsum(-1), lambda z: z.roll(1, -1), lambda z: z - z.mean(-1, True)])
def test_data_that_read_each_other_s_latents_have_no_log_px_each_by_quadrature(mix):
    """Its grid gives all data the same z, so that it was wrong with an error bound of 1e-8."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mix(pyro.sample("z", dist.Normal(0.0, 1.0))), 1.0), obs=x)

    with pytest.raises(pv.InputError, match=RULE):
        pv.quadrature_log_marginal(model, torch.randn(5))


def test_nor_where_only_the_last_of_many_rows_do():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(x > 50, z.roll(1, -1), z), 1.0), obs=x)

    x = torch.randn(1_000)
    x[-5:] = 60.0
    with pytest.raises(pv.InputError, match=RULE):
        pv.quadrature_log_marginal(model, x)


def test_nor_by_enumeration():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z.cumsum(-1), 1.0), obs=x)

    with pytest.raises(pv.InputError, match=RULE):
        pv.enumerated_log_marginal(model, torch.randn(5))


@pytest.mark.parametrize("reshape", [lambda z: z.expand([5]), lambda z: z[:5] + z[4], lambda z: z.item()])
@pytest.mark.parametrize("name", ["quadrature_log_marginal", "enumerated_log_marginal"])
def test_a_model_that_takes_one_value_at_a_time_is_refused_in_a_line(name, reshape):
    prior = dist.Normal(0.0, 1.0) if name[0] == "q" else dist.Bernoulli(0.5)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(reshape(z) if z.numel() > len(x) else z, 1.0), obs=x)

    rule = f"{name} gives latents many values at once, in a dimension left of the plates, which the model does not take"
    with pytest.raises(pv.InputError, match=rule):
        getattr(pv, name)(model, torch.randn(5))


def beside(x, y):
    """Two kinds of data, each with latents of its own."""
    for name, values in {"first": x, "second": y}.items():
        with pyro.plate(name, len(values)):
            z = pyro.sample(f"{name}_z", dist.Bernoulli(0.3))
            pyro.sample(f"{name}_x", dist.Normal(z, 1.0), obs=values)


def both_drawn(x, y):
    for name, values in {"first": x, "second": y}.items():
        with pyro.plate(name, len(values)):
            pyro.sample(f"{name}_z", dist.Normal(values / 2, 0.9))


def continuous(x, y):
    for name, values in {"first": x, "second": y}.items():
        with pyro.plate(name, len(values)):
            pyro.sample(f"{name}_x", dist.Normal(pyro.sample(f"{name}_z", dist.Normal(0.0, 1.0)), 1.0), obs=values)


DOORS = {
    "annealed_log_marginal": lambda *args: pv.annealed_log_marginal(
        continuous, both_drawn, *args, num_distributions=3, num_chains=2
    ),
    "bidirectional_gap": lambda *args: pv.bidirectional_gap(continuous, both_drawn, *args, num_distributions=3),
    "elbo_surgery": lambda *args: pv.elbo_surgery(continuous, both_drawn, *args),
    "active_units": lambda *args: pv.diagnostics.active_units(continuous, both_drawn, *args),
    "enumerated_log_marginal": lambda *args: pv.enumerated_log_marginal(beside, *args),
}


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("sizes", [(4, 6), (4, 4)])
def test_latents_of_data_in_plates_side_by_side_are_refused_where_they_cannot_be_told_apart(name, sizes):
    """Enumeration was too high by the other plate's states, without a word, and the others ended in a traceback."""
    rule = f"{name} needs data in one plate, or latents that all share, got the plates first, second"
    with pytest.raises(pv.InputError, match=rule):
        DOORS[name](*map(torch.randn, sizes))


def test_weights_of_data_in_plates_side_by_side_are_right():
    x, y = torch.randn(4), torch.randn(6)
    found = pv.log_marginal(continuous, both_drawn, x, y, num_samples=2_000)
    truth = dist.Normal(0.0, math.sqrt(2)).log_prob(torch.cat([x, y])).double()
    assert ((found.log_px - truth) / found.standard_error).abs().max() < 5
