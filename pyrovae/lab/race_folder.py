"""The folder of a race: one folder for each run, which another process may be working in, and the results in it."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import TensorDataset

from pyrovae.common import FolderInUse, check_link, exclusive_lock, has_numbers, read_checked, require, write_checked
from pyrovae.data import Dataset, leaves_of
from pyrovae.training import Checkpoints, digest

SECONDS_BETWEEN_TRIES = 2.0  # while other processes hold what is needed
MEASURES = {"value", "standard_error", "error_of_mean", "pareto_k", "share_unreliable", "active_units"}


@dataclass(frozen=True)
class RunFolder:
    """The files of one run: its checkpoints, which hold its learning curve, its result, and a lock while it is trained.

    Attributes:
        path: The folder.
        num_data: The number of held-out data.
        num_samples: The draws of the importance estimate.
        seed: The seed of the run.
        plate: The name of the data plate, where one was given.
        data: A digest of the data. Like all the others it decides the result, which must have been measured for it.
    """

    path: Path
    num_data: int
    num_samples: int
    seed: int
    plate: str | None
    data: str

    @property
    def result(self) -> Path:
        return self.path / f"log_px_{self.num_data}x{self.num_samples}.pt"

    def lock(self) -> AbstractContextManager[None]:
        """Holds the run for this process. Raises `FolderInUse` if another process has it."""
        check_link(self.path)
        return exclusive_lock(self.path / "race.lock")

    def checkpoints(self, held_out: tuple) -> Checkpoints:
        """Returns the checkpoints, which only a run with the same held-out data may resume from."""
        return Checkpoints(self.path, told={"held-out data": digest(held_out)}, repeated=True)

    def kept_result(self, parameters: str, measure: Callable[[], dict[str, object]]) -> dict[str, Any]:
        """Returns the result by the names `MEASURES`, which is measured and written if there is none.

        Args:
            parameters: A checksum of the parameters that are measured.
            measure: Returns the result.

        Raises:
            InputError: The file is damaged, or of other data, settings or parameters.
        """
        of = {name: value for name, value in vars(self).items() if name != "path"} | {"parameters": parameters}
        kept, where = read_checked(self.result), f"{self.result}"
        was = of if kept is None else kept.pop("of", {})
        for name, value in of.items():
            others = f"other {name}" if name in ("data", "parameters") else f"{name} {was.get(name)} and not {value}"
            require(was.get(name) == value, f"{where} was measured with {others}: remove it, or take another folder")
        if kept is None or "error_of_mean" not in kept:  # an older version did not know of draws in common
            found = measure()
            write_checked(self.result, {"of": of, **found})
            return found
        require(_is_result(kept, self.num_data), f"{where} is not a result of {self.num_data} data: remove it")
        return kept


def _is_result(found: dict[str, Any], num_data: int) -> bool:
    if found.keys() != MEASURES:
        return False
    tensors = [found[name] for name in ("value", "standard_error", "pareto_k")]
    units, share, of_mean = found["active_units"], found["share_unreliable"], found["error_of_mean"]
    return (
        all(isinstance(one, Tensor) and one.is_floating_point() and one.shape == (num_data,) for one in tensors)
        and not bool(found["value"].isnan().any() or (found["value"] == math.inf).any())
        and not bool((found["standard_error"] < 0).any())
        and (units is None or (type(units) is int and units >= 0))
        and (of_mean is None or (type(of_mean) is float and not of_mean < 0))
        and type(share) is float
        and not (share < 0 or share > 1)  # nan: the draws are too few to tell
    )


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
    folder: Path,
    data: str,
    names: list[str],
    measure: Callable[[Mapping[str, float]], dict[str, float]],
) -> dict[str, float]:
    """Returns the seconds of steps by name from step_seconds.json, once those that are missing are measured and added.

    One process measures while the others wait.

    Args:
        folder: The folder of the race.
        data: A digest of the training data, which the seconds must have been measured on.
        names: The names of the steps that are needed.
        measure: Returns the seconds of all steps, given those that are known.

    Raises:
        InputError: The file is damaged or of other data.
    """
    path = folder / "step_seconds.json"
    while True:
        try:
            with exclusive_lock(folder / "step_seconds.lock"):
                seconds = _read_step_seconds(path, data)
                if any(name not in seconds for name in names):
                    seconds = measure(seconds)
                    write_checked(path, {"data": data, "seconds": seconds})
                return seconds
        except FolderInUse:
            time.sleep(SECONDS_BETWEEN_TRIES)


def _read_step_seconds(path: Path, data: str) -> dict[str, float]:
    kept = read_checked(path)
    if kept is None:
        return {}
    seconds: Any = kept.get("seconds")
    valid = isinstance(seconds, dict) and all(
        type(value) is float and 0 < value < math.inf for value in seconds.values()
    )
    require(valid, f"{path} must have the seconds of steps by name: remove it")
    require(kept.get("data") == data, f"{path} was measured on other training data: remove it, or take another folder")
    return seconds
