"""The folder of a race: one folder for each run, which another process may be working in, and the results in it."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import TensorDataset

from pyrovae.common import (
    FolderInUse,
    InputError,
    exclusive_lock,
    has_numbers,
    load_tensors,
    read_text,
    require,
    save_tensors,
    write_text,
)
from pyrovae.data import Dataset, leaves_of
from pyrovae.lab.learning_curve import read_curve
from pyrovae.training import Checkpoints, digest

SECONDS_BETWEEN_TRIES = 2.0  # while other processes hold what is needed


@dataclass(frozen=True)
class RunFolder:
    """The files of one run: its checkpoints, its learning curve, its result and the lock of the process that trains it.

    Attributes:
        path: The folder.
        num_data: The number of held-out data, which is part of the name of the result.
        num_samples: The draws of the importance estimate, which are part of the name of the result.
        fingerprint: A digest of the data, which the result must have been written for.
    """

    path: Path
    num_data: int
    num_samples: int
    fingerprint: str

    @property
    def curve(self) -> Path:
        return self.path / "curve.jsonl"

    @property
    def result(self) -> Path:
        return self.path / f"log_px_{self.num_data}x{self.num_samples}.pt"

    def lock(self) -> AbstractContextManager[None]:
        """Holds the run for this process. Raises `FolderInUse` if another process has it."""
        require(not self.path.is_symlink(), f"{self.path} must be a folder, and is a symbolic link: remove it")
        return exclusive_lock(self.path / "race.lock")

    def checkpoints(self, held_out: tuple) -> Checkpoints:
        """Returns the checkpoints, which only a run with the same held-out data may resume from."""
        return Checkpoints(self.path, told={"held-out data": digest(held_out)}, repeated=True)

    def write_result(self, content: dict[str, object]) -> None:
        """Writes a result, of tensors and plain numbers."""
        content = content | {"data": self.fingerprint}
        save_tensors(self.result, content)

    def read_result(self) -> dict[str, Any]:
        """Returns the result with its learning curve.

        Raises:
            InputError: The file is damaged, or of other data.
        """
        try:
            content = load_tensors(self.result)
            is_same = content["data"] == self.fingerprint
            names = ("value", "standard_error", "share_unreliable", "active_units", "seconds")
            content = {name: content[name] for name in names} | {"curve": read_curve(self.curve)}
        except Exception as error:  # torch.load has no error of its own: a damaged file may raise anything
            raise InputError(f"{self.result} is not a readable result ({type(error).__name__}): remove it") from error
        require(is_same, f"{self.result} was measured on other data: take another folder")
        return content


def fingerprint_of(data: object, held_out: tuple) -> str:
    """Returns a digest of the held-out data and of the training data, as far as they are at hand without a run."""
    if isinstance(data, Dataset):
        data = data.arguments("train")
    elif isinstance(data, TensorDataset):
        data = data.tensors
    trained_on = data if isinstance(data, list | tuple) else (data,)
    return digest(
        (*held_out, *(part for part in leaves_of(trained_on) if isinstance(part, Tensor) or has_numbers(part)))
    )


def kept_step_seconds(
    folder: Path, names: list[str], measure: Callable[[dict[str, float]], dict[str, float]]
) -> dict[str, float]:
    """Returns the seconds of steps by name from step_seconds.json, once those that are missing are measured and added.

    One process measures while the others wait.

    Args:
        folder: The folder of the race.
        names: The names of the steps that are needed.
        measure: Returns the seconds of all steps, given those that are known.
    """
    path = folder / "step_seconds.json"
    while True:
        try:
            with exclusive_lock(folder / "step_seconds.lock"):
                seconds = _read_step_seconds(path)
                if any(name not in seconds for name in names):
                    seconds = measure(seconds)
                    write_text(path, json.dumps(seconds, indent=2) + "\n")
                return seconds
        except FolderInUse:
            time.sleep(SECONDS_BETWEEN_TRIES)


def _read_step_seconds(path: Path) -> dict[str, float]:
    try:
        seconds = json.loads(read_text(path)) if path.exists() else {}
        require(all(isinstance(value, float) and value > 0 for value in seconds.values()), "")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} must have the seconds of steps by name: remove it") from error
    return seconds
