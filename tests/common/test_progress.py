"""The progress bar is shown when it is asked for, and by the first process only."""

import errno
import io
import sys

import pytest

from pyrovae.common import progress_bar, workers


def test_a_bar_is_hidden_if_it_is_not_wanted():
    with progress_bar(False, 3, "epochs") as bar:
        assert bar.disable


def test_a_bar_says_what_it_counts_and_is_cleared_at_its_end(capsys):
    with progress_bar(True, 3, "training", unit="epoch") as bar:
        bar.update(3)
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "epoch" in shown
    assert not shown.endswith("\n")


def test_no_bar_is_shown_where_nobody_asked_and_there_is_no_terminal(capsys):
    with progress_bar(None, 3) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_only_the_first_of_several_processes_shows_a_bar(monkeypatch):
    monkeypatch.setattr(workers, "_together", True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with progress_bar(True, 3) as bar:
        assert bar.disable


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
    with progress_bar(progress, 3, "training") as bar:
        for _ in range(3):
            bar.update()
            bar.refresh()
