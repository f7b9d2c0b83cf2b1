"""Discrete sites summed out inside plates in plates, and where the data are: in a plate of any kind, or together."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import suite_seed
from pyro.infer import TraceEnum_ELBO
from summed_pairs import (
    LOCS,
    LOGITS,
    PARALLEL,
    PARTICLES,
    by_hand,
    data,
    draws_z,
    gradients,
    mixture,
    of_summed,
    summed_run,
)

from pyrovae.programs.summed_sites import summed_groups, summed_log_prob, summed_sites


@pytest.fixture(autouse=True)
def seeded():
    pyro.set_rng_seed(suite_seed(92))


# Plates in plates -----------------------------------------------------------------------------------------------------


def documents(words, kind, dims=(-2, -1)):
    """Documents of words, `(documents, words)`, with a topic for each document, for each word, or both."""
    outer, inner = dims
    x = words if outer < inner else words.T
    with pyro.plate("documents", len(words), dim=outer):
        topic = 0
        if kind != "words":
            topic = pyro.sample("topic", dist.Categorical(logits=LOGITS), infer=PARALLEL)
        with pyro.plate("words", words.shape[1], dim=inner):
            sense = 0
            if kind != "documents":
                logits = LOGITS + (LOCS[topic].unsqueeze(-1) if kind == "both" else 0)
                sense = pyro.sample("sense", dist.Categorical(logits=logits), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[sense] + 0.5 * LOCS[topic], 0.7), obs=x)


STATES = {
    "documents": {"topic": ((1, 1), 3)},
    "words": {"sense": ((1, 3), 3)},
    "both": {"topic": ((1, 1), 3), "sense": ((1, 3), 3)},
}


@pytest.mark.parametrize("kind", STATES)
def test_sums_stand_inside_the_products_over_inner_plates(kind):
    words = data(2, 3)
    found = of_summed(lambda w: documents(w, kind), words, data=2, plate="documents", nesting=2, num_particles=3)
    states = STATES[kind]
    expected = torch.stack([by_hand(lambda w: documents(w, kind), words[[n]], states=states) for n in range(2)])
    assert found.shape == (3, 2)
    assert torch.allclose(found, expected.expand(3, 2), atol=1e-12)
    assert torch.allclose(gradients(found[0], LOCS, LOGITS), gradients(expected, LOCS, LOGITS), atol=1e-12)
    elbo = TraceEnum_ELBO(max_plate_nesting=2).loss(lambda w: documents(w, kind), lambda w: None, words)
    assert found[0].sum().item() == pytest.approx(-elbo, abs=1e-10)


@pytest.mark.parametrize("kind", STATES)
def test_the_data_plate_may_be_left_or_right_of_the_inner_one(kind):
    words = data(4, 5)
    by_dims = [
        of_summed(lambda w, d=dims: documents(w, kind, d), words, data=4, plate="documents", nesting=2)
        for dims in [(-2, -1), (-1, -2)]
    ]
    assert torch.allclose(*by_dims, atol=1e-12)


def test_a_plate_of_one_element_and_data_of_one_datum_keep_their_dimensions():
    words = data(1, 1)
    found = of_summed(lambda w: documents(w, "both"), words, data=1, plate="documents", nesting=2, num_particles=3)
    assert found.shape == (3, 1)


def test_a_density_that_is_the_same_all_over_an_inner_plate_counts_for_each_element():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            c = pyro.sample("c", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            with pyro.plate("inner", 3, dim=-1):
                pyro.factor("same", LOCS[c])

    found = of_summed(model, data(2), data=2, nesting=2)
    assert torch.allclose(found, (LOGITS.log_softmax(0) + 3 * LOCS).logsumexp(0).expand(2), atol=1e-12)


# Where the data are ---------------------------------------------------------------------------------------------------


def test_a_summed_site_outside_the_data_plate_makes_all_data_one():
    def model(x):
        c = pyro.sample("c", dist.Categorical(logits=LOGITS), infer=PARALLEL)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(LOCS[c], 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    x = data(4)
    sites = summed_run(model, x, guide=draws_z, num_particles=3)
    assert [frame.name for frame in summed_sites(sites)["c"]["cond_indep_stack"]] == [PARTICLES]
    (group,) = summed_groups(sites)
    found = summed_log_prob(group, {PARTICLES: 3})
    z = sites["z"]["value"]
    expected = (LOGITS.log_softmax(0) + dist.Normal(LOCS, 1.0).log_prob(z[..., None]).sum(1)).logsumexp(-1)
    assert torch.allclose(found, expected, atol=1e-12)


def test_each_datum_may_be_a_step_of_a_sequential_plate():
    def model(x):
        for n in pyro.plate("data", len(x)):
            c = pyro.sample(f"c_{n}", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            pyro.sample(f"x_{n}", dist.Normal(LOCS[c], 0.7), obs=x[n])

    x = data(5)
    groups = summed_groups(summed_run(model, x, num_particles=3, nesting=1))
    found = sum(summed_log_prob(group, {PARTICLES: 3, "data": 5}) for group in groups)
    assert torch.allclose(found, of_summed(mixture, x, data=5, num_particles=3), atol=1e-12)


def test_a_plate_of_the_data_may_have_no_size():
    def model(x):
        with pyro.plate("data"):
            c = pyro.sample("c", dist.Categorical(logits=LOGITS.expand(len(x), 3)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[c], 0.7), obs=x)

    x = data(5)
    assert torch.allclose(of_summed(model, x, data=5), of_summed(mixture, x, data=5), atol=1e-12)


def test_a_subsampled_plate_scales_the_group_and_not_what_it_sums():
    def model(x):
        with pyro.plate("data", 20, subsample_size=5):
            c = pyro.sample("c", dist.Categorical(logits=LOGITS), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOCS[c], 0.7), obs=x)

    x = data(5)
    assert torch.allclose(of_summed(model, x, data=5), of_summed(mixture, x, data=5), atol=1e-12)
