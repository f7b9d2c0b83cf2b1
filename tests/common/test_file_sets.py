"""Sets of files are replaced together or not at all, by one process at a time, and through no link of others."""

import errno
import os
import threading

import pytest

from pyrovae.common import FolderInUse, InputError, read_text, write_text, written_together

FILES = ("a", "b", "figures/c")


def _write(folder, content="new", names=FILES, overwrite=True, wait=False):
    with written_together(folder, "set", FILES, overwrite=overwrite, wait=wait) as beside:
        for name in names:
            (beside / name).parent.mkdir(exist_ok=True)
            write_text(beside / name, content)


def _content(folder):
    return {read_text(folder / name) for name in FILES}


def test_several_files_are_replaced_together_or_not_at_all(tmp_path, small_disk):
    _write(tmp_path, "old")
    with pytest.raises(OSError, match="File too large") as raised:
        _write(tmp_path, "x" * 2_000)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "a"))
    assert _content(tmp_path) == {"old"}
    _write(tmp_path)
    assert _content(tmp_path) == {"new"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "figures"]


def test_an_error_in_the_block_leaves_what_was_there(tmp_path):
    _write(tmp_path, "old")
    with pytest.raises(UnicodeEncodeError):
        _write(tmp_path, "new", names=("a", "\udcff\ud800"))
    assert _content(tmp_path) == {"old"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "figures"]


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_process_that_dies_among_the_moves_is_finished_by_the_next(tmp_path, monkeypatch, moved):
    replace, done = os.replace, []

    def dies(source, target):
        if ".complete" in str(source):
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(target)
        replace(source, target)

    _write(tmp_path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            _write(tmp_path)
    with pytest.raises(InputError, match="a exists; say --overwrite"):
        _write(tmp_path, "newer", overwrite=False)
    assert _content(tmp_path) == {"new"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "figures"]


def test_files_that_are_there_are_found_before_the_work_and_after_it(tmp_path):
    _write(tmp_path, overwrite=False)
    with pytest.raises(InputError, match="a exists"), written_together(tmp_path, "set", FILES, overwrite=False):
        pytest.fail("the work began")
    (tmp_path / "a").unlink()
    with pytest.raises(InputError, match="b exists"):
        _write(tmp_path, overwrite=False)
    for name in FILES[1:]:
        (tmp_path / name).unlink()

    def write_late():
        with written_together(tmp_path, "set", FILES, overwrite=False) as beside:
            write_text(beside / "b", "new")
            write_text(tmp_path / "b", "mine")

    with pytest.raises(InputError, match="b exists"):
        write_late()
    assert read_text(tmp_path / "b") == "mine"
    assert sorted(os.listdir(tmp_path)) == ["b", "figures"]


def test_one_process_writes_a_set_at_a_time(tmp_path):
    with written_together(tmp_path, "set", FILES) as beside:
        write_text(beside / "a", "first")
        with pytest.raises(FolderInUse, match=f"another process is writing the set in {tmp_path}"):
            _write(tmp_path)
        with written_together(tmp_path, "other", ("d",)) as other:
            write_text(other / "d", "other")
        second = threading.Thread(target=_write, args=(tmp_path, "second"), kwargs={"wait": True})
        second.start()
        second.join(0.1)
        assert second.is_alive()
    second.join()
    assert _content(tmp_path) == {"second"}
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "d", "figures"]


PLACES = ("a", "figures", "figures/c", ".set.tmp", ".set.complete", ".set.lock", "a.tmp")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "link to nothing", "file", "folder"])
def test_whatever_is_in_the_place_of_a_file_nothing_outside_changes(tmp_path, place, kind, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # the links are another user's
    folder, outside, mine = tmp_path / "folder", tmp_path / "outside", tmp_path / "mine"
    outside.mkdir()
    write_text(mine, "mine")
    taken = folder / place
    taken.parent.mkdir(parents=True)
    if kind == "file":
        taken.touch()
    elif kind == "folder":
        taken.mkdir()
    else:
        taken.symlink_to(
            {"link to a file": mine, "link to a folder": outside, "link to nothing": tmp_path / "no"}[kind]
        )
    try:
        _write(folder)
    except (InputError, OSError) as error:
        assert place in str(error)  # noqa: PT017
        _ = taken.rmdir() if kind == "folder" else taken.unlink()
        _write(folder)
    assert _content(folder) == {"new"}
    assert not any((folder / name).is_symlink() for name in ("figures", *FILES))
    assert (read_text(mine), os.listdir(outside), sorted(os.listdir(tmp_path))) == (
        "mine",
        [],
        ["folder", "mine", "outside"],
    )


@pytest.mark.parametrize("disk", ["the same", "another"])
def test_a_link_to_a_folder_of_ones_own_is_followed(tmp_path, disk, monkeypatch):
    """It was refused, although the user had put the figures on a larger disk."""
    folder, outside, mine, replace = tmp_path / "folder", tmp_path / "outside", tmp_path / "mine", os.replace

    def replace_on_one_disk(source, target):
        if str(target).startswith(str(folder / "figures")) and str(source).startswith(str(folder / ".set")):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    if disk == "another":
        monkeypatch.setattr(os, "replace", replace_on_one_disk)
    folder.mkdir()
    outside.mkdir()
    write_text(mine, "mine")
    (folder / "figures").symlink_to(outside)
    (outside / "c").symlink_to(mine)
    for content in ("old", "new"):
        _write(folder, content)
        assert _content(folder) == {content}
        assert (os.listdir(outside), (outside / "c").is_symlink(), read_text(mine)) == (["c"], False, "mine")
        assert (folder / "figures").is_symlink()
        assert sorted(os.listdir(folder)) == ["a", "b", "figures"]
    outside.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="figures must be a folder, and is a symbolic link to none: remove it"):
        _write(folder)
