"""Runs that are broken off and go on: to the bit, whatever was happening when they were broken off.

Processes that are killed: scripts/test_benchmark_scripts.py, which runs scripts/benchmarks/kill_test.py.
"""

import errno
import os
import random
import shutil
import signal
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import ring, small_vae

import pyrovae as pv
from pyrovae.training import checkpoints
from pyrovae.training.checkpoints import CURRENT, LOCK, PREVIOUS, Checkpoints

ROOT = Path(__file__).parents[2]
ENDED = "had ended: it was loaded, and nothing was trained"


class Killed(BaseException):
    """A power cut, as far as one process can have it."""


def dies_after(num_steps, kind=torch.optim.Adam, **settings):
    """An optimiser that is there for so many steps."""

    class Mortal(kind):
        taken = 0

        @torch.no_grad()
        def step(self, *args):
            if self.taken == num_steps:
                raise Killed
            self.taken += 1
            return super().step(*args)

    Mortal.__name__ = kind.__name__  # which a checkpoint tells one kind from another by
    return lambda parameters, lr: Mortal(parameters, lr=lr, **settings)


ring_data = partial(ring, num_train=50, num_validation=20, num_test=5)


def dynamic_images():
    """Images that are binarised anew at every batch, from the same random numbers as the noise and the order."""
    grey = torch.randint(0, 256, (23, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x, y = (grey > 128).float(), torch.zeros(23, dtype=torch.long)
    return pv.Dataset("images", "binary", x, y, x[:6], y[:6], x[:6], y[:6], train_grey=grey)


def image_vae():
    torch.manual_seed(3)
    return pv.VAE((1, 4, 4), latent_dim=2, hidden=(4,), likelihood=pv.Bernoulli(), network="mlp")


class WithParamsOfItsOwn:
    """No module: parameters of Pyro's store, one of them constrained."""

    def __init__(self):
        pyro.clear_param_store()

    def model(self, x):
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        weight = pyro.param("weight", torch.ones(2))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * weight, scale).to_event(1), obs=x)

    def guide(self, x):
        loc = pyro.param("loc", torch.zeros(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc + 0.1 * x[:, :1], 0.5).to_event(1))


CASES = {
    "plain": (small_vae, ring_data, {}),
    "everything": (
        small_vae,
        ring_data,
        {"beta_schedule": "cyclical", "schedule": "cosine", "max_grad_norm": 0.5, "patience": 2, "lr": 0.05},
    ),
    "images that change": (image_vae, dynamic_images, {"objective": "iwae", "num_particles": 3}),
    "a tensor": (small_vae, lambda: ring_data().train_x, {"objective": "dreg", "num_particles": 3}),
    "a loader": (
        small_vae,
        lambda: torch.utils.data.DataLoader(ring_data().train_x, batch_size=16, shuffle=True),
        {},
    ),
    "parameters of pyro": (WithParamsOfItsOwn, ring_data, {}),
    "random numbers of the caller": (small_vae, ring_data, {"seed": None}),
    "compiled": (small_vae, ring_data, {"compile": True, "objective": "sticking_the_landing"}),
    "another objective": (small_vae, ring_data, {"objective": {1: "elbo", 3: pv.objectives.DReG(3)}}),
}


def train(case, folder, optimizer=torch.optim.Adam, minutes=1e-9, **more):
    """Parameters, optimiser's state and history, without its times; a checkpoint after every step."""
    make, data, settings = {**CASES, **MORE_CASES}[case]
    vae = make()
    torch.manual_seed(7)
    settings = {"epochs": 4, "batch_size": 16, "seed": 1, "progress": False, **settings, **more}
    history = pv.fit(vae, data(), optimizer=optimizer, checkpoints=Checkpoints(folder, minutes=minutes), **settings)
    state = torch.load(folder / CURRENT, weights_only=True)
    return state["parameters"], state["optimizer"]["state"], without_times(history)


def without_times(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history.records()]


def assert_same(one, other):
    assert one[2] == other[2]
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())
    assert len(one[1]) == len(other[1]) > 0
    for key, state in one[1].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other[1][key][n])) for n, v in state.items())


@pytest.fixture
def without_machine_code(monkeypatch):
    real = pv.training.gradients.CompiledLoss
    monkeypatch.setattr(
        pv.training.gradients, "CompiledLoss", lambda *args, **kwargs: real(*args, **kwargs, inductor=False)
    )


@pytest.mark.parametrize("case", CASES)
def test_a_training_that_is_killed_again_and_again_ends_as_one_that_was_not(case, tmp_path, without_machine_code):
    whole = train(case, tmp_path / "whole", minutes=100.0)
    left = [3, 1, 2, 1]  # of 8 steps or more, for four lives; what is left is for the fifth
    for num_steps in left:
        with pytest.raises(Killed):
            train(case, tmp_path / "killed", dies_after(num_steps))
    assert_same(train(case, tmp_path / "killed"), whole)
    with pytest.warns(UserWarning, match=ENDED):  # nothing is left to do
        again = train(case, tmp_path / "killed")
    assert_same(again, whole)


def test_what_was_done_since_the_last_checkpoint_is_done_again_to_the_bit(tmp_path):
    whole = train("everything", tmp_path / "whole", minutes=100.0)
    for num_steps in (7, 6):
        with pytest.raises(Killed):
            train("everything", tmp_path / "killed", dies_after(num_steps), minutes=100.0)
    assert torch.load(tmp_path / "killed" / CURRENT)["position"]["step"] == 0  # the first, before any step
    assert_same(train("everything", tmp_path / "killed", minutes=100.0), whole)


def test_checkpoints_come_after_so_many_epochs(tmp_path):
    folder, seen = tmp_path / "run", []

    def look(record):
        seen.append(torch.load(folder / CURRENT)["position"]["epoch"])

    kept = Checkpoints(folder, minutes=100.0, epochs=2)
    pv.fit(small_vae(), ring_data(), epochs=5, on_epoch=look, checkpoints=kept)
    assert seen == [1, 1, 3, 3, 5]  # where the last checkpoint would go on, as each epoch ends
    assert torch.load(folder / CURRENT)["position"] == {
        "epoch": 6, "step": 0, "total": 0.0, "count": 0, "skipped": 0, "seconds": 0.0, "done": True,
    }  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_after_the_step_and_the_run_goes_on_from_there(number, tmp_path):
    whole = train("plain", tmp_path / "whole", minutes=100.0)

    class Adam(torch.optim.Adam):
        taken = 0

        @torch.no_grad()
        def step(self, *args):
            self.taken += 1
            if self.taken == 6:
                os.kill(os.getpid(), number)
            return super().step(*args)

    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught:
        train("plain", tmp_path / "stopped", lambda p, lr: Adam(p, lr=lr), minutes=100.0)
    assert caught.value.args == (number,)
    assert signal.getsignal(number) is handler
    position = torch.load(tmp_path / "stopped" / CURRENT)["position"]
    assert (position["epoch"], position["step"]) == (2, 2)
    assert_same(train("plain", tmp_path / "stopped", minutes=100.0), whole)


def test_a_second_ctrl_c_waits_for_nothing(tmp_path):
    class Impatient(torch.optim.Adam):
        @torch.no_grad()
        def step(self, *args):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("was not interrupted")

    with pytest.raises(KeyboardInterrupt):
        train("plain", tmp_path / "run", lambda p, lr: Impatient(p, lr=lr))


def test_a_signal_in_the_last_epoch_ends_the_program_once_the_run_is_written(tmp_path):
    def stop(record):
        if record["epoch"] == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train("plain", tmp_path / "run", on_epoch=stop)
    assert torch.load(tmp_path / "run" / CURRENT)["position"]["done"]


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train("plain", tmp_path / "run", on_epoch=lambda record: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)


class Augmented(torch.utils.data.Dataset):
    """Data that draw from Python's and NumPy's generators."""

    def __init__(self):
        self.x = ring_data().train_x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002


def own_loader():
    """torch's recipe for an order that can be had again."""
    generator = torch.Generator().manual_seed(3)
    return torch.utils.data.DataLoader(ring_data().train_x, batch_size=16, shuffle=True, generator=generator)


class Buffered(pv.VAE):
    """With a buffer that its state_dict leaves out, moved by the steps and of weight in them."""

    def __init__(self):
        super().__init__((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5, learn_scale=True))
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def guide(self, x):
        if self.training:
            self.steps.add_(1.0)
        super().guide(x + 0.01 * self.steps)


class Plain:
    """No module, around one that has a buffer."""

    def __init__(self):
        torch.manual_seed(3)
        self.inner = Buffered()
        self.model, self.guide = self.inner.model, self.inner.guide


def named(make):
    def made():
        torch.manual_seed(3)
        pyro.clear_param_store()
        return make()

    return made


MORE_CASES = {
    "a loader with a generator of its own": (small_vae, own_loader, {}),
    "data from Python and NumPy": (small_vae, lambda: torch.utils.data.DataLoader(Augmented(), batch_size=16), {}),
    "a buffer that is not kept": (named(Buffered), ring_data, {}),
    "an optimiser that counts in floats": (
        lambda: small_vae().double(),
        lambda: ring_data().train_x.double(),
        {},
    ),
}


@pytest.mark.parametrize("case", MORE_CASES)
def test_what_else_the_steps_depend_on_is_as_it_was(case, tmp_path):
    seeds = []
    for folder, lives in ((tmp_path / "whole", ()), (tmp_path / "killed", (3, 2))):
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        kind = torch.optim.NAdam if "floats" in case else torch.optim.Adam
        for num_steps in lives:
            with pytest.raises(Killed):
                train(case, folder, optimizer=dies_after(num_steps, kind))
            random.seed(6)  # another process
            np.random.seed(6)  # noqa: NPY002
        seeds.append(train(case, folder, optimizer=kind))
    assert_same(seeds[1], seeds[0])


def test_a_step_that_is_left_out_moves_no_buffer():
    class Seen(Fragile):
        def __init__(self):
            super().__init__(False)
            self.register_buffer("largest", torch.zeros(()))

        def guide(self, x):
            if self.training:
                self.largest.copy_(torch.maximum(self.largest, x.abs().max()))
            super().guide(x)

    vae = Seen()
    with pytest.warns(UserWarning, match="1 of 5 steps"):
        pv.fit(vae, batches_with_a_bad_one(), epochs=1, nonfinite="skip", seed=1)
    assert 0 < vae.largest < 7


@pytest.mark.parametrize("late", ["a number of NumPy", "a function"])
def test_what_becomes_unreadable_later_is_found_when_it_is_written(late, tmp_path):
    """It was written, twice, and neither of the two could be read."""
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


def test_a_run_that_was_finished_is_not_written_again(tmp_path):
    train("plain", tmp_path)
    content = (tmp_path / CURRENT).read_bytes(), (tmp_path / PREVIOUS).read_bytes()
    with pytest.warns(UserWarning, match=ENDED):
        train("plain", tmp_path)
    assert ((tmp_path / CURRENT).read_bytes(), (tmp_path / PREVIOUS).read_bytes()) == content


# Writing --------------------------------------------------------------------------------------------------------------


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
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    kept = Checkpoints(tmp_path / "run")
    with kept.held(), pytest.raises(pv.InputError, match=r"another training is writing to .*run"):
        pv.fit(small_vae(), ring_data(), epochs=1, checkpoints=Checkpoints(tmp_path / "run"))
    pv.fit(small_vae(), ring_data(), epochs=1, checkpoints=Checkpoints(tmp_path / "run"))


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
    now = checkpoints.versions()
    monkeypatch.setattr(checkpoints, "versions", lambda: {**now, "torch": "99.0"})
    told = "not to the bit as it would have: torch .* then and 99.0 now"
    with pytest.warns(UserWarning, match=ENDED), pytest.warns(UserWarning, match=told):
        pv.fit(small_vae(), ring_data(), epochs=1, checkpoints=Checkpoints(tmp_path))


# Steps that are not finite --------------------------------------------------------------------------------------------


class Fragile(torch.nn.Module):
    """A model whose gradient is not a number where x is 7."""

    def __init__(self, validated):
        super().__init__()
        pyro.clear_param_store()
        self.loc = torch.nn.Parameter(torch.zeros(1))
        self.validated = validated

    def model(self, x):
        pyro.module("fragile", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            bad = (x == 7).float()
            loc = self.loc + z + 0 * bad / (1 - bad)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=self.validated).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x.clamp(max=1), 0.5).to_event(1))


def batches_with_a_bad_one():
    good = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(0))
    return [good[0], good[1], torch.full((6, 1), 7.0), good[2], good[3]]


@pytest.mark.parametrize("compile", [False, True])
def test_a_step_that_is_not_finite_is_left_out_counted_and_told(compile, without_machine_code):
    vae = Fragile(False)
    with pytest.warns(UserWarning, match="1 of 5 steps of epoch 1 had no finite loss or gradient"):
        history = pv.fit(vae, batches_with_a_bad_one(), epochs=1, nonfinite="skip", seed=1, compile=compile)
    assert history.skipped == [1]
    assert vae.loc.isfinite()
    assert vae.loc.item() != 0
    assert torch.tensor(history.loss).isfinite().all()


def test_the_loss_of_an_epoch_with_a_step_left_out_is_that_of_the_other_data():
    losses = []
    for batches in (batches_with_a_bad_one(), batches_with_a_bad_one()[:2]):
        history = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = pv.fit(Fragile(False), batches[:3], epochs=1, nonfinite="skip", seed=1)
        losses.append(history.loss[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_step_that_pyros_validation_refuses_is_left_out_too():
    vae = Fragile(True)
    with pytest.warns(UserWarning, match="1 of 4 steps"):
        history = pv.fit(vae, batches_with_a_bad_one()[1:], epochs=1, nonfinite="skip", seed=1)
    assert history.skipped == [1]


def test_an_epoch_of_which_no_step_is_finite_stops_the_training():
    vae = Fragile(False)
    bad = [batches_with_a_bad_one()[2]] * 2
    with pytest.raises(pv.InputError, match="every step of epoch 1 was skipped: none had a finite gradient"):
        pv.fit(vae, bad, epochs=2, nonfinite="skip", seed=1)
    assert vae.loc.item() == 0


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path):
    vae = Fragile(False)
    with pytest.raises(FloatingPointError, match="not finite at epoch 1, step 3"):
        pv.fit(vae, batches_with_a_bad_one(), epochs=2, seed=1, checkpoints=Checkpoints(tmp_path, minutes=1e-9))
    state = torch.load(tmp_path / CURRENT)
    assert state["position"]["step"] == 2
    assert state["parameters"]["loc"].isfinite()
