"""The learning curve of a race's run: log p(x) of held-out data along the training."""

import json
from pathlib import Path
from typing import cast

from torch import nn

from pyrovae.common import append_text, derived_seed, local_seed, read_text, write_text
from pyrovae.evaluation import HeldOut, held_out_log_px
from pyrovae.programs import ProgramPair
from pyrovae.training import History

NUM_POINTS = 12
NUM_DATA = 500
NUM_SAMPLES = 100


class LearningCurve:
    """Measures log p(x) at 12 epochs of a training and appends each point to a file.

    A point is `[epoch, seconds so far, log p(x), Monte Carlo error]`, with log p(x) of the held-out data by 100 draws,
    in nats per datum.

    Args:
        path: The file, one JSON list per line.
        pair: The pair that is trained.
        held_out: The held-out data, at most 500 of them where a part can be taken.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        epochs: The number of epochs of the whole training.
        seed: Fixes the draws, which are the same at every point.
    """

    def __init__(
        self, path: Path, pair: ProgramPair, held_out: HeldOut, epochs: int, seed: int, plate: str | None
    ) -> None:
        self.path, self.pair, self.seed, self.held_out, self.plate = path, pair, seed, held_out, plate
        self.epochs = {-(-epochs * i // NUM_POINTS) for i in range(1, NUM_POINTS + 1)}
        self.seconds = 0.0

    def start(self, history: History) -> None:
        """Drops the points of epochs that will be trained again, because they will be measured again, too."""
        self.seconds = sum(history.seconds)
        kept = [point for point in read_curve(self.path) if point[0] <= len(history.epoch)]
        text = "".join(json.dumps(point) + "\n" for point in kept)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, text)

    def add(self, record: dict[str, float | None]) -> None:
        """Measures a point if the epoch of `record`, a record of the history, is one of the 12."""
        self.seconds += cast(float, record["seconds"])
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
        point = [record["epoch"], self.seconds, found.mean, found.monte_carlo_error]
        append_text(self.path, json.dumps(point) + "\n")


def read_curve(path: Path) -> tuple[tuple[int, float, float, float], ...]:
    """Returns the points of a curve's file by epoch; none if there is no file."""
    points = {}
    for line in read_text(path).splitlines() if path.exists() else ():
        try:
            point = json.loads(line)
        except ValueError:  # the last line of a process that was killed
            continue
        points[point[0]] = tuple(point)
    return tuple(points[epoch] for epoch in sorted(points))
