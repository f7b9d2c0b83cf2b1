"""What a race keeps is what it wrote, or the race says so: files that are cut, edited, of another run or no files."""

import json
import math
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import refusal, suite_seed, tree
from small_races import OBJECTIVES, numbers, run

import pyrovae as pv
from pyrovae.common import read_checked, sealed, write_checked
from pyrovae.lab.learning_curve import FIELD
from pyrovae.lab.race_folder import RunFolder, kept_step_seconds

NUM_CASES = 120


def cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flip_a_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def lengthen(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 50)))


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def make_a_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def make_a_fifo(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_nothing(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def link_to_itself(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


def change_a_value(path: Path, rng: random.Random) -> None:
    """Writes the same archive or text with another value in one place."""
    _rewrite(path, lambda found: _with_one_changed(found, rng, path.suffix == ".json"))


def forge_a_value(path: Path, rng: random.Random) -> None:
    """Changes a value of the content, and the checksum with it."""

    def forge(found: dict) -> dict:
        changed = _with_one_changed(found["content"], rng, path.suffix == ".json")
        try:
            return sealed(changed)
        except (TypeError, RuntimeError, NotImplementedError):  # nobody can have made a checksum of it
            return {**found, "content": changed}

    _rewrite(path, forge)


def _rewrite(path: Path, change: Callable[[dict], object]) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    else:
        torch.save(change(torch.load(path, weights_only=True)), path)


def _with_one_changed(content, rng: random.Random, is_json: bool):
    """Returns the content with one value, drawn at random from all levels, replaced, removed, added or doubled."""
    if isinstance(content, dict) and content and rng.random() < 0.85:
        key = rng.choice(list(content))
        inner = _with_one_changed(content[key], rng, is_json)
        return {name: inner if name == key else value for name, value in content.items()}
    if isinstance(content, dict):
        key = rng.choice([*content, "more"])
        return {n: v for n, v in content.items() if n != key} if key in content else {**content, key: 1}
    if isinstance(content, torch.Tensor) and rng.random() < 0.8:
        value, at = content.clone(), rng.randrange(len(content))
        value[at] = rng.choice([math.nan, math.inf, -1.0, float(value[at]) + 1e-6])
        return rng.choice([
            value, value[:-1], torch.cat([value, value]), value.double(), value.int(), value[None], value.bfloat16(),
            value.to_sparse(), value.to("meta"), value.tolist(),
        ])  # fmt: skip
    values = [None, True, 0, -1, 2**70, 1.5, math.nan, -math.inf, "", "x" * 1000, [], {}, [content]]
    return rng.choice(values if is_json else [*values, torch.zeros(()), torch.zeros(2, 3)])


DAMAGES = (cut, cut, flip_a_bit, lengthen, remove, make_a_folder, make_a_fifo, link_to_nothing, link_to_itself)
DAMAGES += (change_a_value,) * 4 + (forge_a_value,) * 2


def damaged(path: Path, case: int, others: list[Path]) -> str:
    """Damages the file in one way and returns the way's name."""
    rng = random.Random(suite_seed(case))
    if case % 10 == 9:
        shutil.copyfile(rng.choice(others), path)
        return "a file of another run"
    damage = rng.choice(DAMAGES)
    damage(path, rng)
    return damage.__name__


def refused(call, *args) -> tuple[object, str | None]:
    """Returns what the call returns, and in how many words it was refused, which names the file and says what to do."""
    try:
        return call(*args), None
    except pv.InputError as error:
        said = str(error)
        assert len(said) < 500, said
        assert "\n" not in said
        assert re.search(r"(: remove it|: remove the folder|take another folder| is now \S+|before stays)$", said), said
        return None, said


def same(one: dict, other: dict) -> bool:
    """Whether both are the same numbers to the bit."""
    return repr(sealed(one)) == repr(sealed(other)) and sealed(one)["sha256"] == sealed(other)["sha256"]


def identity_of(path: Path) -> tuple | None:
    """What changes when a file is written or replaced, and not when it is read."""
    found = os.lstat(path) if os.path.lexists(path) else None
    return None if found is None else (found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of three runs of one race, with what each is measured from."""
    folder, found = tmp_path_factory.mktemp("results"), []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        value, error, k = torch.rand(3, 30, generator=generator).unbind()
        measured = {
            "value": -value,
            "standard_error": error,
            "error_of_mean": None if seed else 0.5,
            "pareto_k": k,
            "share_unreliable": 0.25,
            "active_units": 2,
        }
        one = RunFolder(folder / str(seed), 30, 20, seed, None, "0123")
        one.kept_result(f"parameters {seed}", lambda measured=measured: measured)
        found.append((one, f"parameters {seed}", measured))
    return found


def test_a_damaged_result_is_measured_again_or_refused(results, tmp_path):
    ours, parameters, measured = results[0]
    seen = {}
    for case in range(NUM_CASES):
        here = RunFolder(tmp_path / str(case), *list(vars(ours).values())[1:])
        here.path.mkdir()
        shutil.copyfile(ours.result, here.result)
        way = damaged(here.result, case, [one.result for one, *_ in results[1:]])
        before = identity_of(here.result)
        found, said = refused(here.kept_result, parameters, lambda: measured)
        seen.setdefault(way, []).append(said is not None)
        assert said is not None or way == "forge_a_value" or same(found, measured), way
        if said is None:  # whoever forges a checksum can say what he likes, but nothing that is no result
            assert all(found[name].shape == (30,) for name in ("value", "standard_error", "pareto_k"))
            assert not found["value"].isnan().any()
        assert said is None or (str(here.result) in said and identity_of(here.result) == before), way
    assert not any(seen["remove"])
    # A zip has bytes that mean nothing, and a change may be none (the same dtype again).
    assert all(all(seen[way]) for way in ("cut", "a file of another run", "make_a_fifo", "link_to_nothing"))
    assert sum(seen["change_a_value"]) > 0.9 * len(seen["change_a_value"])


def test_a_result_that_does_not_know_of_draws_in_common_is_measured_again(results, tmp_path):
    ours, parameters, measured = results[0]
    here = RunFolder(tmp_path, *list(vars(ours).values())[1:])
    older = {name: value for name, value in read_checked(ours.result).items() if name != "error_of_mean"}
    write_checked(here.result, older)
    said = refusal(here.kept_result, "other parameters", lambda: measured)
    assert "was measured with other parameters" in said
    assert same(here.kept_result(parameters, lambda: measured), measured)
    assert same(here.kept_result(parameters, lambda: {}), measured)


def test_a_result_of_other_settings_under_its_name_is_refused(results, tmp_path):
    ours, parameters, measured = results[0]
    for name, value in (("num_samples", 21), ("num_data", 29), ("seed", 1), ("plate", "rows"), ("data", "other")):
        path = tmp_path / name
        other = RunFolder(**{**vars(ours), "path": path, name: value})
        path.mkdir()
        shutil.copyfile(ours.result, other.result)
        assert (
            f"{other.result} was measured with other"
            in (said := refusal(other.kept_result, parameters, lambda: measured))
            or f"with {name} " in said
        )
    said = refusal(ours.kept_result, "other parameters", lambda: measured)
    assert said == f"{ours.result} was measured with other parameters: remove it, or take another folder"


def test_damaged_times_of_steps_are_measured_again_or_refused(tmp_path):
    times, other = {"ELBO, batch 25": 0.25, "IWAE, batch 25": 0.5}, tmp_path / "other"
    kept_step_seconds(other, "other data", list(times), lambda known: times)
    for case in range(NUM_CASES // 2):
        folder = tmp_path / str(case)
        kept_step_seconds(folder, "0123", list(times), lambda known: times)
        path = folder / "step_seconds.json"
        way = damaged(path, case, [other / path.name])
        found, said = refused(kept_step_seconds, folder, "0123", list(times), lambda known: times)
        assert said is not None or found == times or way == "forge_a_value", way
        assert said is None or str(path) in said
        assert said is not None or all(value > 0 and math.isfinite(value) for value in found.values())


def change_curve(change):
    def apply(folder: Path) -> None:
        for path in folder.glob("checkpoint*.pt"):
            state = torch.load(path, weights_only=True)
            change(state)
            torch.save(state, path)

    return apply


def points(change):
    """Changes the points of the curve, of which the checkpoint before the first step has none."""

    def apply(state: dict) -> None:
        content = state[FIELD]["content"]
        content["points"] = change(content["points"]) if content["points"] else []

    return change_curve(apply)


def forged(**changes):
    def change(state: dict) -> None:
        state[FIELD] = sealed({**state[FIELD]["content"], **changes})

    return change_curve(change)


FOLDERS = {
    "a point less": points(lambda found: found[:-1]),
    "a point twice": points(lambda found: [*found, found[-1]]),
    "another value": points(lambda found: [(*found[0][:2], 0.5), *found[1:]]),
    "not a number": points(lambda found: [(1, math.nan, 0.1), *found[1:]]),
    "no point": points(lambda found: []),
    "forged: a point less": forged(points=[(1, -2.0, 0.1)]),
    "forged: of other data": forged(of={"data": "0123"}),
    "no curve": change_curve(lambda state: state.pop(FIELD)),
    "no seal": change_curve(lambda state: state.update({FIELD: [(1, -2.0, 0.1)]})),
    "the result of another run": lambda folder: shutil.copyfile(
        next(folder.with_name("IWAE-seed1-2epochs").glob("log_px*")), next(folder.glob("log_px*"))
    ),
    "the checkpoints of another run": lambda folder: [
        shutil.copyfile(path, folder / path.name)
        for path in folder.with_name("IWAE-seed1-2epochs").glob("checkpoint*.pt")
    ],
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("mine")),
    "a link in its place": lambda folder: (shutil.rmtree(folder), folder.symlink_to("nowhere")),
    "a link to another folder in its place": lambda folder: (
        folder.rename(folder.with_name("elsewhere")),
        folder.symlink_to("elsewhere"),
    ),
    "a folder as its lock": lambda folder: (folder / "race.lock").mkdir(),
    "a link as its lock": lambda folder: (folder / "race.lock").symlink_to("nowhere"),
    "no result": lambda folder: next(folder.glob("log_px*")).unlink(),
    "no run": shutil.rmtree,
}


@pytest.mark.usefixtures("entrants_unchecked")
@pytest.mark.parametrize("case", FOLDERS)
def test_a_run_folder_that_was_changed_is_done_again_or_refused(finished_race, tmp_path, monkeypatch, case):
    race, folder = finished_race
    one = race["IWAE"][0]
    for name in (one.folder.name, race["IWAE"][1].folder.name):
        shutil.copytree(folder / name, tmp_path / name, symlinks=True)
    FOLDERS[case](tmp_path / one.folder.name)
    if "link" in case:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # it is another user's
    before = tree(tmp_path)
    found, said = refused(run, tmp_path, {"IWAE": OBJECTIVES["IWAE"]}, (0,))
    if case in ("no result", "no run"):
        assert numbers(found) == numbers(pv.Race((one,), "epochs"))
    else:
        assert one.folder.name in said
        assert case != "no curve" or "holds a race of an older format" in said
        assert tree(tmp_path) == before


@pytest.mark.usefixtures("entrants_unchecked")
def test_a_link_of_ones_own_to_the_folder_of_a_run_is_followed(finished_race, tmp_path):
    """A race whose runs lie on another disk was refused."""
    race, folder = finished_race
    one = race["IWAE"][0]
    shutil.copytree(folder / one.folder.name, tmp_path / "elsewhere")
    next((tmp_path / "elsewhere").glob("log_px*")).unlink()
    (tmp_path / one.folder.name).symlink_to("elsewhere")
    found, said = refused(run, tmp_path, {"IWAE": OBJECTIVES["IWAE"]}, (0,))
    assert said is None
    assert numbers(found) == numbers(pv.Race((one,), "epochs"))
    assert (tmp_path / one.folder.name).is_symlink()
    assert tree(tmp_path / "elsewhere").keys() == tree(folder / one.folder.name).keys()


@pytest.mark.usefixtures("entrants_unchecked")
@pytest.mark.parametrize("damage", dict.fromkeys(DAMAGES[:9]), ids=lambda damage: damage.__name__)
@pytest.mark.filterwarnings("ignore:.*the one before it is used")
def test_a_race_with_a_damaged_checkpoint_ends_with_the_same_numbers_or_is_refused(finished_race, tmp_path, damage):
    race, folder = finished_race
    one = race["IWAE"][0]
    path = tmp_path / one.folder.name
    shutil.copytree(folder / path.name, path)
    damage(path / "checkpoint.pt", random.Random(suite_seed()))
    found, said = refused(run, tmp_path, {"IWAE": OBJECTIVES["IWAE"]}, (0,))
    assert (said is not None) == (damage is make_a_folder)
    assert said is not None or numbers(found) == numbers(pv.Race((one,), "epochs"))
