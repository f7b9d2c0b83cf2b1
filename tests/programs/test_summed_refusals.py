"""What cannot be summed out exactly is refused in one line that says what to do instead."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import refusal
from pyro import poutine
from pyro.infer import config_enumerate
from scalar_pairs import OnLatents
from summed_pairs import PARALLEL, of_summed, summed_run

from pyrovae.programs.enumerated_runs import is_marked
from pyrovae.programs.sites import sample_sites
from pyrovae.programs.summed_sites import check_scales, summed_groups

X = torch.tensor([0.3, -0.2])


def site(fn, **infer):
    """Returns a model whose site c is of this distribution, with these marks."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", fn, infer={"enumerate": "parallel", **infer})
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (site(dist.Normal(0.0, 1.0)), 'got Normal at site "c"'),
        (site(dist.Poisson(2.0)), 'got Poisson at site "c"'),
        (site(dist.Binomial(torch.tensor([2.0, 3.0]), 0.5)), "must have the same finitely many values everywhere"),
        (site(dist.Bernoulli(torch.full((20,), 0.5)).to_event(1)), "must have at most 65,536 values"),
        (site(dist.Bernoulli(0.5), enumerate="sequential"), 'must then be "parallel", got "sequential"'),
        (site(dist.Bernoulli(0.5), num_samples=4), "num_samples must be left out, got 4"),
        (site(dist.Bernoulli(0.5).mask(torch.tensor([True, False]))), "put poutine.mask around the site"),
        (config_enumerate(site(dist.Bernoulli(0.5)), num_samples=4), "num_samples must be left out, got 4"),
    ],
)
def test_marks_that_ask_for_no_exact_sum(model, said):
    assert said in refusal(summed_run, model, X)


def many(x):
    for n in range(70):
        pyro.sample(f"c_{n}", dist.Bernoulli(0.5), infer=PARALLEL)


def test_more_sites_than_a_tensor_has_dimensions():
    assert "at most 64 dimensions" in refusal(summed_run, many, X, nesting=3)


def test_a_site_outside_the_plate_of_the_data():
    def model(x):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    message = refusal(of_summed, model, X, data=2)
    assert message == 'site "c" lies outside the plate "data" and inside the sum over "c", which couples all data'


def test_a_site_outside_the_plate_of_a_summed_site_that_it_depends_on():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("inner", 3, dim=-1):
                c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c, 1.0), obs=x[:, None])

    message = refusal(of_summed, model, X, data=2, nesting=2)
    assert message == 'site "x" depends on the summed site "c" and must lie in its plate "inner", too'


def test_a_site_that_depends_on_the_state_of_another_datum():
    def model(x):
        c = 0.0
        for n in pyro.plate("data", len(x)):
            c = c + pyro.sample(f"c_{n}", dist.Bernoulli(0.5), infer=PARALLEL)
            pyro.sample(f"x_{n}", dist.Normal(c, 1.0), obs=x[n])

    message = refusal(of_summed, model, X, data=2)
    assert message == 'site "x_1" depends on the summed site "c_0" of another datum'


def test_states_in_crossing_plates():
    def model(x):
        rows, columns = pyro.plate("rows", 4, dim=-1), pyro.plate("columns", 4, dim=-2)
        with pyro.plate("data", len(x), dim=-3):
            with rows:
                a = pyro.sample("a", dist.Bernoulli(0.5), infer=PARALLEL)
            with columns:
                b = pyro.sample("b", dist.Bernoulli(0.5), infer=PARALLEL)
            with rows, columns:
                pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.zeros(len(x), 4, 4))

    message = refusal(of_summed, model, X, data=2, nesting=3)
    assert message.startswith('the sum over sites "a", "b" grows exponentially with plates that cross')


def test_an_inner_plate_without_a_size():
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("inner", dim=-1):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c.expand((*c.shape[:-1], 3)), 1.0), obs=x[:, None].expand(2, 3))

    assert 'the plate "inner" needs a size' in refusal(of_summed, model, X, data=2, nesting=2)


def test_a_dimension_that_no_plate_declares():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c, 1.0).expand([2, 1, 3, 2]), obs=x.expand(3, 2))

    message = refusal(of_summed, model, X, data=2, nesting=2)
    assert message.startswith('every dimension of site "x" must be that of a plate')
    assert "got another at [-2]" in message


def test_a_state_that_depends_on_one_beyond_the_history_of_its_chain():
    def model(x):
        with pyro.plate("data", len(x)):
            past = [torch.tensor(0.0)] * 2
            for t in pyro.markov(range(4)):
                past = [past[1], pyro.sample(f"c_{t}", dist.Bernoulli(0.3 + 0.4 * past[0]), infer=PARALLEL)]

    message = refusal(summed_run, model, X)
    assert message.startswith('site "c_2" depends on a summed site that is out of reach: the history of pyro.markov')


def test_a_state_of_a_chain_that_has_ended():
    def model(x):
        with pyro.plate("data", len(x)):
            c = torch.tensor(0.0)
            for t in pyro.markov(range(3)):
                c = pyro.sample(f"c_{t}", dist.Bernoulli(0.3 + 0.4 * c), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    message = refusal(of_summed, model, X, data=2)
    assert message.startswith('every dimension of site "x" must be that of a plate, or of a summed site within reach')


# Scales ---------------------------------------------------------------------------------------------------------------


def scaled(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
        with poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)


def test_a_scale_inside_a_sum():
    message = refusal(check_scales, summed_groups(summed_run(scaled, X)))
    assert message == (
        'poutine.scale must be one number for all sites inside the sum over "c", '
        'got 1.0 at site "c" and 2.0 at site "x"'
    )


def prior_and_likelihood(x):
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(c, 1.0))
        pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)


def draws_z(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_a_beta_on_latents_whose_prior_and_likelihood_one_sum_couples():
    sites = summed_run(OnLatents(0.5)(prior_and_likelihood), X, guide=draws_z, num_particles=2)
    assert 'got 0.5 at site "c" and 1.0 at site "x"' in refusal(check_scales, summed_groups(sites))
    sites = summed_run(poutine.scale(prior_and_likelihood, 0.5), X, guide=draws_z, num_particles=2)
    check_scales(summed_groups(sites))


# Marks ----------------------------------------------------------------------------------------------------------------


def test_marks_are_read_without_a_sum():
    sites = sample_sites(poutine.trace(config_enumerate(prior_and_likelihood)).get_trace(X))
    assert [name for name, site in sites.items() if is_marked(site)] == ["c"]
