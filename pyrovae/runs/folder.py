"""The folder of a run: whether a run may begin or go on in it, and whether the files in it are of one run."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyrovae.common import CURRENT, LOCK, PREVIOUS, InputError, check_folder, is_there, require, setting, shown
from pyrovae.runs.config import RunConfig
from pyrovae.runs.own_sources import is_own, require_source

CONFIG, METRICS = "config.json", "metrics.jsonl"
PLACES = ("data_root", "device")  # where the data are, which are looked at, and where a run is trained
LENGTH = ("epochs", "patience")  # a resumed run may have more of them, which `fit` checks


def require_new_folder(folder: Path) -> None:
    """Checks that `folder` is empty or can be made, so that nothing in it would be overwritten.

    Raises:
        InputError: it holds files, is a file, or cannot be written to
    """
    check_folder(folder, "out")
    for path in folder.iterdir() if folder.exists() else ():
        # A run that was killed leaves its lock and temporary files. A link of such a name is somebody's.
        is_left_over = path.name == LOCK or path.name.endswith(".tmp")
        is_ours = is_left_over and stat.S_ISREG(path.lstat().st_mode)
        require(is_ours, _not_new(folder))


def _not_new(folder: Path) -> str:
    is_run = os.path.lexists(folder / CONFIG) and _has_checkpoint(folder)
    holds = f"a run: {setting('resume', True)} goes on with it" if is_run else "files"
    return f"out must be a new or empty folder, and {folder} holds {holds}"


def check_may_begin(folder: Path, saved: Mapping[str, Any] | None, resume: bool) -> None:
    """Checks that a run may begin in `folder`, or go on, and that the files in it are of one run.

    Args:
        folder: the folder, which this process alone may write to when the run begins
        saved: the content of the last checkpoint in it, None if there is none
        resume: whether the run in it may go on. A restart by torchrun may go on with what the same call had begun

    Raises:
        InputError: it may not
    """
    if saved is not None:
        from pyrovae.common import current_job

        job = current_job()
        may_go_on = resume or (job is not None and saved.get("job") == job)
        require(may_go_on, _not_new(folder))
        if os.path.lexists(folder / CONFIG):  # see `begun_config`
            written_config(folder, saved)
        return
    if resume:
        begun = [name for name in (CONFIG, METRICS) if os.path.lexists(folder / name)]
        rule = f"{folder} holds {' and '.join(begun)} and no checkpoint"
        require(not begun, f"{rule}, so that its run cannot be resumed: take another folder")
    require_new_folder(folder)


def require_run(folder: Path, dataset: str | None = None) -> None:
    """Raises `InputError` unless there is a folder with a checkpoint in it, and `dataset`, if its data have moved."""
    require(is_there(folder), f"run folder {folder} does not exist")
    require(folder.is_dir(), f"run folder must be a folder that training has made, and {folder} is a file")
    require(_has_checkpoint(folder), f"{folder} holds no checkpoint")
    if dataset is not None:
        require_source(dataset)


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CURRENT, PREVIOUS))


def is_begun(folder: str | Path) -> bool:
    """Returns whether a run was begun in `folder`, whatever there is to be said about its files."""
    return any(os.path.exists(f"{folder}/{name}") for name in (CONFIG, CURRENT))


def begun_config(folder: Path) -> RunConfig | None:
    """Returns the config of the run in `folder`, or None if none was begun there."""
    if os.path.lexists(folder / CONFIG):
        return RunConfig.load(folder / CONFIG)
    if not _has_checkpoint(folder):
        return None
    from pyrovae.training import Checkpoints  # which import torch

    saved = Checkpoints(folder).load()  # a kill may have come between the first checkpoint and config.json
    return None if saved is None else _config_in(saved, folder)


def written_config(folder: Path, saved: Mapping[str, Any]) -> RunConfig:
    """Returns the config in config.json, once it is clear that the checkpoint's content `saved` is of that config.

    Raises:
        InputError: they differ, and it names the field; or config.json is missing or damaged
    """
    trained, written = _config_in(saved, folder), RunConfig.load(folder / CONFIG)
    with read_as_run(folder):
        done = len(saved["history"])
    for name, was, now in _differences(trained, written):
        rule = f"{folder / CONFIG} says {name} {shown(now)}, and the run was trained with {shown(was)}"
        require(_may_be_ahead(name, was, now, written, done), rule)
    return written


def check_goes_on(folder: Path, saved: Mapping[str, Any], config: RunConfig) -> None:
    """Raises `InputError` unless the run in `folder`, of which this is the checkpoint's content, is of this config."""
    for name, was, now in _differences(_config_in(saved, folder), config):
        rule = f"the run in {folder} was begun with {name} {shown(was)}, and {name} is now {shown(now)}"
        require(name in LENGTH, rule)


@contextmanager
def read_as_run(folder: Path) -> Iterator[None]:
    """Refuses a checkpoint whose content the block cannot read, as one that is not of a run."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the checkpoint in {folder} is not one of a run ({type(error).__name__}: {error})") from error


def require_of_run(folder: Path, saved: Mapping[str, Any]) -> None:
    """Raises `InputError` if a checkpoint's content is of `fit` alone, which keeps no config with it."""
    of_run = any(name in saved for name in ("config", "event_shape")) or os.path.lexists(folder / CONFIG)
    rule = f"{folder} holds checkpoints of pv.fit, not a run of the command"
    require(of_run, f"{rule}: pv.fit goes on with them, see docs/saving.md")


def _config_in(saved: Mapping[str, Any], folder: Path) -> RunConfig:
    require_of_run(folder, saved)
    with read_as_run(folder):
        config = RunConfig.from_dict(saved["config"])
    return config


def _differences(trained: RunConfig, other: RunConfig) -> list[tuple[str, Any, Any]]:
    """Returns the fields (name, was, now) that differ in more than the place of the data or of the training."""
    found, values = [], other.to_dict()
    for name, was in trained.to_dict().items():
        now = values[name]
        has_moved = name == "dataset" and is_own(str(was)) and is_own(str(now))  # its values are looked at
        if was != now and name not in PLACES and not has_moved:
            found.append((name, was, now))
    return found


def _may_be_ahead(name: str, was: Any, now: Any, written: RunConfig, done: int) -> bool:
    """Returns whether config.json may say this of a run that goes on for longer and has not written a checkpoint yet.

    A run goes on with other epochs only if its schedules do not depend on them, and with a larger patience.
    """
    if name == "epochs":
        return now >= done and written.schedule == written.beta_schedule == "constant"
    return name == "patience" and None not in (was, now) and now > was
