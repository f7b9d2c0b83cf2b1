"""The held-out data of a run, as its model and guide take them."""

import torch

from pyrovae.common import as_arguments, require, require_count
from pyrovae.data import Dataset
from pyrovae.models import VAE


def first_test_data(vae: VAE, data: Dataset, num_data: int | None) -> tuple[torch.Tensor, ...]:
    """Returns what model and guide of `vae` take, for the first `num_data` test data (None: for all), checked."""
    require(len(data.test_x) > 0, f"{data.name} has no test data to measure on, and {len(data.train_x):,} to train on")
    args = split_arguments(vae, data, "test")
    if num_data is not None:
        require_count("num_data", num_data)
        most = len(data.test_x)
        require(num_data <= most, f"num_data must be <= {most}, the number of test data; got {num_data}")
        args = tuple(arg[:num_data] for arg in args)
    vae.check_data(*args)
    return args


def split_arguments(vae: VAE, data: Dataset, split: str) -> tuple[torch.Tensor, ...]:
    """Returns what model and guide of `vae` take, for all data of a split: x, and y for each condition."""
    return as_arguments(vae, (data.arguments(split),))


def drawn_split(data: Dataset) -> str:
    """Returns the split that figures show: test, or else validation or train, whichever first has an observed cell."""
    splits = ("test", "validation")
    return next((split for split in splits if not data.arguments(split)[0].isnan().all()), "train")
