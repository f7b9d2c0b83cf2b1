"""Standard streams that are closed or full, or that nobody reads, stop no work and no exit status."""

import os
import subprocess
import sys

import pytest
import torch._dynamo  # noqa: F401  which torch's optimisers import: once, and not in each fork
from forked import called

import pyrovae as pv
from pyrovae.cli import reporting, run_command

TRAIN = ("pyrovae", "train", "--hidden", "4", "--epochs", "2", "--batch-size", "1000", "--out", "run")
FULL = "error: standard output could not be written (No space left on device)\n"
# How the streams are: the exit status of a program that does its work, and what standard error then says.
STREAMS = {
    ("kept", "kept"): (0, ""),
    ("kept", "closed"): (0, ""),
    ("kept", "full"): (0, ""),
    ("kept", "gone"): (0, ""),
    ("closed", "kept"): (0, ""),
    ("full", "kept"): (2, FULL),
    ("gone", "kept"): (141, ""),
    ("closed", "closed"): (0, ""),
    ("full", "full"): (2, ""),
    ("gone", "gone"): (141, ""),
}


@pytest.mark.parametrize(
    "streams", [("kept", "full"), ("closed", "closed"), ("full", "kept"), ("gone", "gone")], ids=" and ".join
)
def test_a_training_ends_and_is_kept(streams, tmp_path):
    status, out, err = called(run_command, TRAIN, tmp_path, *streams)
    assert (status, err) == STREAMS[streams]
    assert ("2 epochs in" in out) == (streams[0] == "kept")
    assert pv.load_run(tmp_path / "run").history.epoch == [1, 2]


@pytest.mark.parametrize("streams", STREAMS, ids=" and ".join)
def test_bad_input_exits_with_2(streams, tmp_path):
    status, out, err = called(run_command, (*TRAIN, "--lr", "-1"), tmp_path, *streams)
    assert (status, out) == (2, "")
    assert err == ("error: lr must be a finite number > 0, got -1.0\n" if streams[1] == "kept" else "")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("streams", STREAMS, ids=" and ".join)
def test_help(streams, tmp_path):
    status, out, err = called(run_command, ("pyrovae", "train", "--help"), tmp_path, *streams)
    assert (status, err) == STREAMS[streams]
    assert ("usage: pyrovae train" in out) == (streams[0] == "kept")


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path):
    def program():
        with reporting(), open(tmp_path / "file", "w", encoding="utf-8") as file:
            os.write(1, b"to standard output")
            os.write(2, b"to standard error")
            file.write("mine")

    assert called(program, (), tmp_path, "closed", "closed") == (0, "", "")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_stream_that_does_not_block_gets_all_text(tmp_path):
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    text = "a line\n" * 100_000

    def program():
        os.dup2(writes, 1)
        with reporting():
            print(text, end="")

    with open(reads, encoding="utf-8") as reader:
        pid = os.fork()
        if pid == 0:
            reader.close()
            os._exit(called(program, (), tmp_path)[0])
        os.close(writes)
        assert reader.read() == text
    assert os.waitpid(pid, 0)[1] == 0


def test_a_process_of_its_own():
    """What Python does at its end, after the program: that it has trained is in the forks above."""
    reads, writes = os.pipe()
    os.close(reads)
    started = [sys.executable, "-m", "pyrovae", "train", "--help"]
    done = subprocess.run(started, stdout=writes, stderr=subprocess.PIPE, encoding="utf-8", timeout=120, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")
