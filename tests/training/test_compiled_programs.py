"""Compiled steps of programs with globals, summed states, nested plates and masks are those of `pyro.infer.SVI`."""

import pyro
import pytest
import torch
from compiled_steps import assert_same, num_graphs, run_both
from exact import discrete_states, hierarchical, state_space, topics
from exact.hierarchical import Hierarchy

from pyrovae.objectives import ELBO, IWAE, DReG, ReweightedWakeSleep

POINTS = torch.linspace(-2, 3, 6, dtype=torch.float64)


def hierarchy():
    pair = Hierarchy()
    return pair.model, pair.guide, pair


class Wide(torch.nn.Module):
    """The smoothing guide with a parameter."""

    def __init__(self):
        super().__init__()
        self.widen = torch.nn.Parameter(torch.tensor(1.2, dtype=torch.float64))

    def masked(self, x, lengths):
        pyro.module("wide", self)
        state_space.SmoothingGuide(self.widen).masked(x, lengths)


def sequences():
    guide = Wide()
    return state_space.masked, guide.masked, guide


PROGRAMS = {
    "hierarchy": (hierarchy, (hierarchical.data(8),)),
    "mixture": (lambda: (discrete_states.mixture, discrete_states.no_latent, None), (POINTS,)),
    "chain": (lambda: (discrete_states.chain, discrete_states.no_latent, None), (POINTS.reshape(2, 3),)),
    "topics": (lambda: (topics.model, topics.guide, None), (topics.WORDS,)),
    "sequences": (sequences, state_space.sequences()),
}


@pytest.mark.parametrize(("name", "objective"), [
    ("hierarchy", DReG(4)),
    ("hierarchy", ReweightedWakeSleep(3)),
    ("hierarchy", IWAE(3, joint=True)),
    ("mixture", ELBO(1)),
    ("chain", ELBO(1)),
    ("topics", DReG(4)),
    ("sequences", DReG(4)),
], ids=str)  # fmt: skip
def test_compiled_steps_are_the_eager_ones(name, objective):
    make, args = PROGRAMS[name]
    eager, compiled, svi = run_both(make, [args] * 3, objective)
    assert_same(eager, compiled, svi)
    assert num_graphs(svi) == 1
