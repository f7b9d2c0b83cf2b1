"""The test data of a run, as its model and guide take them."""

import torch

from pyrovae.common import as_arguments, require, require_count
from pyrovae.data import Dataset
from pyrovae.models import VAE


def first_test_data(vae: VAE, data: Dataset, num_data: int | None) -> tuple[torch.Tensor, ...]:
    """Returns what model and guide of `vae` take, for the first `num_data` test data (None: for all), checked."""
    args = held_out_arguments(vae, data)
    if num_data is not None:
        require_count("num_data", num_data)
        most = len(data.test_x)
        require(num_data <= most, f"num_data must be <= {most}, the number of test data; got {num_data}")
        args = tuple(arg[:num_data] for arg in args)
    vae.check_data(*args)
    return args


def held_out_arguments(vae: VAE, data: Dataset) -> tuple[torch.Tensor, ...]:
    """Returns what model and guide of `vae` take, for all test data: x, and y for each condition."""
    return as_arguments(vae, (data.arguments("test"),))
