"""log p(x) of held-out data along a training, in a file that goes on with it."""

import json
from pathlib import Path

from torch import Tensor, nn

from pyrovae.common import derived_seed, local_seed, write_text
from pyrovae.evaluation import log_marginal
from pyrovae.training import History

POINTS, DATA, SAMPLES = 12, 500, 100


class LearningCurve:
    """log p(x) along a training, in a file that goes on with it."""

    def __init__(self, path: Path, vae, held_out: tuple[Tensor, ...], epochs: int, seed: int) -> None:
        self.path, self.vae, self.seed = path, vae, seed
        self.held_out = tuple(arg[:DATA] for arg in held_out)
        self.epochs = {-(-epochs * i // POINTS) for i in range(1, POINTS + 1)}
        self.seconds = 0.0

    def start(self, history: History) -> None:
        """What was measured of epochs that will be trained again is measured again."""
        self.seconds = sum(history.seconds)
        kept = [point for point in read_curve(self.path) if point[0] <= len(history.epoch)]
        text = "".join(json.dumps(point) + "\n" for point in kept)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, text)

    def add(self, record: dict[str, float | None]) -> None:
        self.seconds += record["seconds"]
        if record["epoch"] not in self.epochs:
            return
        if isinstance(self.vae, nn.Module):
            self.vae.eval()
        with local_seed(derived_seed(self.seed, "curve")):
            found = log_marginal(self.vae.model, self.vae.guide, *self.held_out, num_samples=SAMPLES, progress=False)
        with open(self.path, "a") as file:
            file.write(json.dumps([record["epoch"], self.seconds, found.mean, found.monte_carlo_error]) + "\n")


def read_curve(path: Path) -> tuple[tuple[int, float, float, float], ...]:
    points = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            point = json.loads(line)
        except ValueError:  # the last line of one that was killed
            continue
        points[point[0]] = tuple(point)
    return tuple(points[epoch] for epoch in sorted(points))
