"""The seconds and bytes of a step agree with what is known of them, and only like is compared with like."""

from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import small_vae
from pyro.infer import Trace_ELBO
from torch import nn

import pyrovae as pv
from pyrovae.lab import costs
from pyrovae.lab.comparing import compare
from pyrovae.lab.comparison_report import draw_comparison
from pyrovae.lab.costs import saved_bytes
from pyrovae.objectives import IWAE

SETTINGS = {"num_particles": [2], "repeats": 4, "progress": False}


class Wide(nn.Module):
    """Has weights of 4 MB for data of a few bytes."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(1000, 1000), nn.Linear(1000, 3)
        self.outer.weight.requires_grad_(False)

    def model(self, x):
        pyro.module("wide", self.eval())
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1000), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.outer(self.inner(z).tanh()), 1.0).to_event(1), obs=x)

    def guide(self, x):
        loc = pyro.param("loc", torch.zeros(1000))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc.expand(len(x), -1), 1.0).to_event(1))


def test_the_memory_counts_activations_and_not_weights():
    wide, x = Wide(), torch.randn(2, 3)
    known = pv.Estimate(torch.zeros(2), torch.zeros(2))
    (row,) = compare(wide.model, wide.guide, x, objectives=["elbo"], compile=False, log_px=known, **SETTINGS).rows
    activations = 4 * 2 * 2 * 1000  # bytes of 1000 numbers for two particles and two data
    assert 2 * activations < row.saved_bytes < 20 * activations < 4e6


def test_particles_that_run_one_by_one_need_the_memory_of_one():
    vae, x = small_vae(hidden=(400,)), torch.randn(50, 2)
    one, many = (saved_bytes(vae.model, vae.guide, (x,), Trace_ELBO(number), []) for number in (1, 32))
    assert many == pytest.approx(one, rel=0.1)
    together = saved_bytes(vae.model, vae.guide, (x,), Trace_ELBO(32, vectorize_particles=True), [])
    assert together > 10 * one


def chunked(number):
    return IWAE(number, chunk_size=1)


def unchunked(number):
    return IWAE(number, chunk_size=number)


def test_the_memory_of_chunks_that_are_run_again_is_unknown():
    """Autograd saves none of them; their memory was once shown as 0."""
    vae = small_vae()
    settings = {"objectives": [chunked, unchunked], "compile": False, **SETTINGS}
    found = compare(vae.model, vae.guide, torch.randn(6, 2), **settings)
    assert [row["saved_bytes"] is None for row in found.to_dict()] == [True, False]
    assert found["unchunked", 2].saved_bytes > 0
    lines = [[cell.strip() for cell in line.split("|")] for line in found.to_markdown().splitlines()]
    assert dict(zip(lines[0], lines[2], strict=True))["MB"] == ""


def test_variance_times_seconds_uses_compiled_steps_only_if_all_are_compiled(monkeypatch):
    monkeypatch.setattr(costs, "CompiledLoss", partial(costs.CompiledLoss, inductor=False))  # replayed: takes less long
    vae, x = small_vae(), torch.randn(6, 2)
    found = compare(vae.model, vae.guide, x, objectives=["iwae"], **SETTINGS)
    assert found["iwae", 2].variance_seconds == found["iwae", 2].guide.variance * found["iwae", 2].compiled_seconds
    with pytest.warns(UserWarning, match="steps run eagerly"):
        found = compare(vae.model, vae.guide, x, objectives=["iwae", chunked], **SETTINGS)
    assert [row.compiled_seconds is None for row in found.rows] == [False, True]
    for row in found.rows:
        assert row.variance_seconds == row.guide.variance * row.seconds
    (axes, *_) = draw_comparison(found)["cost"].axes
    assert {text.xy[0] for text in axes.texts} == {row.seconds for row in found.rows}
    assert replace(found.rows[0], guide=None).variance_seconds is None
