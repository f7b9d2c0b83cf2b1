"""The figures of a run show what they name."""

from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae.runs.figures import draw_figures


@pytest.mark.parametrize(
    ("spread", "drawn", "title"),
    [
        ([0.1, 3.0], [0, 1], "posterior means, test data"),
        ([1.0, 0.1, 0.1, 0.1, 2.0], [0, 4], "posterior means, test data\nthe two most active of 5 latents"),
        ([0.1, 2.0, 0.1, 1.0], [1, 3], "posterior means, test data\nthe two most active of 4 latents"),
    ],
)
def test_the_latents_drawn_are_the_most_active_and_named_on_the_axes(spread, drawn, title):
    data = pv.load("ring", num_train=20, num_test=30)
    vae = pv.VAE((2,), latent_dim=len(spread), hidden=(), likelihood=pv.Gaussian(0.5))
    with torch.no_grad():  # each latent's mean is x1, so many times
        vae.encoder.output.weight.zero_()
        vae.encoder.output.weight[: len(spread), 0] = torch.tensor(spread)
    run = SimpleNamespace(data=data, vae=vae, config=SimpleNamespace(seed=0), history=SimpleNamespace(plot=Figure))
    (axes,) = draw_figures(run)["latent"].axes
    means = vae.encode(data.test_x).mean.detach()
    assert axes.collections[0].get_offsets().tolist() == means[:, drawn].tolist()
    assert [axes.get_xlabel(), axes.get_ylabel()] == [f"$z_{{{j + 1}}}$" for j in drawn]
    assert axes.get_title() == title
