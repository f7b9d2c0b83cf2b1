"""Callbacks and validation look at a training from outside, and leave its results the same to the bit."""

import random
from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from broken_off import BeforeDeath, Killed, dies_after
from helpers import parameters_of, ring, small_vae
from torch import nn
from torch.utils.data import DataLoader, Dataset

import pyrovae as pv
from pyrovae.runs import RunConfig, train_run

X = ring(num_train=50).train_x


class Net(pv.VAE):
    """A VAE with dropout and batch normalisation in its encoder."""

    def __init__(self):
        torch.manual_seed(3)
        super().__init__((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5, learn_scale=True))
        self.norm, self.dropout = nn.BatchNorm1d(2, affine=False), nn.Dropout(0.3)

    def encode(self, x):
        return super().encode(self.dropout(self.norm(x)))


class Plain:
    """A pair around a module, but none itself."""

    def __init__(self):
        self.net = Net()
        self.model, self.guide = self.net.model, self.net.guide


class Noisy(Dataset):
    """Data that draw from Python's and NumPy's generators."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002


GENERATOR = torch.Generator()


def loader():
    GENERATOR.manual_seed(4)
    return DataLoader(Noisy(), batch_size=25, shuffle=True, generator=GENERATOR)


PAIRS = {"VAE": Net, "plain pair": Plain}
DATA = {"a tensor": lambda: X, "a data set": lambda: ring(num_train=50, num_validation=0), "a loader": loader}


def net_of(vae):
    return getattr(vae, "net", vae)


def draws(vae):
    net_of(vae).sample(7)
    random.random()
    np.random.rand(3)  # noqa: NPY002
    torch.rand(3, generator=GENERATOR)


def reseeds(vae):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


def trains(vae):
    net_of(vae).train()
    net_of(vae).encode(torch.randn(5, 2).clamp(-1, 1))


def leaves_gradients(vae):
    net_of(vae).encode(X).rsample().sum().backward()


LOOKS = {
    "draws": draws,
    "reseeds": reseeds,
    "measures": lambda vae: pv.log_marginal(vae.model, vae.guide, X[:5], num_samples=10),
    "sets eval()": lambda vae: net_of(vae).eval(),
    "sets train()": lambda vae: net_of(vae).train(),
    "leaves gradients": leaves_gradients,
}


def run(make, data, look=None, **settings):
    """Returns everything that a training leaves behind: tensors, records, the state of the random numbers."""
    reseeds(None)
    vae, seen = make(), []

    def watch(_):
        seen.append([module.training for module in net_of(vae).modules()])
        if look is not None:
            look(vae)

    before = [module.training for module in net_of(vae).modules()]
    usual = {"epochs": 2, "batch_size": 25, "progress": False}  # two steps an epoch
    history = pv.fit(vae, data(), on_epoch=watch, on_start=watch, **{**usual, **settings})
    if isinstance(vae, Plain):
        assert [module.training for module in net_of(vae).modules()] == before
    assert not any(any(modes) for modes in seen)  # callbacks see it in evaluation mode
    kept = {**net_of(vae).state_dict(), "numpy": torch.as_tensor(np.random.rand()), "python": random.random()}  # noqa: NPY002
    records = [{name: value for name, value in record.items() if name != "seconds"} for record in history.records()]
    return kept, records, torch.get_rng_state()


def assert_same(one, other):
    assert one[1] == other[1]
    assert torch.equal(one[2], other[2])
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[0][name])) for name, value in one[0].items())


@cache
def run_without(pair, data, seed):
    return run(PAIRS[pair], DATA[data], seed=seed)


@pytest.mark.parametrize(
    ("data", "look", "pair", "seed"),  # each look at each kind of data, at each pair and under each kind of seed
    [
        (data, look, list(PAIRS)[(row + column) % 2], (None, 1)[(row // 2 + column) % 2])
        for row, data in enumerate(DATA)
        for column, look in enumerate(LOOKS)
    ],
)
def test_a_callback_leaves_the_training_as_it_is_without(pair, data, look, seed):
    assert_same(run(PAIRS[pair], DATA[data], LOOKS[look], seed=seed), run_without(pair, data, seed))


def test_callbacks_leave_a_compiled_training_as_it_is_without(without_machine_code):
    settings = {"seed": 1, "compile": True}
    every = lambda vae: [look(vae) for look in LOOKS.values()]  # noqa: E731
    assert_same(run(small_vae, lambda: X, every, **settings), run(small_vae, lambda: X, **settings))


def test_a_callback_that_draws_leaves_a_training_that_resumes_as_it_is_without(tmp_path):
    settings = {"seed": 1, "optimizer": torch.optim.Adam}
    whole = run(Net, loader, **settings)
    mortal = dies_after(3)  # of 4 steps, in epoch 2
    with pytest.raises(Killed):
        run(Net, loader, draws, seed=1, optimizer=mortal, checkpoints=BeforeDeath(tmp_path, mortal))
    resumed = run(Net, loader, draws, **settings, checkpoints=BeforeDeath(tmp_path, None))
    assert resumed[1] == whole[1]
    assert all(torch.equal(resumed[0][name], whole[0][name]) for name in Net().state_dict())


def test_a_callback_that_fails_leaves_modes_and_generators_as_they_were():
    class Enough(Exception):
        pass

    def stop(_):
        draws(vae)
        raise Enough

    vae = Net()
    reseeds(None)
    with pytest.raises(Enough):
        pv.fit(vae, X, epochs=1, on_start=stop, seed=1)
    found = random.random()
    reseeds(None)
    assert found == random.random()


class NoisyBatches:
    """Validation data that draw random numbers, and not from torch alone."""

    def __iter__(self):
        yield X[:20] + random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("data", DATA)
def test_validation_leaves_the_training_as_it_is_without(pair, data):
    without = run(PAIRS[pair], DATA[data])
    validated = run(PAIRS[pair], DATA[data], validation=NoisyBatches())
    unvalidated = [{**record, "elbo": None, "reconstruction": None, "kl": None} for record in validated[1]]
    assert_same((validated[0], unvalidated, validated[2]), (without[0], without[1], without[2]))


def test_validation_data_that_draw_are_the_same_after_each_epoch():
    settings = {"validation": NoisyBatches(), "optimizer": torch.optim.SGD, "lr": 1e-30}
    _, records, _ = run(small_vae, lambda: X, **settings)
    assert len({record["elbo"] for record in records}) == 1


def test_validation_takes_a_plain_pair_in_evaluation_mode():
    """Once dropout was on there, and the validation data moved the batch statistics."""
    plain = Plain()
    pv.fit(plain, X, epochs=1, validation=X + 100.0, seed=1)
    assert plain.net.norm.running_mean.abs().max() < 10
    assert plain.net.training
    found = pv.fit(Plain(), X, epochs=1, validation=X, seed=1).elbo
    assert found == pv.fit(Net(), X, epochs=1, validation=X, seed=1).elbo


def test_a_watch_of_a_run_leaves_it_as_it_is_without(tmp_path):
    config = RunConfig(hidden=(8,), epochs=2, batch_size=1_000, dataset="ring")

    def watch(run, record):
        run.vae.sample(5)
        run.vae.train()

    one = train_run(config, tmp_path / "one", progress=False)
    other = train_run(config, tmp_path / "other", progress=False, on_epoch=watch)
    assert torch.equal(parameters_of(one.vae), parameters_of(other.vae))
    assert one.history.loss == other.history.loss


def test_unused_codes_are_restarted_from_a_callback_and_the_run_is_the_seeds():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        settings = {"num_tokens": 2, "num_codes": 16, "code_dim": 2, "hidden": (8,)}
        vae = pv.VQVAE((2,), **settings, likelihood=pv.Gaussian(0.5))
        restarted = []
        pv.fit(vae, X, epochs=3, seed=1, on_epoch=lambda _, r=restarted, v=vae: r.append(v.restart_unused(X)))
        assert restarted[0] > 0
        found.append(parameters_of(vae))
    assert torch.equal(*found)


def test_a_plate_of_a_callbacks_own_does_not_get_into_the_training():
    """A callback may run programs of its own."""

    def look(_):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert_same(run(Net, lambda: X, look, seed=1), run(Net, lambda: X, seed=1))
