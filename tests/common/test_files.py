"""Files are written whole or not at all, follow no links, are UTF-8 and name themselves in errors; locks hold."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import zipfile

import pytest
import torch

from pyrovae.common import (
    FolderInUse,
    InputError,
    append_text,
    check_unwritten,
    exclusive_lock,
    finish_writing,
    load_tensors,
    open_plain,
    read_text,
    save_tensors,
    write_json,
    write_text,
    written_together,
)

WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "json": lambda path: write_json(path, {"new": 1}),
    "tensors": lambda path: save_tensors(path, {"new": torch.ones(2)}),
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


@pytest.fixture
def small_disk(monkeypatch):
    """No file can grow beyond 1,000 bytes; writing then fails as it does on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def _refused(write):
    with pytest.raises(OSError, match="File too large") as raised:
        write()
    return raised.value.errno, raised.value.filename


@pytest.mark.parametrize("name", ["text", "tensors"])
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, small_disk, name):
    path = tmp_path / "file"
    path.write_text("good")
    writes = {"text": lambda: write_text(path, "x" * 2_000), "tensors": lambda: save_tensors(path, torch.ones(2_000))}
    assert _refused(writes[name]) == (errno.EFBIG, str(path))
    assert path.read_text() == "good"
    assert os.listdir(tmp_path) == ["file"]


def test_several_files_are_replaced_together_or_not_at_all(tmp_path, small_disk):
    def write(of, size):
        with written_together(tmp_path, "report") as beside:
            write_text(beside / "report.md", of)
            (beside / "figures").mkdir()
            write_text(beside / "figures" / "a.png", of * size)

    write("old", 1)
    assert _refused(lambda: write("new", 1_000)) == (errno.EFBIG, str(tmp_path / "figures" / "a.png"))
    assert read_text(tmp_path / "report.md") == read_text(tmp_path / "figures" / "a.png") == "old"
    write("new", 1)
    assert read_text(tmp_path / "report.md") == read_text(tmp_path / "figures" / "a.png") == "new"
    assert sorted(os.listdir(tmp_path)) == ["figures", "report.md"]


def _write_set(folder, names):
    with written_together(folder, "set") as beside:
        for name in names:
            (beside / name).parent.mkdir(exist_ok=True)
            write_text(beside / name, "new")


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_process_that_dies_among_the_moves_is_finished_by_the_next(tmp_path, monkeypatch, moved):
    replace, done = os.replace, []

    def dies(source, target):
        if ".complete" in str(source):
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(target)
        replace(source, target)

    for name in ("a", "b", "c"):
        write_text(tmp_path / name, "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            _write_set(tmp_path, ("a", "b", "c"))
    with pytest.raises(InputError, match="a exists"):
        check_unwritten(tmp_path, False, ["a"])
    assert [read_text(tmp_path / name) for name in ("a", "b", "c")] == ["new"] * 3
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_a_set_of_files_does_not_go_through_a_linked_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="figures"):
        _write_set(tmp_path / "run", ("figures/a.png",))
    assert os.listdir(tmp_path / "elsewhere") == []
    (tmp_path / "run" / "figures").unlink()
    finish_writing(tmp_path / "run")
    assert read_text(tmp_path / "run" / "figures" / "a.png") == "new"


def test_text_is_utf_8_whatever_the_locale_and_the_bytes_of_a_path(tmp_path):
    code = """if True:
        import os, sys
        from pathlib import Path
        from pyrovae.common import write_text
        write_text(Path(sys.argv[1]), "\\u00e9 " + os.fsdecode(b"caf\\xe9"))
    """
    env = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "text"], env=env, check=True)
    assert read_text(tmp_path / "text") == "é caf\\udce9"


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
    with pytest.raises(InputError, match="more than its bytes"):
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
