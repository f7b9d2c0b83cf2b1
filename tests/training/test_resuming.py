"""Trainings that are killed and resume, to the bit. Killed processes: test_scripts.py, which runs kill_test.py."""

import random
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from broken_off import CASES, ENDED, Killed, assert_same, dies_after, ring_data, train
from helpers import small_vae

import pyrovae as pv
from pyrovae.training.checkpoints import CURRENT, PREVIOUS, Checkpoints

EVERY_STEP = 1e-9  # minutes between two checkpoints


def test_a_training_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    train_here = partial(train, "plain", batch_size=30)  # two batches in an epoch
    whole = train_here(tmp_path / "whole", minutes=100.0)
    for num_steps in (3, 1, 2):  # of 8, for three lives; what is left is for the fourth
        with pytest.raises(Killed):
            train_here(tmp_path / "killed", dies_after(num_steps), minutes=EVERY_STEP)
    assert_same(train_here(tmp_path / "killed", minutes=EVERY_STEP), whole)
    content = [(tmp_path / "killed" / name).read_bytes() for name in (CURRENT, PREVIOUS)]
    with pytest.warns(UserWarning, match=ENDED):  # nothing is left to do, or to write
        again = train_here(tmp_path / "killed", minutes=EVERY_STEP)
    assert_same(again, whole)
    assert [(tmp_path / "killed" / name).read_bytes() for name in (CURRENT, PREVIOUS)] == content


@pytest.mark.parametrize("case", [case for case in CASES if case != "plain"])
def test_a_training_that_is_killed_ends_as_one_that_was_not(case, tmp_path, without_machine_code):
    batch_size = 16 if case == "images that change" else 25  # two batches in an epoch
    train_case = partial(train, case, batch_size=batch_size, epochs=3)
    whole = train_case(tmp_path / "whole")
    with pytest.raises(Killed):
        train_case(tmp_path / "killed", dies_after(5 if case == "another objective" else 3))
    assert torch.load(tmp_path / "killed" / CURRENT)["position"]["step"] == 1
    assert_same(train_case(tmp_path / "killed"), whole)


def test_what_was_done_since_the_last_checkpoint_is_done_again_to_the_bit(tmp_path):
    train_here = partial(train, "everything", minutes=100.0, batch_size=30, epochs=3)
    whole = train_here(tmp_path / "whole")
    for num_steps in (3, 2):
        with pytest.raises(Killed):
            train_here(tmp_path / "killed", dies_after(num_steps))
    assert torch.load(tmp_path / "killed" / CURRENT)["position"]["step"] == 0  # the first, before any step
    assert_same(train_here(tmp_path / "killed"), whole)


def test_checkpoints_come_after_so_many_epochs(tmp_path):
    folder, seen = tmp_path / "run", []

    def look(record):
        seen.append(torch.load(folder / CURRENT)["position"]["epoch"])

    kept = Checkpoints(folder, minutes=100.0, epochs=2)
    pv.fit(small_vae(), ring_data(), epochs=5, on_epoch=look, checkpoints=kept)
    assert seen == [1, 1, 3, 3, 5]  # where the last checkpoint would go on, as each epoch ends
    assert torch.load(folder / CURRENT)["position"] == {
        "epoch": 6, "step": 0, "total": 0.0, "count": 0, "skipped": 0, "seconds": 0.0, "done": True,
        "in_pass": 0, "reconstruction": 0.0, "kl": 0.0, "guide_only": 0,
    }  # fmt: skip


class Augmented(torch.utils.data.Dataset):
    """Data that draw from Python's and NumPy's generators."""

    def __init__(self):
        self.x = ring_data().train_x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002


def own_loader():
    """Follows torch's recipe for an order that can be drawn again."""
    generator = torch.Generator().manual_seed(3)
    return torch.utils.data.DataLoader(ring_data().train_x, batch_size=25, shuffle=True, generator=generator)


class Buffered(pv.VAE):
    """A VAE with a buffer that its state_dict leaves out. Steps move the buffer and depend on it."""

    def __init__(self):
        super().__init__((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5, learn_scale=True))
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def guide(self, x):
        if self.training:
            self.steps.add_(1.0)
        super().guide(x + 0.01 * self.steps)


def named(make):
    def made():
        torch.manual_seed(3)
        pyro.clear_param_store()
        return make()

    return made


MORE_CASES = {
    "a loader with a generator of its own": (small_vae, own_loader, {}),
    "data from Python and NumPy": (small_vae, lambda: torch.utils.data.DataLoader(Augmented(), batch_size=25), {}),
    "a buffer that is not kept": (named(Buffered), ring_data, {}),
    "an optimiser that counts in floats": (
        lambda: small_vae().double(),
        lambda: ring_data().train_x.double(),
        {},
    ),
}


@pytest.mark.parametrize("case", MORE_CASES)
def test_what_else_the_steps_depend_on_is_as_it_was(case, tmp_path):
    found = []
    for folder, lives in ((tmp_path / "whole", ()), (tmp_path / "killed", (3,))):
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        kind = torch.optim.NAdam if "floats" in case else torch.optim.Adam
        for num_steps in lives:
            with pytest.raises(Killed):
                train(MORE_CASES[case], folder, dies_after(num_steps, kind), batch_size=25, epochs=2)
            random.seed(6)  # another process
            np.random.seed(6)  # noqa: NPY002
        found.append(train(MORE_CASES[case], folder, kind, batch_size=25, epochs=2))
    assert_same(found[1], found[0])


def test_a_refused_checkpoint_leaves_the_parameters_alone_and_fewer_data_are_told(tmp_path):
    with pytest.raises(Killed):
        train("plain", tmp_path, dies_after(6))
    vae = small_vae()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    settings = {"epochs": 4, "batch_size": 16, "seed": 1, "optimizer": torch.optim.Adam}
    with pytest.raises(pv.InputError, match="was written with number of batches 4, and number of batches is now 1"):
        pv.fit(vae, ring_data(num_train=10), checkpoints=Checkpoints(tmp_path), **settings)
    with pytest.raises(pv.InputError, match="was written with optimizer 'Adam', and optimizer is now 'SGD'"):
        pv.fit(vae, ring_data(), checkpoints=Checkpoints(tmp_path), **{**settings, "optimizer": torch.optim.SGD})
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
