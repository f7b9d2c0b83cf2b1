"""Data sets in memory, and the batches of an epoch."""

from pyrovae.data.arguments import Batch, is_spread, leaves_of, main_tensor, mapped, moved
from pyrovae.data.batches import Batches, Epoch, batches_of, first_batch, generators_of, scale_hint_of
from pyrovae.data.dataset import Dataset
from pyrovae.data.image_files import IMAGE_SETS
from pyrovae.data.loading import DATASETS, NUM_CLASSES, load
from pyrovae.data.pixels import BINARIZE

__all__ = [
    "BINARIZE",
    "Batch",
    "Batches",
    "DATASETS",
    "Dataset",
    "Epoch",
    "IMAGE_SETS",
    "NUM_CLASSES",
    "batches_of",
    "first_batch",
    "generators_of",
    "is_spread",
    "leaves_of",
    "load",
    "main_tensor",
    "mapped",
    "moved",
    "scale_hint_of",
]
