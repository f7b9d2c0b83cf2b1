"""Running statistics move once a step when the objective, and with it how particles are run, changes."""

import pytest
import torch
from torch import nn

import pyrovae as pv


def normalised_vae():
    encoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    decoder = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    return pv.VAE((2,), latent_dim=1, encoder=encoder, decoder=decoder, likelihood=pv.Gaussian(0.5))


@pytest.mark.filterwarnings("ignore:particles run one after another")
@pytest.mark.parametrize("objectives", [("elbo", "iwae(num_particles=3)"), ("iwae(num_particles=3)", "elbo")])
def test_statistics_move_once_a_step_after_a_change_of_objective(objectives):
    vae, x = normalised_vae(), torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    first, second = objectives
    pv.fit(vae, x, epochs=4, batch_size=20, objective={1: first, 3: second}, compile=False, seed=0)
    counts = [int(value) for name, value in vae.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [8, 8]
