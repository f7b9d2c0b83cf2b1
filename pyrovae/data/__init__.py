"""Data sets in memory, and the batches of an epoch."""

from pyrovae.data.arguments import Batch, is_spread, leaves_of, main_tensor, mapped, moved
from pyrovae.data.batches import (
    Batches,
    Epoch,
    Rows,
    batches_of,
    first_batch,
    generators_of,
    num_rows,
    scale_hint_of,
    whole_data,
)
from pyrovae.data.columns import KINDS, Column
from pyrovae.data.dataset import SPLITS, Dataset
from pyrovae.data.known_tables import KnownTable, cell_text, number_text, read_known_table
from pyrovae.data.loading import load
from pyrovae.data.named_sets import DATASETS, IMAGE_SETS, IN_COLOUR, NUM_CLASSES
from pyrovae.data.pixels import BINARIZE
from pyrovae.data.table_files import TABLE_FILES, TEXT_FILES

__all__ = [
    "BINARIZE",
    "Batch",
    "Batches",
    "Column",
    "DATASETS",
    "Dataset",
    "Epoch",
    "IMAGE_SETS",
    "IN_COLOUR",
    "KINDS",
    "KnownTable",
    "NUM_CLASSES",
    "Rows",
    "SPLITS",
    "TABLE_FILES",
    "TEXT_FILES",
    "batches_of",
    "cell_text",
    "first_batch",
    "generators_of",
    "is_spread",
    "leaves_of",
    "load",
    "main_tensor",
    "mapped",
    "moved",
    "num_rows",
    "number_text",
    "read_known_table",
    "scale_hint_of",
    "whole_data",
]
