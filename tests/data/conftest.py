"""Fixtures that several tests of data share."""

import pytest
import torch
from helpers import write_images


@pytest.fixture(autouse=True)
def _one_thread():
    """On busy cores two threads wait for each other at every small step, and seconds become half minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def image_root(tmp_path):
    """A folder of fake MNIST images."""
    write_images(tmp_path / "images")
    return tmp_path / "images"
