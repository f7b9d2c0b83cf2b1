"""Programs that set themselves up in their first run, as autoguides do, are compiled from the second step on."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import CompiledExactly, assert_same, data, num_graphs, run_both
from pyro.infer import autoguide as auto

from pyrovae.objectives import ELBO, IWAE, Renyi, ScoreFunction, StickingTheLanding

GUIDES = [auto.AutoNormal, auto.AutoMultivariateNormal, auto.AutoLowRankMultivariateNormal, auto.AutoIAFNormal]


def of_globals(x):
    """With a mean and a scale that all data share."""
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc[..., None] + x.new_zeros(2), scale[..., None]).to_event(1), obs=x)


def of_locals(x):
    """With a latent of each datum."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z[..., None], x.new_ones(2)).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("model", "make", "objective"),
    [
        *((of_globals, make, IWAE(3, joint=True)) for make in GUIDES),
        *((of_locals, make, ELBO()) for make in GUIDES),
        (of_globals, auto.AutoNormal, Renyi(3, alpha=0.5, joint=True)),
        (of_globals, auto.AutoDelta, ELBO(2)),
        (of_locals, auto.AutoNormal, IWAE(3)),
        (of_locals, auto.AutoNormal, ScoreFunction(3)),
        (of_locals, auto.AutoNormal, StickingTheLanding()),
    ],
)
def test_under_a_new_autoguide_the_steps_are_svi_s_and_compiled(model, make, objective):
    """They ran eagerly for good: the guide draws where it starts, in its first run alone."""
    eager, compiled, svi = run_both(lambda: (model, make(model), None), 3 * [(data(5, 2),)], objective)
    assert_same(eager, compiled, svi)
    assert num_graphs(svi) == 1


def test_an_evaluation_may_come_first():
    torch.manual_seed(0)
    svi = CompiledExactly(of_locals, auto.AutoNormal(of_locals), pyro.optim.Adam({"lr": 0.1}), ELBO())
    assert svi.evaluate_loss(data(5, 2)) > 0
    svi.step(data(5, 2))
    assert (svi.reason, num_graphs(svi)) == (None, 1)


class Lazy:
    """A guide of the user's that finds out its width, and draws, when it is first called."""

    def __init__(self):
        self.start = None

    def __call__(self, x):
        if self.start is None:
            self.start = 0.1 * torch.randn(x.shape[-1], dtype=x.dtype)
        weight = pyro.param("weight", lambda: self.start)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, x.new_ones(())))


def test_a_guide_of_the_user_may_set_itself_up():
    eager, compiled, svi = run_both(lambda: (of_locals, Lazy(), None), 3 * [(data(5, 2),)], IWAE(2))
    assert_same(eager, compiled, svi)


def drawn_start(x):
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(x.shape[-1], dtype=x.dtype))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ weight, x.new_ones(())))


@pytest.mark.parametrize("objective", [ELBO(), IWAE(2)])
def test_a_parameter_may_start_from_what_is_drawn_in_the_first_run(objective):
    eager, compiled, svi = run_both(lambda: (of_locals, drawn_start, None), 3 * [(data(5, 2),)], objective)
    assert_same(eager, compiled, svi)


class Counting(Lazy):
    def __call__(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        super().__call__(x)


def test_a_program_that_changes_in_every_run_is_said_to():
    with pytest.warns(match="it changes calls as it runs"):
        eager, compiled, svi = run_both(lambda: (of_locals, Counting(), None), 3 * [(data(5, 2),)], IWAE(2))
    assert_same(eager, compiled, svi, "it changes calls as it runs")
