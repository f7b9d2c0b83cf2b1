"""Races of seconds, for the tests of `race`."""

from helpers import ring, small_vae

import pyrovae as pv

SETTINGS = {"epochs": 2, "batch_size": 25, "lr": 0.01, "num_samples": 20, "progress": False}
OBJECTIVES = {"ELBO": "elbo", "IWAE": pv.objectives.IWAE(4)}


def make():
    return small_vae(seed=None)


def run(folder=None, objectives=OBJECTIVES, seeds=(0, 1), data=None, **settings):
    return pv.race(make, ring() if data is None else data, objectives, seeds, folder=folder, **{**SETTINGS, **settings})


def numbers(race):
    """Returns everything but the times."""
    return [
        (r.objective, r.seed, r.epochs, r.log_px.value.tolist(), r.active_units, [(p[0], *p[2:]) for p in r.curve])
        for r in race.runs
    ]
