"""Discrete sites summed out of a model: against sums by hand, formulas, and Pyro's TraceEnum_ELBO."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import suite_seed
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from summed_pairs import (
    LOCS,
    LOGITS,
    PARALLEL,
    PARTICLES,
    by_hand,
    data,
    draws_z,
    gradients,
    log_joint,
    mixture,
    of_summed,
    summed_run,
)

from pyrovae.programs.distribution_supports import log_density
from pyrovae.programs.summed_sites import summed_groups, summed_log_prob, summed_sites

WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    pyro.set_rng_seed(suite_seed(90))


# Mixtures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [-1, -2, -3])
def test_a_mixture_is_the_sum_over_its_components(dim):
    x = data(5)
    found = of_summed(lambda x: mixture(x, dim), x, data=5, nesting=-dim)
    mixed = dist.MixtureSameFamily(dist.Categorical(logits=LOGITS), dist.Normal(LOCS, 0.7))
    expected = mixed.log_prob(x)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(gradients(found, LOCS, LOGITS), gradients(expected, LOCS, LOGITS), atol=1e-12)
    elbo = TraceEnum_ELBO(max_plate_nesting=-dim).loss(lambda x: mixture(x, dim), lambda x: None, x)
    assert found.sum().item() == pytest.approx(-elbo, abs=1e-10)


def test_config_enumerate_marks_sites_and_those_of_the_guide_stay_as_drawn():
    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
            c = pyro.sample("c", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(LOCS[c] + b, 0.7), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))

    x = data(4)
    sites = summed_run(model, x, guide=guide, num_particles=3)
    assert list(summed_sites(sites)) == ["c"]
    b = sites["b"]["value"]
    expected = dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)).log_prob(b)
    expected = expected + (WEIGHTS.log() + dist.Normal(LOCS + b[..., None], 0.7).log_prob(x[:, None])).logsumexp(-1)
    assert torch.allclose(log_joint(sites, {PARTICLES: 3, "data": 4}), expected, atol=1e-12)


def test_two_summed_sites_of_one_datum_are_summed_jointly():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            b = pyro.sample("b", dist.Bernoulli(logits=LOGITS[a]), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[a] - b, 0.7), obs=x)

    x = data(4)
    found = of_summed(model, x, data=4)
    expected = torch.stack([by_hand(model, x[[n]], states={"a": ((1,), 3), "b": ((1,), 2)}) for n in range(4)])
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(gradients(found, LOCS, LOGITS), gradients(expected, LOCS, LOGITS), atol=1e-12)


def test_a_vector_has_the_states_of_its_elements_in_every_combination():
    def model(x):
        with pyro.plate("data", len(x)):
            bits = pyro.sample("bits", dist.Bernoulli(logits=LOGITS).to_event(1), infer=PARALLEL)
            pyro.sample("x", dist.Normal(bits @ LOCS, 0.7), obs=x)

    x = data(3)
    found = of_summed(model, x, data=3, num_particles=2)
    expected = torch.stack([by_hand(model, x[[n]], states={"bits": ((1, 3), 2)}) for n in range(3)])
    assert torch.allclose(found, expected.expand(2, 3), atol=1e-12)


# Latents of the guide -------------------------------------------------------------------------------------------------


def mixture_prior(x):
    """p(c) p(z|c) p(x|z): the sum over c is a prior, and no likelihood."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(logits=LOGITS), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(LOCS[c], 0.5))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def mixture_likelihood(x):
    """p(c) p(z) p(x|z, c), which with labels for x is the semi-supervised VAE M2."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(logits=LOGITS), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z * LOCS[c], 0.7), obs=x)


def component_of_latent(x):
    """p(z) p(c|z) p(x|z, c): the states have other probabilities at each particle."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        c = pyro.sample("c", dist.Categorical(logits=LOGITS * z.unsqueeze(-1)), infer=PARALLEL)
        d = pyro.sample("d", dist.Categorical(logits=LOGITS[c].unsqueeze(-1) + z.unsqueeze(-1) * LOCS), infer=PARALLEL)
        pyro.sample("x", dist.Normal(z * LOCS[c] + LOCS[d], 0.7), obs=x)


@pytest.mark.parametrize(
    "model", [mixture_prior, mixture_likelihood, config_enumerate(mixture_likelihood, expand=True), component_of_latent]
)
def test_the_sum_is_taken_at_each_particle(model):
    x = data(4)
    sites = summed_run(model, x, guide=draws_z, num_particles=3)
    found = log_joint(sites, {PARTICLES: 3, "data": 4})
    given = [[{"z": sites["z"]["value"][k, [n]]} for n in range(4)] for k in range(3)]
    states = {name: ((1,), 3) for name in sites if name in "cd"}
    expected = torch.stack(
        [torch.stack([by_hand(model, x[[n]], states=states, given=row[n]) for n in range(4)]) for row in given]
    )
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(gradients(found, LOCS, LOGITS), gradients(expected, LOCS, LOGITS), atol=1e-12)


def test_groups_say_what_stands_inside_a_sum():
    x = data(4)
    (prior,) = summed_groups(summed_run(mixture_prior, x, guide=draws_z, num_particles=3))
    assert list(prior) == ["c", "z"]
    (likelihood,) = summed_groups(summed_run(mixture_likelihood, x, guide=draws_z, num_particles=3))
    assert list(likelihood) == ["c", "x"]

    def two(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(WEIGHTS), infer=PARALLEL)
            b = pyro.sample("b", dist.Categorical(WEIGHTS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[a], 1), obs=x)
            pyro.sample("y", dist.Normal(LOCS[b], 1), obs=x)

    assert [list(group) for group in summed_groups(summed_run(two, x))] == [["a", "x"], ["b", "y"]]


def test_programs_without_a_marked_site_run_as_they_did():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = data(4)
    sites = summed_run(model, x, num_particles=3)
    assert summed_groups(sites) == []
    pyro.set_rng_seed(suite_seed(90))
    data(4)
    with pyro.plate(PARTICLES, 3, dim=-2):
        plain = poutine.trace(model).get_trace(x)
    assert torch.equal(plain.nodes["z"]["value"], sites["z"]["value"])


# Masks, labels, states of probability 0 -------------------------------------------------------------------------------


LABELS = torch.tensor([2, 0, 0, 1, 0])
IS_LABELLED = torch.tensor([True, False, False, True, False])


def with_obs_mask(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(logits=LOGITS), obs=LABELS, obs_mask=IS_LABELLED)
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z * LOCS[y], 0.7), obs=x)


def with_two_sites(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with poutine.mask(mask=IS_LABELLED):
            pyro.sample("y", dist.Categorical(logits=LOGITS), obs=LABELS)
        with poutine.mask(mask=~IS_LABELLED):
            missing = pyro.sample("missing", dist.Categorical(logits=LOGITS), infer=PARALLEL)
        pyro.sample("x", dist.Normal(z * LOCS[torch.where(IS_LABELLED, LABELS, missing)], 0.7), obs=x)


@pytest.mark.parametrize("model", [config_enumerate(with_obs_mask), with_two_sites], ids=["obs_mask", "two sites"])
def test_labels_are_summed_where_they_are_missing(model):
    x = data(5)
    sites = summed_run(model, x, guide=draws_z, num_particles=3)
    found = log_joint(sites, {PARTICLES: 3, "data": 5})
    z = sites["z"]["value"]
    log_p = LOGITS.log_softmax(0) + dist.Normal(z[..., None] * LOCS, 0.7).log_prob(x[:, None])
    at_label = log_p.gather(-1, LABELS.expand(3, 5)[..., None]).squeeze(-1)
    expected = torch.where(IS_LABELLED, at_label, log_p.logsumexp(-1)) + dist.Normal(0.0 * z, 1.0).log_prob(z)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("probs", [(0.0, 1.0, 0.0), (0.0, 0.5, 0.5)])
def test_states_of_probability_0_give_no_nan(probs):
    logits = torch.tensor(probs, dtype=torch.float64).log().requires_grad_()

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[c], 0.7), obs=x)

    x = data(4)
    found = of_summed(model, x, data=4)
    some = torch.tensor(probs) > 0
    expected = (logits[some].log_softmax(0) + dist.Normal(LOCS[some], 0.7).log_prob(x[:, None])).logsumexp(-1)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(gradients(found, LOCS, logits), gradients(expected, LOCS, logits), atol=1e-12)


def test_data_without_a_possible_state_are_impossible_and_give_no_gradient():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            pyro.sample("x", dist.Categorical(logits=torch.tensor([[0.0, -torch.inf]]).double() + LOCS[c, None]), obs=x)

    found = of_summed(model, torch.tensor([0, 1]), data=2)
    assert found[0].tolist() == [pytest.approx(0.0, abs=1e-12), -torch.inf]
    assert gradients(found, LOCS, LOGITS).isfinite().all()


def test_the_callers_own_log_density_stands_inside_the_sum():
    """Under some states x lies outside the support, where PyTorch's own log-density raises."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            pyro.sample("x", dist.Uniform(0.0, 1.0 + c), obs=x)

    (group,) = summed_groups(summed_run(model, torch.tensor([0.5, 1.5]).double()))
    found = summed_log_prob(group, {PARTICLES: 1, "data": 2}, lambda _, site: log_density(site["fn"], site["value"]))
    weights = LOGITS.softmax(0) / torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(found[0], torch.stack([weights.sum().log(), weights[1:].sum().log()]), atol=1e-12)
    assert gradients(found, LOGITS).isfinite().all()
