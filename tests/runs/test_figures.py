"""The figures of a run: what is drawn of latents of one, two, three and more dimensions."""

import numpy as np
import pytest
import torch

import pyrovae as pv
from pyrovae.runs import train_run
from pyrovae.runs.figures import draw_figures


@pytest.mark.parametrize("latent_dim", [1, 2, 3, 5])
def test_the_latent_space_is_drawn_whole_up_to_three_dimensions(latent_dim, tmp_path):
    settings = {"dataset": "ring", "hidden": (8,), "epochs": 1, "batch_size": 500, "latent_dim": latent_dim}
    run = train_run(pv.RunConfig(**settings), tmp_path / "run", progress=False)
    (axes,) = draw_figures(run)["latent"].axes
    assert axes.name == ("3d" if latent_dim == 3 else "rectilinear")
    if latent_dim == 3:
        with torch.no_grad():
            means = run.vae.encode(run.data.test_x).mean
        drawn = np.stack(axes.collections[0]._offsets3d)
        np.testing.assert_allclose(np.sort(drawn, 1), np.sort(means.numpy().T, 1), rtol=1e-5)
