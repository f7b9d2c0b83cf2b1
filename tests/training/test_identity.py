"""A checkpoint belongs to one training: other data, optimisers or models are refused, and the same one resumes."""

import dataclasses
import warnings
from functools import cache, partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from broken_off import BeforeDeath, Killed, dies_after
from helpers import parameters_of, refusal, ring, small_vae
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.models.param_store import unique_name
from pyrovae.training.checkpoints import CURRENT, Checkpoints

X = ring(num_train=50).train_x
STEPS = 1  # of 2 an epoch


def train(vae, data, folder, **settings):
    usual = {"epochs": 1, "batch_size": 25, "seed": 1, "progress": False, "optimizer": torch.optim.Adam}
    settings = {**usual, **settings}
    return pv.fit(vae, data, checkpoints=BeforeDeath(folder, settings["optimizer"]), **settings)


def begun(vae, data, folder, ended, num_steps=STEPS, **settings):
    """Fills the folder with a training that was broken off, or that has ended."""
    if ended:
        train(vae, data, folder, **settings)
        return
    with pytest.raises(Killed):
        train(vae, data, folder, **{**settings, "optimizer": dies_after(num_steps)})


class Net(pv.VAE):
    """A VAE that depends on more than its parameters: a number, dropout, batch statistics, a buffer."""

    def __init__(self, factor=1.0, dropout=0.2, table=0.0):
        torch.manual_seed(3)
        super().__init__((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5, learn_scale=True))
        self.factor, self.dropout, self.norm = factor, nn.Dropout(dropout), nn.BatchNorm1d(2)
        self.register_buffer("table", torch.full((2,), table))
        self.frozen = nn.Parameter(torch.tensor(factor), requires_grad=False)

    def encode(self, x):
        return super().encode(self.dropout(self.factor * self.norm(x) + self.table))

    def guide(self, x):
        pyro.module(f"{unique_name(self)} norm", self.norm)
        super().guide(x)


def images(**settings):
    return small_vae((1, 4, 4), network="mlp", **settings)


BITS = (torch.arange(50 * 16).view(50, 1, 4, 4) % 3 == 0).float()
DATA = ring(num_train=50)
OTHER = ring(num_train=50, seed=5)
SHUFFLED = partial(DataLoader, batch_size=25, shuffle=True)

# (what began, what comes, what is said)
CHANGES = {
    "a tensor": ((small_vae, X), (small_vae, X + 0.1), "is of other training data"),
    "one datum": ((small_vae, X), (small_vae, torch.cat((X[:-1], X[:1]))), "is of other training data"),
    "a data set": ((small_vae, DATA), (small_vae, OTHER), "is of other training data"),
    "its validation data": (
        (small_vae, DATA),
        (small_vae, dataclasses.replace(DATA, validation_x=OTHER.validation_x)),
        "is of other validation data",
    ),
    "a loader's data": ((small_vae, SHUFFLED(X)), (small_vae, SHUFFLED(X + 0.1)), "is of other training data"),
    "a list's data": (
        (small_vae, list(X.split(25))),
        (small_vae, list((X + 0.1).split(25))),
        "is of other training data",
    ),
    "activation": ((small_vae, X), (partial(small_vae, activation="tanh"), X), "is of another model: its loss"),
    "a fixed scale": (
        (partial(small_vae, likelihood=pv.Gaussian(0.5)), X),
        (partial(small_vae, likelihood=pv.Gaussian(0.6)), X),
        "is of another model: its likelihood.log_scale is not -0.51",
    ),
    "a scale's floor": (
        (partial(small_vae, likelihood=pv.HeteroscedasticGaussian(0.1)), X),
        (partial(small_vae, likelihood=pv.HeteroscedasticGaussian(0.2)), X),
        "is of another model: its loss",
    ),
    "likelihood": (
        (partial(images, likelihood=pv.Bernoulli()), BITS),
        (partial(images, likelihood=pv.ContinuousBernoulli()), BITS),
        "is of another model: its loss",
    ),
    "beta": ((small_vae, X), (partial(small_vae, beta=2.0), X), "was written with beta 1.0, and beta is now 2.0"),
    "body": ((Net, X), (partial(Net, factor=2.0), X), "is of another model: its loss"),
    "dropout": ((Net, X), (partial(Net, dropout=0.5), X), "is of another model: its loss"),
    "a buffer": ((Net, X), (partial(Net, table=1.0), X), r"is of another model: its table is not the same, of shape"),
}


@pytest.mark.parametrize(("change", "ended"), [(change, row % 2 == 1) for row, change in enumerate(CHANGES)])
def test_a_checkpoint_of_another_training_is_refused_and_nothing_is_changed(change, ended, tmp_path):
    (make, data), (other, other_data), said = CHANGES[change]
    begun(make(), data, tmp_path, ended)
    content, vae = (tmp_path / CURRENT).read_bytes(), other()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    message = refusal(train, vae, other_data, tmp_path)
    assert said in message
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert (tmp_path / CURRENT).read_bytes() == content
    same = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error" if not ended else "ignore")
        train(same, data, tmp_path)  # and the same goes on


@cache
def whole_training(make, schedule):
    """Returns the parameters at the end of a training without checkpoints."""
    vae = make()
    pv.fit(vae, DATA, epochs=2, batch_size=25, seed=1, optimizer=torch.optim.Adam, beta_schedule=schedule)
    return parameters_of(vae)


@pytest.mark.parametrize(
    ("make", "ended", "schedule"),
    [
        (small_vae, False, "constant"),
        (small_vae, True, "linear"),
        (Net, False, "linear"),
        (Net, True, "constant"),
        (partial(small_vae, prior="flow"), False, "constant"),
        (partial(small_vae, prior="flow"), True, "linear"),
    ],
)
def test_it_does_not_matter_what_the_model_starts_from_that_goes_on(make, ended, schedule, tmp_path):
    """A new model has other parameters; in a notebook it may be the one that was trained already. Both end the same."""
    whole, trained = whole_training(make, schedule), make()
    begun(trained, DATA, tmp_path / "run", ended, num_steps=3, epochs=2, beta_schedule=schedule)
    other = make()
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    for vae in (other, trained):
        with warnings.catch_warnings():
            warnings.simplefilter("error" if vae is other and not ended else "ignore")
            train(vae, DATA, tmp_path / "run", epochs=2, beta_schedule=schedule)
        assert torch.equal(parameters_of(vae), whole)


def test_that_a_training_had_ended_is_said_and_that_it_goes_on_is_not(tmp_path):
    begun(small_vae(), DATA, tmp_path, ended=False)
    train(small_vae(), DATA, tmp_path)
    with pytest.warns(UserWarning, match=rf"the training in {tmp_path} is finished, so nothing was tr"):
        history = train(small_vae(), DATA, tmp_path)
    assert history.epoch == [1]


class Stream:
    """Batches from a generator that `fit` cannot know of."""

    def __init__(self):
        self.generator = np.random.default_rng()

    def __iter__(self):
        return (torch.from_numpy(self.generator.normal(size=(16, 2)).astype(np.float32)) for _ in range(2))


def test_data_that_come_out_otherwise_each_time_are_not_taken_for_others(tmp_path):
    begun(small_vae(), Stream(), tmp_path, ended=False)
    train(small_vae(), Stream(), tmp_path)


def test_a_checkpoint_of_before_it_said_what_it_is_of_goes_on(tmp_path):
    whole, vae = small_vae(), small_vae()
    train(whole, DATA, tmp_path / "whole")
    begun(small_vae(), DATA, tmp_path / "run", ended=False)
    path = tmp_path / "run" / CURRENT
    state = torch.load(path)
    del state["identity"]
    torch.save(state, path)
    train(vae, DATA, tmp_path / "run")
    assert torch.equal(parameters_of(vae), parameters_of(whole))


def test_a_training_with_checkpoints_is_that_without(tmp_path):
    results = []
    for kept in (None, Checkpoints(tmp_path, minutes=1e-9)):
        torch.manual_seed(5)
        loader = DataLoader(TensorDataset(X), batch_size=25, shuffle=True, generator=torch.Generator().manual_seed(1))
        vae = Net()
        history = pv.fit(vae, loader, epochs=2, checkpoints=kept, progress=False, beta_schedule="linear")
        results.append((vae.state_dict(), history.loss, torch.get_rng_state()))
    (one, losses, state), (other, other_losses, other_state) = results
    assert losses == other_losses
    assert torch.equal(state, other_state)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_plain_pair_is_told_from_another(tmp_path):
    def pair(factor, width=3):
        pyro.clear_param_store()

        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z + pyro.param("a", lambda: torch.randn(2)), 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(factor * x, 1.0).to_event(1))

        return type("Pair", (), {"model": staticmethod(model), "guide": staticmethod(guide)})

    train(pair(0.5), X, tmp_path)
    found = pyro.param("a").tolist()
    assert "is of another model: its loss on the same data was" in refusal(train, pair(0.4), X, tmp_path)
    with pytest.warns(UserWarning, match="is finished"):
        train(pair(0.5), X, tmp_path)
    assert pyro.param("a").tolist() == found


def test_optimizer_settings_are_told_apart_and_usual_ones_need_not_be_said(tmp_path):
    begun(small_vae(), X, tmp_path, ended=False)
    other = partial(torch.optim.Adam, betas=(0.5, 0.9))
    assert "is of other optimizer settings" in refusal(train, small_vae(), X, tmp_path, optimizer=other)
    train(small_vae(), X, tmp_path, optimizer=partial(torch.optim.Adam, betas=(0.9, 0.999)))
