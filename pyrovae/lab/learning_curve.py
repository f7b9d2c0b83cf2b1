"""The learning curve of a race's run: log p(x) of held-out data along the training."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

from torch import nn

from pyrovae.common import InputError, checksum, derived_seed, local_seed, require, sealed, shown, unsealed
from pyrovae.evaluation import HeldOut, held_out_log_px
from pyrovae.programs import ProgramPair
from pyrovae.training import Checkpoints, History, digest

NUM_POINTS = 12
NUM_DATA = 500
NUM_SAMPLES = 100
FIELD = "learning curve"  # of a checkpoint


class LearningCurve:
    """Measures log p(x) at 12 epochs of a training and keeps the points in the training's checkpoints.

    A checkpoint holds the points of the very epochs that it has done. However a training is interrupted, it resumes
    with them, and none is missing or from another training.

    Args:
        checkpoints: Those of the training, which must not have begun.
        pair: The pair that is trained.
        held_out: The held-out data, at most 500 of them where a part can be taken.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        epochs: The number of epochs of the whole training.
        seed: Fixes the draws, which are the same at every point.
    """

    def __init__(
        self, checkpoints: Checkpoints, pair: ProgramPair, held_out: HeldOut, epochs: int, seed: int, plate: str | None
    ) -> None:
        self.checkpoints, self.pair, self.seed, self.held_out, self.plate = checkpoints, pair, seed, held_out, plate
        self.epochs = sorted({-(-epochs * i // NUM_POINTS) for i in range(1, NUM_POINTS + 1)})
        self._of = {"data": digest(held_out.args), "draws": NUM_SAMPLES, "seed": seed, "plate": plate}
        self._keep([])

    def start(self, history: History) -> None:
        """Takes over the points of the checkpoint that the training resumes from.

        Raises:
            InputError: The checkpoint has not the points of its epochs, or was written by an older version.
        """
        self._keep(self._read(checkpoint_of(self.checkpoints), history))

    def add(self, record: dict[str, float | None]) -> None:
        """Measures a point if the epoch of `record`, a record of the history, is one of the 12."""
        if record["epoch"] not in self.epochs:
            return
        if isinstance(self.pair, nn.Module):
            self.pair.eval()
        with local_seed(derived_seed(self.seed, "curve")):
            found = held_out_log_px(
                self.pair.model,
                self.pair.guide,
                *self.held_out.args,
                num_samples=NUM_SAMPLES,
                plate=self.plate,
                progress=False,
            )
        self._keep([*self._points, (cast(int, record["epoch"]), found.mean, found.monte_carlo_error)])

    def points(self, history: History) -> tuple[tuple[int, float, float, float], ...]:
        """Returns for each point `(epoch, seconds so far, log p(x), Monte Carlo error)`, in nats per datum."""
        seconds = list(accumulate(history.seconds))
        return tuple((epoch, seconds[epoch - 1], log_px, error) for epoch, log_px, error in self._points)

    def _keep(self, points: Sequence[tuple[int, float, float]]) -> None:
        """Has the checkpoints that follow hold these points."""
        self._points = list(points)
        self.checkpoints.extra[FIELD] = sealed({"of": self._of, "points": self._points})

    def _read(self, saved: dict[str, Any], history: History) -> list[tuple[int, float, float]]:
        where = f"the learning curve in {self.checkpoints.folder}"
        if FIELD not in saved:  # it was in a file of its own, from which points could be lost
            raise InputError(
                f"{self.checkpoints.folder} holds a race of an older format, without the learning curve in its "
                "checkpoint: take another folder"
            )
        found = unsealed(saved[FIELD], where, "remove the folder")
        require(found.get("of") == self._of, f"{where} is of another race: take another folder")
        points = [(int(epoch), float(log_px), float(error)) for epoch, log_px, error in found["points"]]
        done, expected = [epoch for epoch, *_ in points], [one for one in self.epochs if one <= len(history.epoch)]
        require(done == expected, f"{where} must have epochs {expected}, got {shown(done)}: remove the folder")
        return points


def checkpoint_of(checkpoints: Checkpoints) -> dict[str, Any]:
    """Returns the last checkpoint. Raises `InputError` if somebody has removed it."""
    saved = checkpoints.load()
    if saved is None:
        raise InputError(f"{checkpoints.folder} has lost its checkpoints: another program writes to it")
    return saved


def parameters_of(checkpoints: Checkpoints) -> str:
    """Returns a checksum of the parameters and buffers in the last checkpoint."""
    saved = checkpoint_of(checkpoints)
    return checksum([saved["parameters"], saved["buffers"]])
