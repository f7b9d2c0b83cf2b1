"""A configured run and its folder: config, model, training, measures, report."""

from pyrovae.runs.build import build_vae, fit_settings, load_data, unseeded_vae
from pyrovae.runs.config import RunConfig
from pyrovae.runs.config_fields import DataFields, ModelFields, ObjectiveFields, TrainingFields
from pyrovae.runs.folder import CONFIG, METRICS, begun_config, is_begun, require_new_folder
from pyrovae.runs.held_out import first_test_data
from pyrovae.runs.measures import measure
from pyrovae.runs.own_data import nats_of_units, with_usual_settings
from pyrovae.runs.own_sources import is_own, short_name
from pyrovae.runs.report import (
    ESTIMATES_FILES,
    EVALUATION_FILES,
    NOTE_ON_OTHER_OBJECTIVES,
    write_estimates,
    write_evaluation,
)
from pyrovae.runs.run import Run, load_run, train_run
from pyrovae.runs.tables import columns_table, results_table
from pyrovae.runs.tensorboard import TensorBoard

__all__ = [
    "CONFIG",
    "DataFields",
    "ESTIMATES_FILES",
    "EVALUATION_FILES",
    "METRICS",
    "ModelFields",
    "NOTE_ON_OTHER_OBJECTIVES",
    "ObjectiveFields",
    "Run",
    "RunConfig",
    "TensorBoard",
    "TrainingFields",
    "begun_config",
    "build_vae",
    "columns_table",
    "first_test_data",
    "fit_settings",
    "is_begun",
    "is_own",
    "load_data",
    "load_run",
    "measure",
    "nats_of_units",
    "require_new_folder",
    "results_table",
    "short_name",
    "train_run",
    "unseeded_vae",
    "with_usual_settings",
    "write_estimates",
    "write_evaluation",
]
