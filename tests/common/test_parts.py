"""Parts of a computation are kept as they were found, for one set of settings, and are never mixed with others."""

import pytest
import torch
from helpers import refusal, tree

import pyrovae as pv
from pyrovae.common import exclusive_lock, kept_parts

SETTINGS = {"lr": 0.1, "hidden": (3, 4), "data": "0123", "truth": True, "long": list(range(200))}


def found_in(folder, keys, settings=SETTINGS, stop_at=None, computed=None):
    """Computes the parts by these keys, of numbers that each key decides, and returns them."""

    def compute(key):
        if key == stop_at:
            raise KeyboardInterrupt
        if computed is not None:
            computed.append(key)
        return {"key": key, "draw": torch.randn(3, generator=torch.Generator().manual_seed(len(key)))}

    with kept_parts(folder, settings) as parts:
        return [parts.get(key, lambda key=key: compute(key)) for key in keys]


def test_a_call_that_was_interrupted_goes_on_from_the_parts_that_it_had_found(tmp_path):
    folder, keys, computed = tmp_path / "out", ["a", "bb", "a/b: c"], []
    for stop_at in ("bb", "a/b: c"):
        with pytest.raises(KeyboardInterrupt):
            found_in(folder, keys, stop_at=stop_at, computed=computed)
    found = found_in(folder, [*keys, "dddd"], computed=computed)
    assert repr(found) == repr(found_in(None, [*keys, "dddd"]))
    assert computed == [*keys, "dddd"]
    names = {"parts", "parts/settings.json", *(f"parts/{name}.pt" for name in ("a", "bb", "a_b_c", "dddd"))}
    assert tree(folder).keys() == names


def test_parts_of_other_settings_are_refused_and_stay(tmp_path):
    found_in(tmp_path, ["a"])
    before = tree(tmp_path)
    for settings, said in (
        ({**SETTINGS, "lr": 0.2}, "lr 0.1, and lr is now 0.2"),
        ({**SETTINGS, "hidden": (3,)}, "hidden [3, 4], and hidden is now [3]"),
        ({**SETTINGS, "more": 1}, "more None, and more is now 1"),
        ({"lr": 0.1}, "hidden [3, 4], and hidden is now None"),
        ({**SETTINGS, "truth": 1}, "truth True, and truth is now 1"),
        ({**SETTINGS, "data": "f" * 64}, "other data"),
    ):
        assert refusal(found_in, tmp_path, ["a", "b"], settings) == (
            f"{tmp_path} was begun with {said}: remove it, or take another folder"
        )
    assert "was begun with long [0, 1, 2" in refusal(found_in, tmp_path, ["a"], {**SETTINGS, "long": list(range(201))})
    assert tree(tmp_path) == before


def test_files_that_are_no_parts_are_refused_and_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert refusal(found_in, tmp_path, ["a"]) == f"out must be a new or empty folder, and {tmp_path} holds files"
    assert tree(tmp_path) == {"notes.txt": b"mine"}
    assert "out must be a folder, got the file" in refusal(found_in, tmp_path / "notes.txt", ["a"])
    with exclusive_lock(tmp_path / "used" / ".lock"):
        assert "is writing to" in refusal(found_in, tmp_path / "used", ["a"])


@pytest.mark.parametrize("name", ["a.pt", "settings.json"])
def test_a_damaged_part_is_refused(name, tmp_path):
    found_in(tmp_path, ["a", "b"])
    path = tmp_path / "parts" / name
    content = path.read_bytes()
    for damaged in (content[:-20], b"", content.replace(b"0123", b"0124").replace(b"key", b"kex")):
        path.write_bytes(damaged)
        said = refusal(found_in, tmp_path, ["a", "b"])
        assert said.startswith(str(path))
        assert said.endswith(": remove it")
    path.write_bytes((tmp_path / "parts" / "b.pt").read_bytes())
    if name == "a.pt":
        assert refusal(found_in, tmp_path, ["a"]) == f"{path} is of another part or of other settings: remove it"


def test_what_a_part_needs_on_its_way_is_removed_once_it_is_kept(tmp_path):
    with kept_parts(tmp_path, SETTINGS) as parts:
        folder = parts.folder_of("a")
        checkpoints = pv.Checkpoints(folder)
        folder.mkdir()
        checkpoints.save({"a": 1})
        parts.keep("a", {"found": 2})
        assert not folder.exists()
        assert parts.kept("a") == {"found": 2}
        assert parts.kept("b") is None


def test_a_call_that_kept_nothing_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        found_in(tmp_path / "out", ["a"], stop_at="a")
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_fails_before_it_has_anything_leaves_no_folder(tmp_path):
    def fail():
        raise pv.InputError("epochs must be a whole number >= 1, got 0")

    with pytest.raises(pv.InputError), kept_parts(tmp_path / "out", SETTINGS) as parts:
        parts.get("a", lambda: (parts.folder_of("a"), fail()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["parts", "parts/b"])
def test_no_link_is_followed(name, tmp_path):
    (tmp_path / "mine").mkdir()
    found_in(tmp_path / "out", ["a"])
    link = tmp_path / "out" / name
    if link.exists():
        link.rename(tmp_path / "parts")
        (tmp_path / "mine" / "settings.json").write_bytes((tmp_path / "parts" / "settings.json").read_bytes())
    link.symlink_to(tmp_path / "mine")
    before = tree(tmp_path / "mine")
    assert refusal(found_in, tmp_path / "out", ["a", "b"]) == (
        f"{link} must be a folder, and is a symbolic link: remove it"
    )
    assert tree(tmp_path / "mine") == before
