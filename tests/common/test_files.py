"""Files are written whole or not at all, follow no links, are UTF-8 and name themselves in errors; locks hold."""

import errno
import multiprocessing
import os
import struct
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from pyrovae.common import (
    FolderInUse,
    InputError,
    append_text,
    check_folder,
    exclusive_lock,
    load_tensors,
    open_plain,
    read_text,
    require_there,
    save_tensors,
    write_figure,
    write_json,
    write_text,
)

WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "json": lambda path: write_json(path, {"new": 1}),
    "tensors": lambda path: save_tensors(path, {"new": torch.ones(2)}),
    "figure": lambda path: write_figure(path, Figure(figsize=(1, 1))),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("place", ["file", "file.tmp"])
def test_writing_replaces_a_link_and_not_what_it_points_at(tmp_path, name, place):
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / place).symlink_to(target)
    WRITERS[name](tmp_path / "file")
    assert target.read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "target"]


def test_appending_refuses_a_link(tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "log").symlink_to(target)
    with pytest.raises(OSError, match="log"):
        append_text(tmp_path / "log", "more")
    assert target.read_text() == "mine"
    append_text(tmp_path / "other", "a\n")
    append_text(tmp_path / "other", "b\n")
    assert read_text(tmp_path / "other") == "a\nb\n"


def _refused(write):
    with pytest.raises(OSError, match="File too large") as raised:
        write()
    return raised.value.errno, raised.value.filename


@pytest.mark.parametrize("name", ["text", "tensors", "figure"])
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, small_disk, sharp_figures, name):
    path = tmp_path / "file"
    path.write_text("good")
    writes = {
        "text": lambda: write_text(path, "x" * 2_000),
        "tensors": lambda: save_tensors(path, torch.ones(2_000)),
        "figure": lambda: write_figure(path, Figure()),
    }
    assert _refused(writes[name]) == (errno.EFBIG, str(path))
    assert path.read_text() == "good"
    assert os.listdir(tmp_path) == ["file"]


def test_a_name_that_no_folder_can_have_is_refused():
    for name in ("a\0b", "\ud800", "x" * 300):
        with pytest.raises(InputError, match="out must be a folder, and "):
            check_folder(Path(name), "out")


def test_a_figure_whose_font_lacks_a_character_is_drawn(tmp_path, sharp_figures):
    figure = Figure(figsize=(1, 1))
    figure.suptitle("\u65e5\u672c\u8a9e \U0001f9ff")
    write_figure(tmp_path / "figure.png", figure)
    png = (tmp_path / "figure.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">2I", png[16:24]) == (120, 120)


def test_reading_does_not_wait_for_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match=r"Not a plain file"):
            open_plain(path)


def test_an_archive_that_would_inflate_is_refused(tmp_path):
    save_tensors(tmp_path / "small", torch.zeros(100_000))
    with zipfile.ZipFile(tmp_path / "small") as small, zipfile.ZipFile(tmp_path / "bomb", "w", 8) as bomb:
        for entry in small.namelist():
            bomb.writestr(entry, small.read(entry))
    assert (tmp_path / "bomb").stat().st_size < 10_000
    with pytest.raises(InputError, match="it is compressed, or longer than its file"):
        load_tensors(tmp_path / "bomb")
    assert torch.equal(load_tensors(tmp_path / "small"), torch.zeros(100_000))


# Locks ----------------------------------------------------------------------------------------------------------------


def _try(lock, answers):
    try:
        with exclusive_lock(lock):
            answers.put("got it")
    except FolderInUse:
        answers.put("in use")


def _ask(lock):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_try, args=(lock, answers))
    process.start()
    process.join()
    return answers.get()


def test_a_lock_holds_though_its_process_opens_and_closes_the_file(tmp_path):
    lock = tmp_path / "folder" / ".lock"
    with exclusive_lock(lock):
        lock.read_bytes()
        assert _ask(lock) == "in use"
        with pytest.raises(FolderInUse, match="folder"), exclusive_lock(lock):
            pass
        assert _ask(lock) == "in use"
    assert _ask(lock) == "got it"
    assert os.listdir(tmp_path) == []  # nor is the folder left, which the lock had made


def test_a_fork_does_not_keep_the_lock_when_its_parent_leaves(tmp_path):
    lock, (reads, writes) = tmp_path / ".lock", os.pipe()
    with exclusive_lock(lock):
        child = os.fork()
        if child == 0:
            os.read(reads, 1)
            os._exit(0)
        assert _ask(lock) == "in use"
    assert _ask(lock) == "got it"
    os.write(writes, b"x")
    os.waitpid(child, 0)


@pytest.mark.parametrize("kind", ["link to a file", "link to nothing", "fifo", "folder"])
def test_a_lock_follows_no_link(tmp_path, kind):
    lock, target = tmp_path / ".lock", tmp_path / "target"
    if kind == "fifo":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(target)
    if kind == "link to a file":
        target.write_text("mine")
    with pytest.raises((InputError, OSError), match=r"\.lock"), exclusive_lock(lock):
        pass
    assert os.path.lexists(lock)
    assert not target.exists() or target.read_text() == "mine"


def test_who_waits_for_a_lock_gets_it_when_it_is_released(tmp_path):
    lock, taken = tmp_path / ".lock", []

    def wait():
        with exclusive_lock(lock, wait=True):
            taken.append("second")

    with exclusive_lock(lock):
        second = threading.Thread(target=wait)
        second.start()
        time.sleep(0.1)
        taken.append("first")
    second.join()
    assert taken == ["first", "second"]
    assert os.listdir(tmp_path) == []


def test_a_file_by_its_whole_path_is_found_from_a_folder_that_is_gone(tmp_path, monkeypatch):
    there, gone = tmp_path / "there.csv", tmp_path / "gone"
    there.write_text("1\n")
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    require_there(there)
    with pytest.raises(InputError, match=r"nowhere.csv' is no file or folder$"):
        require_there(tmp_path / "nowhere.csv")
