"""Data sets and their batches."""

from pyrovae.data.batches import VALIDATION_CHUNK, Batch, Batches, batches_of, first_batch, generators_of, unscaled_in
from pyrovae.data.dataset import BINARIZE, DATASETS, IMAGE_SETS, NUM_CLASSES, Dataset, load

__all__ = [
    "BINARIZE",
    "Batch",
    "Batches",
    "DATASETS",
    "Dataset",
    "IMAGE_SETS",
    "NUM_CLASSES",
    "VALIDATION_CHUNK",
    "batches_of",
    "first_batch",
    "generators_of",
    "load",
    "unscaled_in",
]
