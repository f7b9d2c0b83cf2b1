"""Ctrl-C and SIGTERM stop a training between two steps, and it resumes from there."""

import os
import signal
from functools import partial

import pytest
import torch
from broken_off import assert_same, train as train_with_defaults

from pyrovae.training.checkpoints import CURRENT

train = partial(train_with_defaults, "plain", minutes=100.0, batch_size=25, epochs=3)  # two steps an epoch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heeded_after_the_step_and_the_run_goes_on_from_there(number, tmp_path):
    whole = train(tmp_path / "whole")

    class Adam(torch.optim.Adam):
        taken = 0

        @torch.no_grad()
        def step(self, *args):
            self.taken += 1
            if self.taken == 3:
                os.kill(os.getpid(), number)
            return super().step(*args)

    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path / "stopped", lambda p, lr: Adam(p, lr=lr))
    assert caught.value.args == (number,)
    assert signal.getsignal(number) is handler
    position = torch.load(tmp_path / "stopped" / CURRENT)["position"]
    assert (position["epoch"], position["step"]) == (2, 1)
    assert_same(train(tmp_path / "stopped"), whole)


def test_a_second_ctrl_c_waits_for_nothing(tmp_path):
    class Impatient(torch.optim.Adam):
        @torch.no_grad()
        def step(self, *args):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("was not interrupted")

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", lambda p, lr: Impatient(p, lr=lr))


def test_a_signal_in_the_last_epoch_ends_the_program_once_the_run_is_written(tmp_path):
    def stop(record):
        if record["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", on_epoch=stop)
    assert torch.load(tmp_path / "run" / CURRENT)["position"]["done"]


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(tmp_path / "run", on_epoch=lambda record: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
