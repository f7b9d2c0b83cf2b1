"""Trainings whose length is a number of steps: data that never end, and data that begin again."""

import itertools
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from broken_off import Killed, assert_same, dies_after, ring_data, train, without_times
from helpers import parameters_of, refusal, small_vae
from torch.utils.data import DataLoader, IterableDataset

import pyrovae as pv

X = ring_data().train_x


class Endless:
    """Yields numbered batches; each pass begins with the first again."""

    def __init__(self):
        self.passes = self.taken = 0

    def __iter__(self):
        self.passes += 1
        for index in itertools.count():
            self.taken = index + 1
            yield X.roll(index, 0)[:16]


class Noisy(IterableDataset):
    """Yields single data with noise from torch's generator, without end."""

    def __iter__(self):
        while True:
            yield X[0] + 0.1 * torch.randn(2)


def generator():
    yield from Endless()


def shuffled():
    return DataLoader(X, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))


SOURCES = {
    "endless": Endless,
    "a generator": generator,
    "an IterableDataset": lambda: DataLoader(Noisy(), batch_size=16),
    "an IterableDataset with a worker": lambda: DataLoader(Noisy(), batch_size=16, num_workers=1),
    "a loader that ends": shuffled,
    "a data set": ring_data,
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_training_of_so_many_steps_resumes_to_the_bit(source, tmp_path):
    """Of 4 steps in a pass where there is an end, so that passes end within epochs."""
    case = (small_vae, SOURCES[source], {"steps_per_epoch": 3})
    whole = train(case, tmp_path / "whole", minutes=100.0, epochs=4)
    deaths = ((2, 2), (5, 3)) if "worker" not in source else ((5, 3),)  # a worker takes longer than its training
    for steps, epochs in deaths:
        with pytest.raises(Killed):
            train(case, tmp_path / "run", dies_after(steps), epochs=epochs)
    assert_same(train(case, tmp_path / "run", minutes=100.0, epochs=4), whole)


def test_a_pass_may_begin_more_than_once_in_an_epoch(tmp_path):
    case = (small_vae, shuffled, {"steps_per_epoch": 9})
    whole = train(case, tmp_path / "whole", minutes=100.0, epochs=2)
    with pytest.raises(Killed):
        train(case, tmp_path / "run", dies_after(7), epochs=2)
    assert_same(train(case, tmp_path / "run", minutes=100.0, epochs=2), whole)


def test_epochs_of_steps_go_on_through_the_data():
    """As many steps are the same training, however they are cut into epochs."""
    found = []
    for epochs, steps_per_epoch in ((1, 12), (4, 3), (6, 2)):
        source, vae = Endless(), small_vae()
        history = pv.fit(vae, source, epochs=epochs, steps_per_epoch=steps_per_epoch, seed=1)
        assert history.epoch == list(range(1, epochs + 1))
        assert source.taken == 12  # all from one pass; the one before is that of the checks
        found.append(parameters_of(vae))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_loader_that_ends_begins_again_with_all_of_its_data():
    one, other = small_vae(), small_vae()
    passes = pv.fit(one, shuffled(), epochs=3, seed=1)
    steps = pv.fit(other, shuffled(), epochs=2, steps_per_epoch=6, seed=1)
    assert torch.equal(parameters_of(one), parameters_of(other))
    assert sum(passes.loss) * 50 == pytest.approx(steps.loss[0] * (50 + 32) + steps.loss[1] * (18 + 50), rel=1e-5)


def test_a_generator_is_used_batch_by_batch_and_goes_on_afterwards():
    batches = itertools.count()
    numbered, seen = (torch.full((8, 2), float(index)) for index in batches), []

    class Seeing(pv.VAE):
        def guide(self, x):
            seen.append(x[0, 0].item())
            super().guide(x)

    vae = Seeing((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
    pv.fit(vae, numbered, epochs=2, steps_per_epoch=3)
    assert seen[-6:] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    pv.fit(vae, numbered, epochs=1, steps_per_epoch=2)
    assert seen[-2:] == [6.0, 7.0]


def test_a_generator_that_ends_too_early_says_after_how_many_batches():
    batches = (X[:16] for _ in range(5))
    message = refusal(pv.fit, small_vae(), batches, epochs=2, steps_per_epoch=3)
    assert (
        message
        == "data ended after 5 batches, too few for the training: give a list or a DataLoader, which begin again"
    )
    assert "must yield at least one batch" in refusal(pv.fit, small_vae(), iter(()), epochs=2, steps_per_epoch=3)
    pv.fit(small_vae(), (X[:16] for _ in range(6)), epochs=2, steps_per_epoch=3)


def test_a_generator_needs_a_number_of_steps_and_one_that_has_moved_is_no_longer_the_same(tmp_path):
    said = "got a one-time iterator: say steps_per_epoch, and it goes on"
    assert said in refusal(pv.fit, small_vae(), generator(), epochs=1)
    source = generator()
    settings = {"steps_per_epoch": 2, "seed": 1, "checkpoints": pv.Checkpoints(tmp_path)}
    pv.fit(small_vae(), source, epochs=1, **settings)
    assert "is of other training data" in refusal(pv.fit, small_vae(), source, epochs=2, **settings)
    pv.fit(small_vae(), generator(), epochs=2, **settings)


def test_beta_moves_by_steps():
    vae, betas = small_vae(), []
    vae.set_beta = lambda beta, real=vae.set_beta: (betas.append(beta), real(beta))[1]
    pv.fit(vae, Endless(), epochs=2, steps_per_epoch=2, beta_schedule=lambda share: 0.5 + share / 2)
    assert [beta for beta in betas if beta < 1][-4:] == pytest.approx([0.5, 0.625, 0.75, 0.875])


def test_auto_compiles_by_the_number_of_steps(monkeypatch, without_machine_code):
    monkeypatch.setattr(pv.training.gradients, "COMPILE_STEPS", 6)
    chosen = []
    real = pv.training.preparation.compiles
    monkeypatch.setattr(pv.training.preparation, "compiles", lambda steps: chosen.append(real(steps)) or False)
    for steps_per_epoch in (2, 3):
        pv.fit(small_vae(), Endless(), epochs=2, steps_per_epoch=steps_per_epoch)
    assert chosen == [False, True]


def test_a_pair_without_arguments_takes_so_many_steps():
    def model():
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(2.0))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.7))

    pair = SimpleNamespace(model=model, guide=guide)
    history = pv.fit(pair, None, epochs=2, steps_per_epoch=100, lr=0.05, seed=1)
    assert len(history.loss) == 2
    assert pyro.param("loc").item() == pytest.approx(1.0, abs=0.3)  # E[z | x] = x / 2


def test_data_without_end_do_not_tell_n():
    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0).expand([2]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))

    pair = SimpleNamespace(model=model, guide=guide)
    said = "the number of data must be known for a pair with sites outside the data plate"
    assert said in refusal(pv.fit, pair, Endless(), epochs=1, steps_per_epoch=2)


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_steps_per_epoch_is_a_count_and_part_of_a_training(value, tmp_path):
    assert "steps_per_epoch must be a whole number >= 1" in refusal(
        pv.fit, small_vae(), X, epochs=1, steps_per_epoch=value
    )
    case = (small_vae, Endless, {})
    train(case, tmp_path, minutes=100.0, epochs=1, steps_per_epoch=3)
    said = "was written with steps_per_epoch 3, and steps_per_epoch is now 2"
    assert said in refusal(train, case, tmp_path, epochs=2, steps_per_epoch=2)


def test_validation_comes_after_each_epoch_of_steps():
    history = pv.fit(small_vae(), Endless(), epochs=3, steps_per_epoch=2, validation=X[:8], patience=3)
    assert all(elbo is not None for elbo in history.elbo)
    assert [record["epoch"] for record in without_times(history)] == [1, 2, 3]


def test_a_race_takes_so_many_steps_and_no_data_that_come_once():
    settings = {"objectives": ["elbo"], "seeds": (0,), "epochs": 2, "steps_per_epoch": 3, "held_out": X[:5]}
    make = lambda: small_vae(seed=None)  # noqa: E731
    said = "data must begin again for every training, got a one-time iterator"
    assert refusal(pv.race, make, generator(), **settings) == said
    assert len(pv.race(make, Endless(), **settings, num_samples=5, progress=False).runs) == 1
