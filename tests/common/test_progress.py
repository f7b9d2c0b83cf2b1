"""The progress bar is shown when it is asked for, and by the first process only."""

import errno
import io
import sys
from contextlib import nullcontext
from threading import Thread
from types import SimpleNamespace

import pytest
from tqdm.auto import tqdm

from pyrovae.common import progress, progress_bar, progress_in_lines, workers


def test_a_bar_is_hidden_if_it_is_not_wanted():
    with progress_bar(False, 3, "training", "epoch") as bar:
        assert bar.disable


def test_a_bar_says_what_it_counts_and_is_cleared_at_its_end(capsys):
    with progress_bar(True, 3, "training", "epoch") as bar:
        bar.update(3)
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "epoch" in shown
    assert not shown.endswith("\n")


def test_no_bar_is_shown_where_nobody_asked_and_there_is_no_terminal(capsys):
    with progress_bar(None, 3, "training", "epoch") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_only_the_first_of_several_processes_shows_a_bar(monkeypatch):
    monkeypatch.setattr(workers, "_together", True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with progress_bar(True, 3, "training", "epoch") as bar:
        assert bar.disable


@pytest.mark.parametrize(("progress", "command"), [(False, False), (None, False), (None, True)])
def test_without_a_terminal_no_bar_waits_for_the_lock_that_forks_have_in_common(progress, command, capsys):
    """A fork that was killed while it had the lock never gives it back."""

    def count():
        with progress_in_lines() if command else nullcontext(), progress_bar(progress, 3, "training", "epoch") as bar:
            bar.update(3)

    counts = Thread(target=count, daemon=True)
    with tqdm.get_lock():
        counts.start()
        counts.join(10)
        assert not counts.is_alive()


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        self.write("")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Full(), closed()])
@pytest.mark.parametrize("progress", [None, True])
def test_a_standard_error_that_is_closed_or_full_stops_nothing(stream, progress, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(progress, 3, "training", "epoch") as bar:
        for _ in range(3):
            bar.update()
            bar.refresh()


@pytest.fixture
def seconds(monkeypatch):
    """A clock that moves when it is told to."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 10.0)
    return clock


def test_a_command_without_a_terminal_prints_a_line_now_and_then_and_not_for_each_unit(seconds, capsys):
    with progress_in_lines(), progress_bar(None, 50, "training", "epoch") as bar:
        for epoch in range(1, 51):
            seconds.now += 4.0
            bar.set_postfix({"loss": f"{100 - epoch}.00"}, refresh=False)
            bar.update()
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"training: epoch {n} of 50" for n in range(3, 51, 3)]
    assert [line.split("loss=")[1] for line in lines] == [f"{100 - n}.00" for n in range(3, 51, 3)]


def test_slow_units_have_a_line_each_and_what_is_done_soon_has_none(seconds, capsys):
    with progress_in_lines():
        for pause, num in ((60.0, 3), (0.1, 0)):
            with progress_bar(None, 3, "race", "run") as bar:
                for _ in range(3):
                    seconds.now += pause
                    bar.update()
                    bar.refresh()
            assert len(capsys.readouterr().err.splitlines()) == num


def test_lines_are_for_a_bar_that_nobody_asked_for_or_forbade(seconds, capsys, monkeypatch):
    """A bar that is asked for is one, and on a terminal it is one; outside of a command there is nothing."""
    for wanted in (True, False, None):
        with monkeypatch.context() as patch, progress_in_lines():
            patch.setattr(sys.stderr, "isatty", lambda wanted=wanted: wanted is None, raising=False)
            with progress_bar(wanted, 3, "training", "epoch") as bar:
                seconds.now += 100.0
                bar.update()
        shown = capsys.readouterr()
        assert (shown.out, "training" in shown.err) == ("", wanted is not False)
    with progress_bar(None, 3, "training", "epoch") as bar:
        seconds.now += 100.0
        bar.update()
    assert capsys.readouterr() == ("", "")
