"""Seeds set torch's generators as torch's own function does, and a block leaves no trace."""

import numpy as np
import pytest
import torch

from pyrovae.common.rng import local_seed, seed_torch


@pytest.mark.parametrize("seed", [0, 5, -3, 2**63 - 1, 2**64 - 1, -(2**63), np.int64(7)])
def test_a_seed_is_torch_s_own(seed):
    torch.random.manual_seed(seed)  # torch.manual_seed is a faster one in tests
    expected = torch.get_rng_state()
    torch.rand(1)
    seed_torch(seed)
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.initial_seed() == int(seed) % 2**64


def test_with_an_accelerator_every_device_is_seeded(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    seeded = []
    monkeypatch.setattr(torch, "manual_seed", seeded.append)
    seed_torch(3)
    assert seeded == [3]


def test_after_a_block_with_a_seed_the_generator_goes_on_as_before():
    state = torch.get_rng_state()
    with local_seed(1):
        first = torch.rand(3)
    with local_seed(1):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), state)
