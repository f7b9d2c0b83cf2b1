"""A configured run and its folder: config, model, training, measures, report."""

from typing import TYPE_CHECKING

from pyrovae.common import lazy_names

if TYPE_CHECKING:  # the same names once more, as type checkers and editors read them
    from pyrovae.runs.build import build_vae, fit_settings, load_data, unseeded_vae
    from pyrovae.runs.choices import DATASETS, OBJECTIVE_NAMES, SHORTHANDS, TEXT_FILES
    from pyrovae.runs.config import RunConfig
    from pyrovae.runs.config_fields import ConfigFields, DataFields, ModelFields, ObjectiveFields, TrainingFields
    from pyrovae.runs.folder import (
        CONFIG,
        LENGTH,
        METRICS,
        PLACES,
        begun_config,
        is_begun,
        require_new_folder,
        require_run,
    )
    from pyrovae.runs.held_out import first_test_data
    from pyrovae.runs.imputed_tables import ImputedTable, check_completes_tables, impute_table
    from pyrovae.runs.measures import measure
    from pyrovae.runs.own_data import nats_of_units, with_usual_settings
    from pyrovae.runs.own_sources import is_own, require_source, short_name
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
else:  # most of these modules import torch, for which a command line does not wait before it is read
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "build": ("build_vae", "fit_settings", "load_data", "unseeded_vae"),
            "choices": ("DATASETS", "OBJECTIVE_NAMES", "SHORTHANDS", "TEXT_FILES"),
            "config": ("RunConfig",),
            "config_fields": ("ConfigFields", "DataFields", "ModelFields", "ObjectiveFields", "TrainingFields"),
            "folder": (
                "CONFIG",
                "LENGTH",
                "METRICS",
                "PLACES",
                "begun_config",
                "is_begun",
                "require_new_folder",
                "require_run",
            ),
            "held_out": ("first_test_data",),
            "imputed_tables": ("ImputedTable", "check_completes_tables", "impute_table"),
            "measures": ("measure",),
            "own_data": ("nats_of_units", "with_usual_settings"),
            "own_sources": ("is_own", "require_source", "short_name"),
            "report": (
                "ESTIMATES_FILES",
                "EVALUATION_FILES",
                "NOTE_ON_OTHER_OBJECTIVES",
                "write_estimates",
                "write_evaluation",
            ),
            "run": ("Run", "load_run", "train_run"),
            "tables": ("columns_table", "results_table"),
            "tensorboard": ("TensorBoard",),
        },
    )
