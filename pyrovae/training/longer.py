"""Compares the settings of a training with those of the checkpoint it resumes from: its length may have changed."""

from typing import Any

from pyrovae.common import require, shown
from pyrovae.training import beta_schedules
from pyrovae.training.history import Position
from pyrovae.training.settings import FitSettings


def check_resumed(
    where: str, saved: dict[str, Any], now: dict[str, Any], given: FitSettings, position: Position
) -> None:
    """Checks that a training with these settings goes on from a checkpoint as if it had begun with them.

    More epochs than the checkpoint was written for are allowed, and so are fewer, down to those that are done, unless
    a schedule depends on their number. Then objectives may be added from a later epoch on, and `compile="auto"` may
    choose anew. A larger patience would have stopped no earlier, and is allowed, too.

    Args:
        where: the checkpoint's name in messages.
        saved: the settings that it was written with, as `FitSettings.to_dict` returns them.
        now: those of this training.
        given: the same as they were given to `fit`.
        position: the place at which the checkpoint was written.

    Raises:
        InputError: if they are settings of another training.
    """
    saved = {"guide_steps": 1, "train": "both", **saved}  # which older checkpoints do not have
    was, epochs = saved["epochs"], now["epochs"]
    if was != epochs:
        _check_length(where, was, given, position)
        saved = {**saved, "epochs": epochs}
        if saved["objective"] == given.described(was):
            saved["objective"] = now["objective"]
        if given.compile == "auto":
            saved["compile"] = now["compile"]
    if None not in (saved["patience"], now["patience"]) and saved["patience"] < now["patience"]:
        saved = {**saved, "patience": now["patience"]}
    for name, value in now.items():
        known = saved.get(name)
        require(known == value, f"{where} was written with {name} {shown(known)}, and {name} is now {shown(value)}")


def _check_length(where: str, was: int, given: FitSettings, position: Position) -> None:
    """Raises `InputError` if the training cannot have another number of epochs than it was begun with."""
    epochs, done = given.epochs, position.epoch - 1
    begun = f" and a part of epoch {position.epoch}" if position.step else ""
    least = done + bool(begun)
    require(epochs >= least, f"{where} has done {done} epochs{begun}: epochs must be >= {least}, got {epochs}")
    scheduled = {
        "schedule": given.schedule == "cosine",
        "beta_schedule": given.beta_factor is not beta_schedules.constant,
    }
    for name, depends in scheduled.items():
        rule = f"{where} was begun for {was} epochs, on which its {name} depends"
        require(not depends, f"{rule}: for {epochs} take {name} 'constant' from the start, or another folder")
