"""Checkpoints with one value changed: refused in one line with all as before, or the training goes on and ends."""

import hashlib
import itertools
import warnings

import pyro
import pytest
import torch
from broken_off import WithParamsOfItsOwn, ring_data
from changed_values import an_end, assert_one_line, changed, with_value
from helpers import refusal, small_vae
from kept_checkpoints import Kept, Resumed, checkpoint_of
from torch import nn
from torch.optim.lr_scheduler import LinearLR, MultiStepLR, ReduceLROnPlateau, SequentialLR

import pyrovae as pv
from pyrovae.common import all_generator_states

NUM_CHANGES = 25  # of each training


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


STATES = ("generators", 0, 0)
ONE_BY_ONE = {  # and how the line begins
    ("position", "step"): (1.5, "position.step must be a whole number >= 0, got 1.5"),
    ("position", "kl"): ("much", "position.kl must be a floating-point number, got 'much'"),
    ("position", "in_pass"): (1, "position.in_pass must be a whole number >= 0 and <= 0, got 1"),
    ("position", "done"): (True, "position.done must be False, got True"),
    ("best", "waited"): (-1, "best.waited must be a whole number >= 0, got -1"),
    ("best", "values"): ([], "best.values must be a list of 12, got []"),
    ("best", "elbo"): (0.0, "best.elbo must be -"),
    ("history", 0, "lr"): ("x" * 10_000_000, "history[0].lr must be a finite number, got 'xxx"),
    ("buffers", "beta"): (torch.tensor(torch.nan), "beta must hold numbers, got nan"),
    ("parameters", "encoder.output.bias"): (
        torch.ones(4).to_sparse(), "parameters.encoder.output.bias must be a plain tensor, got a sparse tensor",
    ),
    ("optimizer", "state", 0, "exp_avg"): (
        torch.ones(8, 3), "optimizer.state.0.exp_avg must be a tensor of shape (8, 2) and torch.float32, got a tensor",
    ),
    ("optimizer", "state", 1, "step"): (torch.tensor(-1.0), "optimizer.state.1.step must be a finite number >= 0"),
    ("optimizer", "param_groups", 0, "lr"): (2**70, "optimizer.param_groups[0].lr must be 0.0"),
    (*STATES, "torch", 0): (
        torch.zeros(16, dtype=torch.uint8), "generators[0][0].torch[0] must be a state of torch's generator on cpu",
    ),
    # NumPy would read what lies 10,000 numbers behind its state.
    (*STATES, "numpy", 2): (10_000, "generators[0][0].numpy[2] must be a whole number >= 0 and <= 624, got 10000"),
    (*STATES, "python", 2): (b"", "generators[0][0].python[2] must be a finite number, got b''"),
    ("generators", 0, 1, "own"): ([torch.get_rng_state()], "generators[0][1].own must be a list of 0, got a list of 1"),
    ("generators", 0, 1): (None, "generators[0][1] must be there in the middle of an epoch, got None"),
}  # fmt: skip


def test_the_line_names_the_entry_the_rule_and_the_value():
    *training, place = TRAININGS["patience"]
    content, resumed = checkpoint_of(*training, place)[1], Resumed(*training, Kept())
    before = digest_of(resumed.training.state)
    for path, (value, said) in ONE_BY_ONE.items():
        resumed.kept.content = with_value(content, list(path), value)
        assert refusal(resumed.run).startswith(f"the checkpoint in none is not readable: {said}")
        assert digest_of(resumed.training.state) == before


def test_versions_of_any_kind_are_told_and_keep_nothing_from_resuming():
    *training, place = TRAININGS["steps"]
    content = checkpoint_of(*training, place)[1]
    for versions in (None, [], 7, {"torch": None, "python": {}, "pyro": "x" * 10_000_000}):
        resumed = Resumed(*training, Kept())
        resumed.kept.content = {**content, "versions": versions}
        if not isinstance(versions, dict):  # old checkpoints tell fewer of them
            resumed.run()
            continue
        with pytest.warns(UserWarning, match=r"under other versions, so .*: .* then and .* now") as said:
            resumed.run()
        assert len(str(said[0].message)) < 500


def test_a_warning_that_is_an_error_leaves_everything_as_before():
    *training, place = TRAININGS["steps"]
    content, resumed = checkpoint_of(*training, place)[1], Resumed(*training, Kept())
    resumed.kept.content, before = {**content, "versions": {"torch": "0.1"}}, digest_of(resumed.training.state)
    with pytest.raises(UserWarning, match="under other versions"):
        resumed.run()
    assert digest_of(resumed.training.state) == before
