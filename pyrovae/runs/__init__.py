"""A configured run and its folder: config, model, training, measures, report."""

from pyrovae.runs.config import RunConfig
from pyrovae.runs.run import Run, load_run

__all__ = [
    "Run",
    "RunConfig",
    "load_run",
]
