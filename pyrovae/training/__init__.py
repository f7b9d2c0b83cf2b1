"""Trains a pair: fit, CompiledSVI, checkpoints, schedules. Imports no model."""

from pyrovae.training import beta_schedules
from pyrovae.training.beta_schedules import BETA_SCHEDULES
from pyrovae.training.checkpoint_content import check_content, history_of
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.compiled_loss import CompiledLoss
from pyrovae.training.compiled_svi import CompiledSVI
from pyrovae.training.data_count import DataCount
from pyrovae.training.data_told import digest, same_data, told_of_dataset, told_of_split
from pyrovae.training.fitting import fit
from pyrovae.training.gradients import compiles, gradients_of
from pyrovae.training.history import History
from pyrovae.training.interrupts import Interrupts
from pyrovae.training.one_time import is_one_time
from pyrovae.training.optimizers import LEARNING_RATE_SCHEDULES, make_optimizer
from pyrovae.training.pair_checks import checked_pair
from pyrovae.training.preparation import Training, TrainingData, prepare
from pyrovae.training.settings import NONFINITE, FitSettings
from pyrovae.training.sides import TRAIN
from pyrovae.training.state import check_fits

__all__ = [
    "BETA_SCHEDULES",
    "Checkpoints",
    "CompiledLoss",
    "CompiledSVI",
    "DataCount",
    "FitSettings",
    "History",
    "Interrupts",
    "LEARNING_RATE_SCHEDULES",
    "NONFINITE",
    "TRAIN",
    "Training",
    "TrainingData",
    "check_content",
    "check_fits",
    "checked_pair",
    "compiles",
    "digest",
    "fit",
    "gradients_of",
    "history_of",
    "is_one_time",
    "make_optimizer",
    "prepare",
    "same_data",
    "told_of_dataset",
    "told_of_split",
    "beta_schedules",
]
