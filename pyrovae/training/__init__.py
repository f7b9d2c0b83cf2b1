"""Trains a pair: fit, CompiledSVI, checkpoints, schedules. Imports no model."""

from pyrovae.training import schedules
from pyrovae.training.checkpoints import LOCK, Checkpoints
from pyrovae.training.compiled_svi import CompiledLoss, CompiledSVI
from pyrovae.training.fingerprint import digest
from pyrovae.training.fitting import compiles, fit, gradients_of, trained_parameters
from pyrovae.training.history import History
from pyrovae.training.loop import NONFINITE
from pyrovae.training.optimizers import LR_SCHEDULES, make_optimizer
from pyrovae.training.schedules import SCHEDULES
from pyrovae.training.state import check_fits

__all__ = [
    "Checkpoints",
    "CompiledLoss",
    "CompiledSVI",
    "History",
    "LOCK",
    "LR_SCHEDULES",
    "NONFINITE",
    "SCHEDULES",
    "check_fits",
    "compiles",
    "digest",
    "fit",
    "gradients_of",
    "make_optimizer",
    "schedules",
    "trained_parameters",
]
