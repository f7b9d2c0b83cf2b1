"""Trainings that keep their checkpoints in memory, and resume from one without a new training."""

import io
import warnings
from contextlib import nullcontext

import torch

import pyrovae as pv
from pyrovae.common import progress_bar
from pyrovae.training.loop import Loop
from pyrovae.training.preparation import TrainingData, prepare
from pyrovae.training.settings import FitSettings


class Kept(pv.Checkpoints):
    """Checkpoints in memory: one to load, and one that was saved in an epoch after a step."""

    def __init__(self, place=None):
        super().__init__("none", minutes=100.0 if place is None else 1e-9)
        self.place, self.content, self.saved = place, None, None

    def load(self):
        return self.content

    def held(self):
        return nullcontext()

    def save(self, state, check=None):
        if self.place == (state["position"]["epoch"], state["position"]["step"]):
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            self.saved = torch.load(file, weights_only=True)


class Resumed:
    """A training that is ready to take over a checkpoint."""

    def __init__(self, make, data, more, kept):
        defaults = {
            "epochs": 2, "steps_per_epoch": None, "objective": "elbo", "objective_settings": {}, "batch_size": 25,
            "lr": 0.01, "optimizer": torch.optim.Adam, "schedule": "constant", "beta_schedule": "constant",
            "max_grad_norm": None, "guide_steps": 1, "train": "both", "compile": False, "patience": None,
            "nonfinite": "stop", "seed": 1,
        }  # fmt: skip
        settings, vae = FitSettings(**{**defaults, **more}), make()
        batches = TrainingData(vae, data(), None, settings, torch.device("cpu"))
        self.training = prepare(vae, batches, settings, kept, torch.device("cpu"))
        self.settings, self.kept = settings, kept

    def run(self):
        loop = Loop(self.training, self.settings, self.kept)
        loop.run(progress_bar(False, 1, "training", "epoch"), lambda history: None, lambda record: None)


def checkpoint_of(make, data, more, place):
    """Returns the training, which has ended, and the checkpoint of an epoch and step that it wrote."""
    kept = Kept(place)
    torch.manual_seed(1)
    with warnings.catch_warnings(action="ignore"):
        whole = Resumed(make, data, more, kept)
        whole.run()
    return whole, kept.saved
