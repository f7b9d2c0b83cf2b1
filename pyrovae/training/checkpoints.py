"""Where a training run is written down: whole or not at all, the last two, readable without running code."""

import os
import platform
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pyro
import torch

from pyrovae.common import (
    InputError,
    exclusive_lock,
    existing_part,
    flush_renames,
    require,
    require_count,
    require_number,
    warn,
)

FORMAT = 1
LOCK = ".lock"
CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
ROOM = 9  # times the size of the first: Adam's state makes it three times as large, two are kept and one is written


class Checkpoints:
    """The checkpoints of one training run, in `folder`: `fit(..., checkpoints=...)` writes them and goes on from them.

    One is written before the first step, then every `minutes`, after every `epochs` epochs where that is said, at
    Ctrl-C or SIGTERM, and at the end. Each is written beside its place, forced to the disk and renamed, so that it is
    there whole or not at all; the one before it is kept. `load` reads the last, or says that it is damaged and reads
    the one before. They hold tensors and plain values alone (`torch.load(..., weights_only=True)`).

    A checkpoint is gone on with if it is of the same data, optimiser and model: their fingerprints and the loss at the
    parameters that it holds are kept with it. What a model changes about itself must then be in its buffers. Of a
    training that had ended, `fit` warns that nothing was trained.

    `extra` are more plain values to keep with each. `told` are texts by name that say what else the training is of
    (data that it is measured on, for one), and must be those of the checkpoint. `repeated` says that the caller makes
    the same training again each time it is called, as `race` does: then it must be from the same initial parameters,
    too, and one that had ended is no news.

    Raises `InputError` where `folder` is none; where it cannot be written to, `fit` says so: to read asks for no more
    than to read.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        minutes: float = 1.0,
        epochs: int | None = None,
        extra: dict | None = None,
        told: dict[str, str] | None = None,
        repeated: bool = False,
    ) -> None:
        require_number("minutes", minutes, above=0)
        if epochs is not None:
            require_count("epochs", epochs)
        self.folder, self.seconds, self.epochs, self.extra = Path(folder), 60 * minutes, epochs, extra or {}
        self.told, self.repeated = told or {}, repeated
        existing_part(self.folder, "folder")
        self._written, self._damaged = time.monotonic(), set()

    @property
    def paths(self) -> list[Path]:
        """The checkpoints that are there, the last one first."""
        return [path for path in (self.folder / CURRENT, self.folder / PREVIOUS) if path.exists()]

    def held(self) -> AbstractContextManager[None]:
        """Within the block no other training may write to the folder. Raises `FolderInUse` where one does already."""
        return exclusive_lock(self.folder / LOCK)

    def is_due(self) -> bool:
        return time.monotonic() - self._written >= self.seconds

    def save(self, state: dict) -> None:
        """Raises `InputError` where there is no room on the disk, or `state` is no plain value; all else stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        current, temporary = self.folder / CURRENT, self.folder / f"{CURRENT}.tmp"
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": FORMAT, "versions": versions(), **self.extra, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            _read(temporary)  # what a schedule or an optimiser adds may be no plain value, and come late
            if not self.paths:
                self._require_room(temporary.stat().st_size)
        except Exception as error:  # of pickling any kind; torch's writer makes RuntimeErrors of a full disk's OSError
            temporary.unlink(missing_ok=True)
            if isinstance(error, InputError) and "must have room" in str(error):
                raise
            raise InputError(f"{current} cannot be written ({_why(error)}); what was written before stays") from error
        if current.exists() and current not in self._damaged:  # which would replace the good one
            self._keep(current)
        self._damaged.clear()
        os.replace(temporary, current)
        flush_renames(self.folder)
        self._written = time.monotonic()

    def _keep(self, current: Path) -> None:
        """The checkpoint as the one before, while it stays where it is: whoever reads in between finds it."""
        link = self.folder / f"{PREVIOUS}.tmp"
        link.unlink(missing_ok=True)
        try:
            os.link(current, link)
        except OSError:  # a file system without hard links
            os.replace(current, self.folder / PREVIOUS)
        else:
            os.replace(link, self.folder / PREVIOUS)

    def load(self) -> dict | None:
        """The state that was saved last, or None where there is none.

        Raises `InputError` where there are checkpoints and none of them can be read.
        """
        errors = []
        for path in self.paths:
            try:
                state = _read(path)
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
        free = shutil.disk_usage(self.folder).free + size
        require(
            free >= ROOM * size,
            f"{self.folder} must have room for {ROOM * size / 1e6:.3g} MB of checkpoints, and has {free / 1e6:.3g} MB",
        )


def versions() -> dict[str, str | int]:
    """What a run's numbers depend on to the bit, besides its config."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def check_versions(state: dict) -> None:
    """Warns where the run was begun under other versions than it goes on under."""
    then, now = state.get("versions", {}), versions()
    changed = [f"{name} {then.get(name)} then and {now[name]} now" for name in now if then.get(name) != now[name]]
    if changed:
        warn(f"the run goes on, but not to the bit as it would have: {', '.join(changed)}")


def _read(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own: a damaged file may raise anything
        raise InputError(f"{path} is not a readable checkpoint ({_why(error)})") from error
    known = isinstance(state, dict) and state.get("format") == FORMAT
    require(known, f"{path} is not a readable checkpoint (it is not one that pyrovae wrote)")
    return state


def _why(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error.__context__, OSError):
        error = error.__context__
    text = getattr(error, "strerror", None) or str(error)[:80]
    return f"{type(error).__name__}: {text!r}"
