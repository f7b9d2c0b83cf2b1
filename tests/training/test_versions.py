"""What decides the last bits of a training is kept with it, and said if it has changed."""

import warnings

import pytest
import torch
from broken_off import Killed, dies_after, ring_data, without_times
from helpers import small_vae

import pyrovae as pv
from pyrovae.compilation import machine_code
from pyrovae.training import compiled_loss
from pyrovae.training.checkpoints import CURRENT, Checkpoints
from pyrovae.training.compiled_loss import OPERATIONS, CompiledLoss


def train(folder, optimizer=torch.optim.Adam, compile=False):
    settings = {"epochs": 3, "batch_size": 25, "seed": 1, "progress": False, "compile": compile}
    kept = Checkpoints(folder, minutes=1e-9)
    return pv.fit(small_vae(), ring_data(), optimizer=optimizer, checkpoints=kept, **settings)


def test_a_run_keeps_all_that_decides_its_bits(tmp_path):
    train(tmp_path)
    found = torch.load(tmp_path / CURRENT, weights_only=True)["versions"]
    names = (
        "python",
        "torch",
        "pyro",
        "processor",
        "processor model",
        "threads",
        "device",
        "matmul precision",
        "steps",
    )
    assert tuple(found) == names
    assert found["threads"] == torch.get_num_threads()
    assert (found["device"], found["steps"]) == ("cpu", OPERATIONS)


def test_what_has_changed_is_said_and_nothing_else(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        train(tmp_path, dies_after(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Killed):
            train(tmp_path, dies_after(1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SLOW")
    with pytest.warns(UserWarning, match=r"processor \S+ \S+ then and \S+ SLOW now, threads \d+ then and 77 now$"):
        train(tmp_path)


def test_a_compiled_run_that_resumes_without_a_compiler_says_so(tmp_path, monkeypatch, without_machine_code):
    """It was off by 4e-7 and said nothing. No compiler is needed here: what counts is what is said of it."""
    with monkeypatch.context() as patch:
        patch.setattr(CompiledLoss, "computed_by", "machine code by g++ 12.2.0")
        with pytest.raises(Killed):
            train(tmp_path, dies_after(2), compile=True)
    with pytest.warns(UserWarning, match=r"steps machine code by g\+\+ 12.2.0 then and PyTorch's operations now$"):
        train(tmp_path, compile=True)


def test_what_computes_the_steps_is_the_compiler_that_is_found(monkeypatch):
    vae = small_vae()
    loss = CompiledLoss(vae.model, vae.guide, pv.objectives.ELBO())
    for compiler, said in (("g++ 12.2.0", "machine code by g++ 12.2.0"), (None, OPERATIONS)):
        monkeypatch.setattr(compiled_loss, "cpp_compiler", lambda found=compiler: found)
        assert loss.computed_by == said
    assert CompiledLoss(vae.model, vae.guide, pv.objectives.ELBO(), inductor=False).computed_by == OPERATIONS


def test_no_compiler_is_started_unless_the_training_compiles(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(machine_code.subprocess, "run", lambda *args, **settings: started.append(args))
    assert without_times(train(tmp_path))
    assert not started
