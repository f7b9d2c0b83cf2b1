"""Conditional VAEs in training: each datum goes with its own condition."""

import math
from functools import partial

import helpers
import pyro
import pytest
import torch
from helpers import (
    conditional_vae,
    parameters_of,
    refusal,
    suite_seed,
)
from pyro.infer import SVI, Trace_ELBO
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv

ring = partial(helpers.ring, num_train=60, num_validation=20, num_test=10)


def labelled(seed=3, **settings):
    torch.manual_seed(suite_seed(seed))
    return conditional_vae(pv.OneHot(8), (2,), **settings)


def test_a_step_on_a_data_set_is_the_step_of_svi_on_x_and_its_labels():
    data, ours, theirs = ring(), labelled(), labelled()
    settings = {"epochs": 1, "batch_size": 60, "optimizer": torch.optim.SGD, "lr": 0.1, "seed": suite_seed(5)}
    pv.fit(ours, data, **settings)
    svi = SVI(theirs.model, theirs.guide, pyro.optim.SGD({"lr": 0.1 / 60}), Trace_ELBO(max_plate_nesting=1))
    torch.manual_seed(suite_seed(5))
    order = torch.randperm(60)
    svi.step(data.train_x[order], data.train_y[order])
    torch.testing.assert_close(parameters_of(ours), parameters_of(theirs), atol=1e-6, rtol=0)


def test_a_data_set_a_loader_and_batches_train_alike():
    x, y = ring().train_x, ring().train_y
    # The loader draws a seed for its workers, here from its own generator and not from a stream that training uses.
    loader = DataLoader(TensorDataset(x, y), batch_size=25, generator=torch.Generator())
    batches = list(zip(x.split(25), y.split(25), strict=True))
    extended = [(*batch, torch.zeros(len(batch[0]))) for batch in batches]  # more values than the VAE has conditions
    found = []
    for data in (loader, batches, extended):
        vae = labelled()
        history = pv.fit(vae, data, epochs=2, seed=suite_seed(1), validation=[ring().arguments("validation")])
        found.append((parameters_of(vae), history.elbo))
    for parameters, elbo in found[1:]:
        assert torch.equal(parameters, found[0][0])
        assert elbo == found[0][1]


def test_validation_takes_each_datum_under_its_own_label():
    data, vae = ring(), labelled()
    history = pv.fit(vae, data, epochs=1)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(pv.training.validation.VALIDATION_SEED)
        log_w = pv.log_weights(vae.model, vae.guide, *data.arguments("validation"), num_particles=1)
    assert history.elbo[-1] == pytest.approx(log_w.mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("condition", "of_the_data"),
    [
        (pv.Embedding(), lambda x, y: x.norm(dim=-1, keepdim=True)),
        ((pv.OneHot(8), pv.Embedding()), lambda x, y: (y, x.norm(dim=-1, keepdim=True))),
        (pv.OneHot(2), lambda x, y: y % 2),
    ],
)
def test_a_vae_is_trained_on_the_conditions_that_with_conditions_adds(condition, of_the_data):
    data = ring().with_conditions(of_the_data)
    made = of_the_data(ring().test_x, ring().test_y)
    for found, expected in zip(data.arguments("test")[1:], made if isinstance(made, tuple) else (made,), strict=True):
        assert torch.equal(found, expected)
    vae = conditional_vae(condition, (2,))
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    history = pv.fit(vae, data, epochs=2, batch_size=25, seed=suite_seed(0))
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert len(history.elbo) == 2
    assert all(map(math.isfinite, history.elbo + history.loss))


def test_batches_keep_each_condition_with_its_datum():
    data = ring().with_conditions(lambda x, y: (x[:, :1] + 1, x[:, 1] - y))
    seen = 0
    for x, one, other in data.batches(25):
        assert torch.equal(one, x[:, :1] + 1)
        index = (data.train_x[None] == x[:, None]).all(-1).nonzero()[:, 1]
        assert torch.equal(other, data.train_y[1][index])
        seen += len(x)
    assert seen == 60


def test_training_moves_the_samples_of_a_label_to_its_mode():
    data = pv.load("ring", num_train=800, num_validation=0)
    centres = pv.data.toy.TOY_DENSITIES["ring"][0].centres.float()
    vae, y = labelled(hidden=(32,), likelihood=pv.Gaussian(0.3)), torch.arange(8).repeat_interleave(50)

    def distance(vae):
        means = vae.sample(400, y, mean=True).reshape(8, 50, 2).mean(1)
        return (means - centres).norm(dim=-1)

    assert distance(vae).min() > 2
    pv.fit(vae, data, epochs=15, batch_size=100, lr=0.04, seed=suite_seed(0), compile=False)
    assert distance(vae).max() < 0.4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: ring().train_x, "y must hold 1 condition, got 0: give y, as in (x, y)"),
        (lambda: [ring().train_x], "y must hold 1 condition, got 0: give y, as in (x, y)"),
        (lambda: [(ring().train_x, ring().train_y[:5])], "y must have shape (60,), a label per datum, got (5,)"),
        (lambda: [(ring().train_x, ring().train_y + 1)], "y must lie in 0 ... 7, got 8 at index"),
        (
            lambda: ring().with_conditions(lambda x, y: x[:, :1]),
            "y must be a tensor of integer labels, got torch.float",
        ),
        (lambda: ring().with_conditions(lambda x, y: y - 1), "y must lie in 0 ... 7, got -1 at index"),
        (lambda: ring().with_conditions(lambda x, y: ()), "y must hold 1 condition, got 0: give y, as in (x, y)"),
    ],
)
def test_data_without_the_condition_are_refused_before_anything_is_trained(data, message):
    vae = labelled()
    before = parameters_of(vae)
    assert refusal(pv.fit, vae, data(), epochs=1).startswith(message)
    assert torch.equal(parameters_of(vae), before)


def test_a_bad_label_of_the_validation_data_is_refused():
    validation = [(torch.zeros(2, 2), torch.tensor([0, 8]))]
    message = refusal(pv.fit, labelled(), ring(), epochs=1, validation=validation)
    assert message == "y must lie in 0 ... 7, got 8 at index 1"
    bad = ring()
    bad.validation_y[3] = -1
    before = parameters_of(vae := labelled())
    assert refusal(pv.fit, vae, bad, epochs=1) == "y must lie in 0 ... 7, got -1 at index 3"
    assert torch.equal(parameters_of(vae), before)


def test_a_vae_without_a_condition_is_trained_on_a_data_set_with_labels():
    vae = conditional_vae((), (2,))
    assert len(pv.fit(vae, ring(), epochs=1).loss) == 1
