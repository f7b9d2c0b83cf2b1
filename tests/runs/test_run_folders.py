"""The folder of a run: its files agree, it is of its data, and others can read it wherever it is."""

import json
import os
import shutil
import tempfile
import warnings
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from helpers import IMAGE_FILES, refusal, small_vae, tree, write_images
from running_scripts import command_here

import pyrovae as pv
from pyrovae.common import workers
from pyrovae.runs import CONFIG, METRICS, measure, train_run
from pyrovae.training.checkpoints import CURRENT, LOCK, PREVIOUS

RING = {"dataset": "ring", "hidden": (4,), "epochs": 2, "batch_size": 1_000}
IMAGES = {"dataset": "mnist", "hidden": (4,), "epochs": 1, "batch_size": 20, "posterior": "relaxed_bernoulli"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of two runs, which tests copy, and of the images that one of them is of."""
    folder = tmp_path_factory.mktemp("trained")
    train_run(pv.RunConfig(**RING), folder / "ring", progress=False)
    write_images(folder / "images", nums=(5_020, 12))
    images = pv.RunConfig(**IMAGES, data_root=str(folder / "images"), temperature=0.4)
    train_run(images, folder / "mnist", progress=False)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """Returns a function that copies a folder by its name."""
    return lambda name: Path(shutil.copytree(trained / name, tmp_path / name))


def edit(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder, change):
    for path in (folder / CURRENT, folder / PREVIOUS):
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)


def resume(folder, **changes):
    config = replace(pv.RunConfig.load(folder / CONFIG), **changes)
    return train_run(config, folder, resume=True, progress=False)


# Files that agree -----------------------------------------------------------------------------------------------------

OTHERS = {
    "ring": {
        "dataset": "four_clusters", "hidden": [5], "activation": "tanh", "latent_dim": 3, "posterior": "flow",
        "prior": "flow", "layers": [1], "conditional": True, "likelihood": "student_t", "scale": 0.4,
        "objective": "iwae", "num_particles": 3, "beta": 2.0, "beta_schedule": "linear", "epochs": 1,
        "batch_size": 50, "lr": 0.1, "guide_lr": 0.2, "schedule": "cosine", "max_grad_norm": 1.0,
        "guide_max_grad_norm": 2.0, "guide_steps": 2, "train": "guide", "patience": 3, "nonfinite": "skip",
        "seed": 1,
    },
    "mnist": {"binarize": "static", "temperature": 0.7, "network": "conv"},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_config_that_says_something_else_than_what_was_trained_is_refused(name, copied):
    """With another activation log p(x) was another, and the run went on with it."""
    folder = copied(name)
    written, trained = (folder / CONFIG).read_text(), torch.load(folder / CURRENT, weights_only=True)["config"]
    for number, (field, value) in enumerate(OTHERS[name].items()):
        (folder / CONFIG).write_text(written)
        edit(folder, **{field: value})
        before = tree(folder)
        said = f"{folder / CONFIG} says {field} {value!r}, and the run was trained with {trained[field]!r}"
        assert refusal(pv.load_run, folder) == said
        if number < 3:  # one check of all fields serves both
            assert refusal(resume, folder) == said
        assert tree(folder) == before


def test_every_field_is_tried_that_decides_a_number():
    own = {
        "columns",
        "exclude",
        "label_column",
        "split_column",
        "header",
        "kinds",
        "missing",
        "standardise",
        "image_size",
    }
    of_one_part = {"alpha", "num_batches", "free_bits", "num_components", "posterior_components"}  # go with its name
    tried = OTHERS["ring"].keys() | OTHERS["mnist"].keys() | own | of_one_part | {"data_root", "device"}
    assert tried == {field.name for field in fields(pv.RunConfig)}


def test_where_it_is_and_how_long_it_goes_on_may_differ(copied):
    folder = copied("ring")
    edit(folder, data_root="elsewhere", device="cpu", epochs=9)  # as a run for longer leaves it that has just begun
    assert pv.load_run(folder).config.epochs == 9
    assert resume(folder, epochs=3).history.epoch == [1, 2, 3]
    assert pv.load_run(folder).config.epochs == 3


def test_a_run_without_config_json_goes_on_by_its_checkpoint(copied, tmp_path):
    folder = copied("ring")
    (folder / CONFIG).unlink()  # the run was killed after its first checkpoint
    done = command_here("train", "--out", folder, "--resume", "--epochs", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert pv.load_run(folder).config == pv.RunConfig(**{**RING, "epochs": 3})


# A new folder ---------------------------------------------------------------------------------------------------------


def test_only_plain_files_are_taken_for_what_a_killed_run_left(tmp_path):
    config, outside = pv.RunConfig(**RING), tmp_path / "outside"
    outside.write_text("mine")
    for number, (name, is_ours) in enumerate(((LOCK, True), (f"{CURRENT}.tmp", True), ("notes.txt", False))):
        for kind in ("file", "link", "folder"):
            folder = tmp_path / f"{number} {kind}"
            folder.mkdir()
            make = {"file": Path.touch, "link": lambda p: p.symlink_to(outside), "folder": Path.mkdir}[kind]
            make(folder / name)
            if is_ours and kind == "file":
                assert train_run(config, folder, progress=False).history.epoch == [1, 2]
                assert not (folder / name).exists()
                continue
            for again in (False, True):
                said = refusal(train_run, config, folder, resume=again, progress=False)
                assert said == f"out must be a new or empty folder, and {folder} holds files"
            assert os.listdir(folder) == [name]
    assert outside.read_text() == "mine"


def test_checkpoints_of_fit_are_named_as_such_by_every_reader_of_runs(tmp_path):
    """They were "not readable: it must have event_shape", or "not one of a run (KeyError)"."""
    vae = small_vae()
    pv.fit(vae, torch.randn(20, 2), epochs=1, progress=False, checkpoints=pv.Checkpoints(tmp_path / "plain"))
    said = "plain holds checkpoints of pv.fit, not a run of the command: pv.fit goes on with them, see docs/saving.md"
    for command in (("evaluate", "plain"), ("compare", "plain"), ("train", "--resume", "--out", "plain")):
        for more in ((), ("--dataset", "ring")) if command[0] == "train" else ((),):
            done = command_here(*command, *more, cwd=tmp_path)
            assert (done.returncode, done.stderr) == (2, f"error: {said}\n"), command
    resumed = refusal(train_run, pv.RunConfig(**RING), tmp_path / "plain", resume=True, progress=False)
    assert resumed == f"{tmp_path}/{said}"


@pytest.mark.parametrize("left", [(CONFIG,), (METRICS,), (CONFIG, METRICS)])
def test_a_run_that_has_lost_its_checkpoints_does_not_begin_anew(left, copied):
    folder = copied("ring")
    for path in folder.iterdir():
        if path.name not in left:
            path.unlink()
    before = tree(folder)
    said = (
        f"{folder} holds {' and '.join(left)} and no checkpoint, so that its run cannot be resumed: take another fold"
    )
    assert refusal(train_run, pv.RunConfig(**RING), folder, resume=True, progress=False).startswith(said)
    assert tree(folder) == before


def test_what_counts_is_seen_once_no_other_process_can_write(trained, tmp_path, monkeypatch):
    """Another start trained and ended while this one loaded its data: it was taken for this one's own run."""
    folder, real = tmp_path / "run", pv.runs.run.load_data

    def slow(config):
        if config.epochs == 3:
            train_run(pv.RunConfig(**RING), folder, progress=False)
        return real(config)

    monkeypatch.setattr(pv.runs.run, "load_data", slow)
    said = refusal(train_run, pv.RunConfig(**{**RING, "epochs": 3}), folder, progress=False)
    assert said == f"out must be a new or empty folder, and {folder} holds a run: resume=True goes on with it"
    assert pv.load_run(folder).config.epochs == 2
    assert (folder / CONFIG).read_text() == (trained / "ring" / CONFIG).read_text()


def test_a_refusal_leaves_no_folder_that_was_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))
    assert "must have room" in refusal(train_run, pv.RunConfig(**RING), tmp_path / "a/b", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_restart_goes_on_with_what_its_own_job_began_and_with_nothing_else(tmp_path):
    """`torchrun --max-restarts` without --resume took any run for its own at the second attempt."""
    folder, config = tmp_path / "run", pv.RunConfig(**RING)

    def attempt(job, epochs=2, stop=False):
        def at_epoch(run, record):
            if stop:
                raise KeyboardInterrupt

        with workers._set(together=False, job=job):
            config = pv.RunConfig(**{**RING, "epochs": epochs})
            return train_run(config, folder, on_epoch=at_epoch, checkpoint_epochs=1, progress=False)

    with pytest.raises(KeyboardInterrupt):
        attempt("one", stop=True)
    before = tree(folder)
    for job in (None, "another"):
        said = refusal(attempt, job, epochs=4_000)
        assert said == f"out must be a new or empty folder, and {folder} holds a run: resume=True goes on with it"
    assert "was begun with lr 0.001, and lr is now 0.5" in refusal(_with_lr, folder, "one")
    assert tree(folder) == before
    assert attempt("one").history.epoch == [1, 2]
    before = tree(folder)
    assert "holds a run" in refusal(attempt, "another")  # it printed the old table
    assert tree(folder) == before
    assert resume(folder, epochs=3).history.epoch == [1, 2, 3]
    assert config.epochs == 2


def _with_lr(folder, job):
    with workers._set(together=False, job=job):
        train_run(pv.RunConfig(**RING, lr=0.5), folder, progress=False)


# Its data -------------------------------------------------------------------------------------------------------------


def test_other_data_in_the_place_of_a_run_s_are_refused(copied, tmp_path):
    """Images that were replaced after the training were trained and measured on without a word."""
    folder, root = copied("mnist"), copied("images")
    edit(folder, data_root=str(root))
    raw = root / "MNIST/raw"
    for file, row, name in (
        (IMAGE_FILES[0], 0, "training"),
        (IMAGE_FILES[0], 30, "validation"),
        (IMAGE_FILES[1], 0, "test"),
    ):
        content = (raw / file).read_bytes()
        start, end = 16 + 20 * row, 36 + 20 * row  # of one image
        (raw / file).write_bytes(content[:start] + bytes(255 - one for one in content[start:end]) + content[end:])
        before, run = tree(folder), pv.load_run(folder)
        rule = "mnist must be as it was when the run was trained"
        assert refusal(lambda run=run: run.data) == f"{rule}, and holds other {name} data"
        said = f"the checkpoint in {folder} is of other {name} data: take another folder"
        assert refusal(resume, folder, epochs=2) == said
        assert tree(folder) == before
        (raw / file).write_bytes(content)
    assert resume(folder, epochs=2).history.epoch == [1, 2]
    assert len(pv.load_run(folder).data.test_x) == 12
    assert len(pv.load_run(folder, data_root=root).data.test_x) == 12


# Other places, other users, other versions ----------------------------------------------------------------------------


def test_a_folder_that_was_moved_is_the_same_run(trained, copied, tmp_path):
    folder = copied("ring")
    moved = folder.rename(tmp_path / "moved")
    one, other = pv.load_run(trained / "ring"), pv.load_run(moved)
    values = [measure(run.vae, run.data, num_samples=5, num_data=3)["log_px"] for run in (one, other)]
    assert values[0] == values[1]
    assert resume(moved, epochs=3).history.loss[:2] == one.history.loss


def test_another_user_who_may_only_read_it_loads_it_and_is_told_before_measuring(copied, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    folder = copied("ring")
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root may write to a read-only folder
    monkeypatch.setattr(
        os,
        "open",
        lambda path, flags, *args, real=os.open, **kwargs: (
            refuse() if flags & os.O_CREAT else real(path, flags, *args, **kwargs)
        ),
    )
    assert len(pv.load_run(folder).data.test_x) == 2_000
    for command in ("evaluate", "compare"):
        done = command_here(command, folder, cwd=tmp_path)
        said = f"error: run folder must be writable, and {folder} is not (Permission denied)\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def of_format_1(folder):
    """Makes a run's files what they were before they had a format of their own."""
    content = json.loads((folder / CONFIG).read_text())
    assert content.pop("format") == 2
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")

    def change(state):
        told = state["identity"]["told"]
        del told["test data"], state["job"], state["data"]
        told.update({name: told[name].split()[-4] for name in told if "data" in name and "computed" in told[name]})
        known = ("python", "torch", "pyro", "processor", "threads")
        state["versions"] = {name: state["versions"][name] for name in known}
        state["format"] = 1

    rewrite(folder, change)


@pytest.mark.parametrize("name", ["ring", "mnist"])
def test_a_run_of_the_first_format_is_read_and_goes_on(name, trained, copied):
    folder = copied(name)
    of_format_1(folder)
    old, new = pv.load_run(folder), pv.load_run(trained / name)
    other = Path(shutil.copytree(folder, folder.with_name("other")))
    rewrite(other, lambda state: state["identity"]["told"].update({"validation data": "0" * 64}))
    if name == "mnist":  # points are computed, and the first format does not say that they are
        assert "other validation data" in refusal(resume, other, epochs=4)
    else:
        assert len(pv.load_run(other).data.test_x) == 2_000
    assert old.config == new.config
    values = [measure(run.vae, run.data, num_samples=5, num_data=3)["elbo"] for run in (old, new)]
    assert values[0] == values[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resume(folder, epochs=3).history.epoch == [1, 2, 3]
    assert torch.load(folder / CURRENT, weights_only=True)["format"] == 2


def test_a_run_of_a_later_format_is_refused_by_its_number_and_not_written(copied):
    folder = copied("ring")
    edit(folder, format=3)
    said = f"{folder / CONFIG} is of format 3, and this pyrovae reads up to 2"
    assert refusal(pv.load_run, folder) == refusal(resume, folder) == said
    edit(folder, format=2)
    state = torch.load(folder / CURRENT, weights_only=True)
    torch.save({**state, "format": 3}, folder / CURRENT)
    before, said = tree(folder), said.replace(CONFIG, CURRENT)  # the one before it is older, and is not taken for it
    assert refusal(pv.load_run, folder) == refusal(resume, folder) == said
    assert tree(folder) == before
    for wrong in (0, "2", None, 2.0):
        edit(folder, format=wrong)
        torch.save(state, folder / CURRENT)
        assert refusal(pv.load_run, folder).startswith(f"format in {folder / CONFIG} must be a whole number >= 1, got")
