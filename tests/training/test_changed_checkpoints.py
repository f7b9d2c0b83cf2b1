"""Checkpoints with one value changed: refused in one line with all as before, or the training goes on and ends."""

import hashlib
import itertools
import warnings

import pyro
import pytest
import torch
from broken_off import WithParamsOfItsOwn, ring_data
from changed_values import an_end, assert_one_line, changed
from helpers import small_vae
from kept_checkpoints import Kept, Resumed, checkpoint_of
from torch import nn
from torch.optim.lr_scheduler import LinearLR, MultiStepLR, ReduceLROnPlateau, SequentialLR

import pyrovae as pv
from pyrovae.common import all_generator_states

NUM_CHANGES = 72  # of each training


class Endless:
    def __iter__(self):
        return (torch.randn(4, 2, generator=torch.Generator().manual_seed(i)) for i in itertools.count())


def loader():
    generator = torch.Generator().manual_seed(3)
    return torch.utils.data.DataLoader(ring_data().train_x.double(), batch_size=25, shuffle=True, generator=generator)


def normed_vae():
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    return pv.VAE((2,), latent_dim=2, likelihood=pv.Gaussian(0.5), encoder=encoder, decoder=nn.Linear(2, 2))


def code_vae():
    torch.manual_seed(3)
    return pv.VQVAE((2,), num_tokens=2, num_codes=3, code_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))


def conditional():
    return torch.utils.data.TensorDataset(ring_data().train_x, torch.arange(50) % 3)


def momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def two_phases(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer, total_iters=2), MultiStepLR(optimizer, [2])], [1])


TRAININGS = {  # and the epoch and the step of the checkpoint
    "patience": (small_vae, ring_data, {"patience": 2, "schedule": "cosine"}, (2, 1)),
    "patience that has run out": (
        normed_vae, ring_data, {"patience": 1, "lr": 1e-9, "objective": {1: "elbo", 2: pv.objectives.DReG(3)}}, (3, 0),
    ),
    "steps": (small_vae, Endless, {"steps_per_epoch": 3, "optimizer": momentum}, (2, 2)),
    "codes": (
        code_vae, ring_data, {"nonfinite": "skip", "optimizer": torch.optim.AdamW, "schedule": two_phases}, (2, 0),
    ),
    "a loader": (lambda: small_vae().double(), loader, {"optimizer": torch.optim.NAdam}, (2, 1)),
    "a condition": (
        lambda: small_vae(condition=pv.OneHot(3)), conditional,
        {"optimizer": torch.optim.Adagrad, "schedule": lambda o: ReduceLROnPlateau(o, threshold_mode="abs")}, (2, 1),
    ),
    "parameters of pyro": (
        WithParamsOfItsOwn, ring_data,
        {"optimizer": pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9}), "lr": None}, (1, 1),
    ),
}  # fmt: skip


class Undone(Exception):
    """Ends a block after which a training is as it was before."""


def digest_of(state):
    """Returns a digest of everything that a checkpoint restores."""
    stopping = state.early_stopping
    return digest([
        state.parameters, state.buffers, state.optimizer.state_dict(), state.scheduler.state_dict(),
        stopping.best_elbo, stopping.epochs_without_improvement, stopping.best_values, stopping.last_values,
        state.history.records(), vars(state.position), state.epoch_start, state.fingerprint.start,
        state.fingerprint.buffers, all_generator_states(state.generators),
    ])  # fmt: skip


def digest(value):
    found = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            add(list(value.items()))
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            found.update(value.detach().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())

    add(value)
    return found.hexdigest()


@pytest.mark.parametrize("name", TRAININGS)
def test_a_changed_value_is_refused_with_everything_as_before_or_the_training_ends(name):
    *training, place = TRAININGS[name]
    content, resumed, refused = checkpoint_of(*training, place)[1], Resumed(*training, Kept()), []
    before = digest_of(resumed.training.state)
    for seed in range(NUM_CHANGES):
        resumed.kept.content, words = changed(content, f"{name} {seed}")
        state = resumed.training.state
        try:
            with warnings.catch_warnings(action="ignore"), an_end(), state._unchanged_on_error():
                try:
                    resumed.run()
                    assert state.position.done
                except pv.InputError as error:
                    assert_one_line(error)
                    assert digest_of(resumed.training.state) == before
                    refused.append(words)
                raise Undone
        except Undone:
            pass
        except Exception as error:
            raise AssertionError(words) from error
    assert NUM_CHANGES / 2 < len(refused) < NUM_CHANGES
