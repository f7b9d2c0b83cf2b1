"""Checkpoints of a training: each file is written whole or not at all, and the last two are kept."""

import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import torch

from pyrovae.common import (
    CURRENT,
    FORMAT,
    LOCK,
    PREVIOUS,
    InputError,
    exclusive_lock,
    existing_part,
    flush_renames,
    if_given,
    load_tensors,
    require,
    require_count,
    require_flag,
    require_number,
    require_path,
    shown,
    warn,
    write_atomically,
)
from pyrovae.training.data_told import as_old

# Free space needed, in sizes of the first file. Adam's state makes it three times as large; two are kept while a third
# is written.
SIZES_NEEDED = 9


class NewerFormat(InputError):
    """A file was written by a later version of pyrovae, whose format is not known."""


class Checkpoints:
    """The checkpoints of one training, in a folder: `fit(..., checkpoints=...)` writes them and resumes from them.

    The first is written before the first step. More follow after every `minutes`, after every `epochs`, at Ctrl-C or
    SIGTERM, and at the end. Each is written beside its place, forced to the disk and renamed, so that it is there whole
    or not at all. The one before it is kept: if the last is damaged, `load` warns and reads that one. They hold tensors
    and plain values alone, which `torch.load(..., weights_only=True)` reads.

    `fit` resumes from a checkpoint if it is of the same data, optimiser and model. For this it holds their fingerprints
    and the loss at its parameters. If a model changes something about itself during training, it must keep it in a
    buffer. If the training had ended, `fit` goes on with it for more epochs, or warns that nothing was trained.

    Args:
        folder: the folder; it is made when the first checkpoint is written.
        minutes: the time between two checkpoints.
        epochs: a checkpoint is also written after every so many epochs; None leaves it to `minutes`.
        extra: more plain values to keep in each checkpoint, by name.
        told: texts by name that say what else the training is of (the data that it is measured on, for one). They must
            be those of the checkpoint.
        check: called by `fit` once no other training can write to the folder, and before anything is restored or
            written, with the content of the last checkpoint, or None if there is none. It raises `InputError` if the
            training must not begin or go on there.
        repeated: says that the caller makes the same training again each time it is called, as `race` does. Then it
            must start from the same initial parameters, too, and `fit` does not warn if it had ended.

    Raises:
        InputError: if `folder` is a file, `minutes` is not above 0 or `epochs` is not a whole number. `fit` raises it
            if the folder cannot be written to; reading needs no such permission.

    Example:
        >>> make = lambda: pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(0.5))
        >>> x, kept = torch.randn(50, 2), pv.Checkpoints("run", epochs=1)
        >>> history = pv.fit(make(), x, epochs=2, seed=0, checkpoints=kept)
        >>> [path.name for path in kept.paths]
        ['checkpoint.pt', 'checkpoint-previous.pt']
        >>> kept.load()["position"]["done"]
        True
        >>> pv.fit(make(), x, epochs=3, seed=0, checkpoints=kept).epoch  # the third is trained now
        [1, 2, 3]
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        minutes: float = 1.0,
        epochs: int | None = None,
        extra: dict | None = None,
        told: dict[str, str] | None = None,
        check: Callable[[dict | None], None] | None = None,
        repeated: bool = False,
    ) -> None:
        require_path("folder", folder)
        require_number("minutes", minutes, above=0)
        if_given(require_count, "epochs", epochs)
        for name, given in (("extra", extra), ("told", told)):
            require(given is None or isinstance(given, dict), f"{name} must be a dict, got {shown(given)}")
        require_flag("repeated", repeated)
        self.folder, self.seconds, self.epochs, self.extra = Path(folder), 60 * minutes, epochs, extra or {}
        self.told, self.check, self.repeated = told or {}, check, repeated
        require(check is None or callable(check), f"check must be None or a function, got {shown(check)}")
        existing_part(self.folder, "folder")
        self._written = time.monotonic()
        self._damaged: set[Path] = set()

    @property
    def paths(self) -> list[Path]:
        """The files that exist, the last one first."""
        return [path for path in (self.folder / CURRENT, self.folder / PREVIOUS) if path.exists()]

    def held(self) -> AbstractContextManager[None]:
        """Keeps other trainings from writing to the folder within the block. Raises `FolderInUse` if one does."""
        return exclusive_lock(self.folder / LOCK)

    def begin(self) -> dict | None:
        """Returns what `load` does, once `check` has allowed it. No other training must be able to write here."""
        saved = self.load()
        if self.check is not None:
            self.check(saved)
        return saved

    def is_due(self) -> bool:
        """Returns True if the last checkpoint was written `minutes` ago or more."""
        return time.monotonic() - self._written >= self.seconds

    def save(self, state: dict, check: Callable[[dict], None] | None = None) -> None:
        """Writes a checkpoint.

        Args:
            state: tensors and plain values by name.
            check: is called with what can be read of it, and raises `InputError` if a training cannot go on from that.

        Raises:
            InputError: if the disk is full, `state` holds something else, or `check` refuses it. Earlier checkpoints
                stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        current = self.folder / CURRENT

        def write(file: BinaryIO) -> None:
            torch.save({"format": FORMAT, **self.extra, **state}, file)
            written = _read(current, file)  # a schedule or an optimiser may add what is no plain value, even late
            if check is not None:
                check(written)
            if not self.paths:
                self._require_room(file.seek(0, 2))
            if current.exists() and current not in self._damaged:  # a damaged one would replace the good one before it
                os.fsync(file.fileno())
                self._keep_as_previous(current)

        try:
            write_atomically(current, write)
        except Exception as error:  # pickling may raise anything, and torch's writer a RuntimeError for an OSError
            if isinstance(error, InputError) and "must have room" in str(error):
                raise
            raise InputError(f"{current} cannot be written ({_cause(error)}); what was written before stays") from error
        self._damaged.clear()
        flush_renames(self.folder)
        self._written = time.monotonic()

    def _keep_as_previous(self, current: Path) -> None:
        """Makes the checkpoint the previous one; it also stays in its place, where a reader in between finds it."""
        link = self.folder / f"{PREVIOUS}.tmp"
        link.unlink(missing_ok=True)
        try:
            os.link(current, link)
        except OSError:  # a file system without hard links
            os.replace(current, self.folder / PREVIOUS)
        else:
            os.replace(link, self.folder / PREVIOUS)

    def load(self) -> dict | None:
        """Returns the state that was saved last, or None if there is no checkpoint.

        Raises:
            InputError: if there are checkpoints and none of them can be read, or the last one is of a later version.
        """
        errors = []
        for path in self.paths:
            try:
                state = _read(path)
            except NewerFormat:
                raise  # the one before it is older, and would replace it
            except InputError as error:
                errors.append(str(error))
                self._damaged.add(path)
                continue
            if errors:
                warn(f"{errors[0]}: the one before it is used")
            return state
        if errors:
            raise InputError("; ".join(errors))
        return None

    def _require_room(self, size: int) -> None:
        needed, free = SIZES_NEEDED * size, shutil.disk_usage(self.folder).free + size
        require(
            free >= needed,
            f"{self.folder} must have room for {needed / 1e6:.3g} MB of checkpoints, and has {free / 1e6:.3g} MB",
        )


def _read(path: Path, opened: BinaryIO | None = None) -> dict:
    try:
        state = load_tensors(opened or path)
    except Exception as error:  # on a damaged file torch.load may raise anything
        raise InputError(f"{path} is not a readable checkpoint ({_cause(error)})") from error
    found = state.get("format") if isinstance(state, dict) else None
    if type(found) is not int:
        raise InputError(f"{path} is not a readable checkpoint (it is not one that pyrovae wrote)")
    if found > FORMAT:
        raise NewerFormat(f"{path} is of format {found}, and this pyrovae reads up to {FORMAT}")
    identity = state.get("identity")
    if found == 1 and isinstance(identity, dict) and isinstance(identity.get("told"), dict):
        identity["told"] = as_old(identity["told"])
    return state


def _cause(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error.__context__, OSError):
        error = error.__context__
    text = getattr(error, "strerror", None) or str(error)[:80]
    return f"{type(error).__name__}: {shown(text)}"
