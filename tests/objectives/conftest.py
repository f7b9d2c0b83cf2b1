"""A fixture that several files of this folder use."""

import pytest
import torch
from helpers import linear_gaussian


@pytest.fixture
def vae():
    """Returns a closed-form pair whose guide is off, in mean and in scale."""
    made = linear_gaussian(0, data_dim=3, latent_dim=2)
    with torch.no_grad():
        made.guide_log_scale.add_(0.3)
        made.guide_weight.mul_(0.8)
    return made
