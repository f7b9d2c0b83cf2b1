"""Compiled steps of programs with globals, summed states, nested plates and masks are those of `pyro.infer.SVI`."""

import pyro
import pytest
import torch
from compiled_steps import assert_same, data, num_graphs, plain_guide, plain_model, run_both
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


VIEWS = {
    "unsqueeze_": lambda shift: shift.unsqueeze_(0),
    "squeeze_": lambda shift: shift.squeeze_(),
    "t_": lambda shift: shift.t_(),
    "transpose_": lambda shift: shift.transpose_(0, 1),
    "twice": lambda shift: shift.t_().unsqueeze_(-1),
}


@pytest.mark.parametrize("view", VIEWS)
def test_another_shape_given_in_place_to_a_detached_parameter_is_not_the_parameter_s(view):
    """A replay of `shift.detach().unsqueeze_(0)` gave the parameter itself one more dimension at every step."""

    start = data(1, 2)

    def model(x):
        shift = pyro.param("shift", start.clone())
        plain_model(x + shift + 0.1 * VIEWS[view](shift.detach()).flatten())

    eager, compiled, svi = run_both(lambda: (model, plain_guide, None), [(data(6, 2),)] * 3)
    assert_same(eager, compiled, svi)
    assert pyro.param("shift").shape == (1, 2)
