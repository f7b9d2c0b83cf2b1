"""Every command that writes into a folder: through no link, all of its files or none, and one process at a time."""

import functools
import os
import re
import resource
import shutil
from pathlib import Path

import pytest
from helpers import tree
from matplotlib.figure import Figure
from own_files import write_table
from running_scripts import command_here

import pyrovae as pv
from pyrovae.cli.compare import UNFINISHED
from pyrovae.common import write_text, written_together
from pyrovae.lab import comparison_report, race_report, step_timing
from pyrovae.runs import EVALUATION_FILES, report, train_run

SMALL = ("--hidden", 4, "--epochs", 1, "--batch-size", 1_000)
DRAWS = ("--num-samples", 4, "--num-data", 4)


def command(*flags):
    return lambda folder: command_here(*flags, cwd=folder)


# What writes into a folder that holds a run, and the path of what it puts beside its files until they are whole.
DOORS = {
    "evaluate": (command("evaluate", "run", *DRAWS, "--overwrite"), "run/.evaluation"),
    "estimates": (command("evaluate", "run", "--methods", "elbo", "--num-data", 4, "--overwrite"), "run/.estimates"),
    "impute": (
        command(
            *("impute", "table", "--data", "table.csv", "--out", "out/filled.csv", "--draws", 1),
            *("--num-samples", 30, "--overwrite"),
        ),
        "out/.imputation",
    ),
    "compare": (
        command(
            *("compare", "run", "--objectives", "elbo", "--num-particles", 1, "--repeats", 4, "--num-data", 4),
            *("--no-compile", "--overwrite"),
        ),
        "run/.comparison",
    ),
    "race": (
        command("race", *SMALL, *DRAWS, "--objectives", "elbo", "--seeds", 0, "--budget", "seconds", "--out", "race"),
        "race/.race",
    ),
    "resume": (command("train", "--out", "run", "--resume", "--epochs", 2), "run/."),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with a run, and one on a table with missing cells."""
    folder = tmp_path_factory.mktemp("kept")
    small = {"hidden": (4,), "epochs": 1, "batch_size": 1_000}
    train_run(pv.RunConfig(**small), folder / "run", progress=False)
    write_table(folder / "table.csv", {"a": "continuous", "b": "continuous"}, missing=0.2)
    table = {"dataset": str(folder / "table.csv"), "columns": ("a", "b"), "missing": "mask", "latent_dim": 2}
    train_run(pv.RunConfig(**small, **table), folder / "table", progress=False)
    return folder


@pytest.fixture(scope="module")
def written(kept, tmp_path_factory):
    """Returns, for a door, a folder into which it has written, once for all tests."""

    @functools.cache
    def at(door):
        folder = tmp_path_factory.mktemp("written") / "here"
        shutil.copytree(kept, folder)
        assert DOORS[door][0](folder).returncode == 0
        return folder

    return at


@pytest.fixture
def folder(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(autouse=True)
def quick_steps_and_small_figures(monkeypatch):
    monkeypatch.setattr(step_timing, "TIMED_ROUNDS", 2)

    def figure(*_):
        return Figure(figsize=(1, 1))

    monkeypatch.setattr(report, "draw_figures", lambda run: {"training": figure(), "latent": figure()})
    monkeypatch.setattr(comparison_report, "draw_comparison", lambda found: {"bounds": figure()})
    monkeypatch.setattr(race_report.Race, "plot", figure)


def done_after_removing_links(call, folder, links):
    """Calls until nothing is in the way any more, and removes the link that each refusal names."""
    for _ in range(len(links) + 1):
        done = call(folder)
        if done.returncode == 0:
            return
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        named = [link for link in links if link.is_symlink() and str(link.relative_to(folder)) in done.stderr]
        assert named, done.stderr
        max(named, key=lambda link: len(str(link))).unlink()
    pytest.fail(done.stderr)


@pytest.mark.parametrize("door", DOORS)
def test_no_link_is_followed(door, written, kept, tmp_path, monkeypatch):
    """Here all links are another user's."""
    call, name = DOORS[door]
    before, after = tree(kept), tree(written(door))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    files = [path for path, content in after.items() if before.get(path) != content and "config" not in path]
    assert len(files) >= 2
    places = {*files, *(f"{path}.tmp" for path in files), *(f"{name}{kind}" for kind in ("lock", ".lock", ".tmp"))}
    if door == "resume":
        places -= {"run/checkpoint.pt", "run/checkpoint-previous.pt"}  # which are read
    folders = {str(Path(path).parent) for path in files} - {"run", "race", "out"}  # which the user names
    outside, mine = tmp_path / "outside", tmp_path / "mine"
    for number, taken in enumerate((places, folders)):
        here = tmp_path / str(number)
        shutil.copytree(kept, here)
        outside.mkdir(exist_ok=True)
        mine.write_text("mine")
        links = [here / path for path in sorted(taken)]
        for link in links:
            if not any(parent in links for parent in link.parents):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(outside if taken is folders else mine)
        done_after_removing_links(call, here, links)
        assert (mine.read_text(), os.listdir(outside)) == ("mine", [])
        assert all((here / path).is_file() and not (here / path).is_symlink() for path in files)


@pytest.mark.parametrize("door", ["evaluate", "estimates", "impute", "compare", "race"])
def test_a_full_disk_leaves_the_earlier_report_and_names_the_file(door, written, tmp_path, small_disk):
    call, name = DOORS[door]
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    folder = shutil.copytree(written(door), tmp_path / "here")
    earlier = tree(folder)
    files = {path for path in earlier if Path(path).parts[0] == Path(name).parts[0]}
    for limit in (0, 300):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        done = call(folder)
        assert (done.returncode, "report: " in done.stdout) == (2, False)
        said = re.fullmatch(r"error: File too large: (.+)\n", done.stderr)
        assert said, done.stderr
        assert said[1] in files or Path(said[1]).parts[1] == UNFINISHED
        kept = {path: content for path, content in tree(folder).items() if UNFINISHED not in Path(path).parts}
        assert kept == earlier
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert call(folder).returncode == 0
    assert tree(folder).keys() == earlier.keys()


def test_a_second_evaluation_at_the_same_time_is_refused_at_once(folder):
    evaluate, (estimate, _) = DOORS["evaluate"][0], DOORS["estimates"]
    with written_together(folder / "run", "evaluation", EVALUATION_FILES) as beside:
        write_text(beside / "evaluation.json", "first")
        done = evaluate(folder)
        said = "error: another process is writing the evaluation in run\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
        assert estimate(folder).returncode == 0
    assert (folder / "run/evaluation.json").read_text() == "first"
    assert evaluate(folder).returncode == 0


def test_a_bad_value_is_told_before_the_files_that_are_there(folder, tmp_path):
    """`--methods iwae50` was said to overwrite files, and the bad value told once it was called with --overwrite."""
    for name in ("evaluation", "estimates", "comparison"):
        (folder / "run" / f"{name}.json").touch()
    for flags, said in {
        ("evaluate", "run", "--methods", "ais", "iwae50"): "methods must be elbo, .+ got 'ais': did you mean ais_T[?]",
        ("evaluate", "run", "--methods", "iwae50"): ".+: did you mean iwae_50[?]",
        ("evaluate", "run", "--num-samples", 0): "num_samples must be a whole number >= 1, got 0",
        ("evaluate", "run", "--num-data", 0): "num_data must be a whole number >= 1, got 0",
        ("evaluate", "run", "--seed", -1): "seed must be a whole number >= 0, got -1",
        ("compare", "run", "--objectives", "iwea"): ".+: did you mean iwae[?]",
        ("compare", "run", "--repeats", 0): "repeats must be .+",
        ("compare", "run", "--num-data", 0): "num_data must be a whole number >= 1, got 0",
    }.items():
        assert re.fullmatch(f"error: {said}\n", command(*flags)(folder).stderr), flags


def test_an_evaluation_that_failed_leaves_nothing(folder, monkeypatch):
    before = tree(folder)

    def fails(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "draw_figures", fails)
    assert DOORS["evaluate"][0](folder).returncode == 130
    assert tree(folder) == before
