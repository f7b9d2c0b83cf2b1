"""Files of checkpoints: written whole or not at all, found damaged when they are read."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_off import ENDED, Killed, ring_data
from helpers import refusal, small_vae

import pyrovae as pv
from pyrovae.training import checkpoints, preparation
from pyrovae.training.checkpoints import CURRENT, LOCK, PREVIOUS, Checkpoints

# Writing --------------------------------------------------------------------------------------------------------------


ROOT = Path(__file__).parents[2]
STAGES = ("torch.save", "os.fsync", "os.replace 1", "os.replace 2")


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_while_a_checkpoint_is_written_leaves_one_that_is_whole(stage, tmp_path, monkeypatch):
    folder, state = tmp_path / "run", {"value": torch.arange(1_000)}
    kept = Checkpoints(folder)
    for number in (1, 2):
        kept.save({**state, "number": number})
    name, _, which = stage.partition(" ")
    module, _, function = name.partition(".")
    module, calls = getattr(checkpoints, module), []
    real = getattr(module, function)

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == int(which or 1):
            if name == "torch.save":
                args[1].write(b"half of it")
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, killed)
        with pytest.raises(Killed):
            kept.save({**state, "number": 3})
    found = Checkpoints(folder).load()
    assert found["number"] == 2
    assert torch.equal(found["value"], state["value"])
    kept.save({**state, "number": 4})
    assert Checkpoints(folder).load()["number"] == 4
    kept.save({**state, "number": 5})
    assert {path.name for path in folder.iterdir()} <= {CURRENT, PREVIOUS, LOCK}


@pytest.mark.parametrize("how", ["at once", "by torch's writer"])
def test_a_full_disk_is_one_line_and_what_was_written_stays(how, tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    kept.save({"number": 1})
    full = OSError(errno.ENOSPC, "No space left on device")

    def save(state, file):
        file.write(b"some")
        try:
            raise full
        except OSError as error:
            if how == "at once":
                raise
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0") from error

    monkeypatch.setattr(checkpoints.torch, "save", save)
    message = r"checkpoint.pt cannot be written \(OSError: 'No space left on device'\); what was written before stays"
    with pytest.raises(pv.InputError, match=message) as caught:
        kept.save({"number": 2})
    assert "\n" not in str(caught.value)
    assert kept.load()["number"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [CURRENT]


def test_too_little_room_is_found_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    vae, before = small_vae(), small_vae().state_dict()
    with pytest.raises(pv.InputError, match=r"must have room for 0.\d+ MB of checkpoints, and has 0.0\d+ MB"):
        pv.fit(vae, ring_data(), epochs=1, checkpoints=Checkpoints(tmp_path / "run"))
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_what_cannot_be_read_back_is_found_before_training(tmp_path):
    class Odd(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self):
            return {"odd": ROOT}

    with pytest.raises(pv.InputError, match=r"is not a readable checkpoint"):
        pv.fit(
            small_vae(),
            ring_data(),
            epochs=1,
            schedule=lambda optimizer: Odd(optimizer, lambda epoch: 1.0),
            checkpoints=Checkpoints(tmp_path / "run"),
        )
    assert not (tmp_path / "run").exists()


class Scaled(pv.VAE):
    """A VAE with a buffer beside its parameters, on which the loss depends."""

    extra = None

    def __init__(self, scale):
        torch.manual_seed(3)
        super().__init__((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))
        self.register_buffer("scale", scale)

    def encode(self, x):
        return super().encode(x * self.scale.to_dense())


class WithExtraState(Scaled):
    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state): ...


def test_a_buffer_that_requires_gradients_is_resumed_also_from_older_checkpoints(tmp_path):
    """Its checkpoints were all refused, at the end of hours."""
    data, half = ring_data(), torch.full((2,), 0.5)
    settings = {"seed": 0, "batch_size": 10, "patience": 5}
    WithExtraState.extra = half.clone().requires_grad_()
    whole = WithExtraState(half.clone().requires_grad_())
    pv.fit(whole, data, epochs=3, **settings)
    for is_old in (False, True):
        kept = pv.Checkpoints(tmp_path / str(is_old))
        pv.fit(WithExtraState(half.clone().requires_grad_()), data, epochs=2, **settings, checkpoints=kept)
        saved = torch.load(kept.paths[0])
        assert not saved["buffers"]["scale"].requires_grad
        if is_old:
            saved["buffers"]["scale"].requires_grad_()
            torch.save(saved, kept.paths[0])
        vae = WithExtraState(half.clone().requires_grad_())
        assert pv.fit(vae, data, epochs=3, **settings, checkpoints=kept).epoch == [1, 2, 3]
        assert all(map(torch.equal, vae.state_dict().values(), whole.state_dict().values()))
        assert vae.scale.requires_grad


def test_what_no_training_could_resume_from_is_found_before_training(tmp_path):
    class ByNumber(torch.optim.lr_scheduler.ExponentialLR):
        def state_dict(self):
            return {0: self.last_epoch}

    for vae, settings, said in (
        (
            Scaled(torch.ones(2)),
            {"schedule": lambda optimizer: ByNumber(optimizer, 0.9)},
            "cannot be written (its content is not readable: a key of scheduler must be of type str, got 0); what was",
        ),
        (Scaled(torch.ones(2).to_sparse()), {}, "buffer scale must be a dense tensor of numbers, got torch.sparse_coo"),
    ):
        before, kept = [parameter.detach().clone() for parameter in vae.parameters()], pv.Checkpoints(tmp_path / "run")
        assert said in refusal(pv.fit, vae, torch.randn(20, 2), epochs=2, checkpoints=kept, **settings)
        assert list(tmp_path.iterdir()) == []
        assert all(map(torch.equal, vae.parameters(), before))


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    kept = Checkpoints(tmp_path / "run")
    with kept.held(), pytest.raises(pv.InputError, match=r"another training is writing to .*run"):
        pv.fit(small_vae(), ring_data(), epochs=1, checkpoints=Checkpoints(tmp_path / "run"))
    pv.fit(small_vae(), ring_data(), epochs=1, checkpoints=Checkpoints(tmp_path / "run"))


@pytest.mark.parametrize("late", ["a number of NumPy", "a function"])
def test_what_becomes_unreadable_later_is_found_when_it_is_written(late, tmp_path):
    """Once it was written, twice, and neither of the two files could be read."""
    value = {"a number of NumPy": lambda e: np.exp(-0.1 * e), "a function": lambda e: lambda: e}[late]

    class Late(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self):
            return {"value": 1.0 if self.last_epoch < 2 else value(self.last_epoch)}

    schedule = lambda optimizer: Late(optimizer, lambda epoch: 1.0)  # noqa: E731
    kept = Checkpoints(tmp_path, epochs=1)
    with pytest.raises(pv.InputError, match=r"checkpoint.pt cannot be written \(.*; what was written before stays"):
        pv.fit(small_vae(), ring_data(), epochs=5, schedule=schedule, checkpoints=kept)
    assert Checkpoints(tmp_path).load()["position"]["epoch"] == 2
    assert not list(tmp_path.glob("*.tmp"))


# Reading --------------------------------------------------------------------------------------------------------------


def damaged(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_in_the_place_of_a_damaged_checkpoint_comes_the_one_before_and_it_is_not_lost(keep, tmp_path):
    kept = Checkpoints(tmp_path)
    for number in (1, 2):
        kept.save({"number": number, "value": torch.arange(1_000)})
    damaged(tmp_path / CURRENT, keep)
    again = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=r"checkpoint.pt is not a readable checkpoint .*: the one before it is used"):
        assert again.load()["number"] == 1
    again.save({"number": 3})
    assert torch.load(tmp_path / CURRENT)["number"] == 3
    assert torch.load(tmp_path / PREVIOUS)["number"] == 1
    for name in (CURRENT, PREVIOUS):
        damaged(tmp_path / name, keep)
    with pytest.raises(pv.InputError, match=r"checkpoint.pt is not .*; .*checkpoint-previous.pt is not") as caught:
        Checkpoints(tmp_path).load()
    assert "\n" not in str(caught.value)


def test_other_versions_than_the_run_was_begun_under_are_told(tmp_path, monkeypatch):
    pv.fit(small_vae(), ring_data(), epochs=1, checkpoints=Checkpoints(tmp_path))
    real = preparation.versions
    monkeypatch.setattr(preparation, "versions", lambda *args: {**real(*args), "torch": "99.0"})
    told = "so its last digits may differ: torch .* then and 99.0 now"
    with pytest.warns(UserWarning, match=ENDED), pytest.warns(UserWarning, match=told):
        pv.fit(small_vae(), ring_data(), epochs=1, checkpoints=Checkpoints(tmp_path))
