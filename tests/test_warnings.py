"""A warning points at the line of the user's own code that led to it, through whichever door that line goes."""

import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import ring, small_vae
from pyro.infer import SVI
from torch import nn

import pyrovae as pv
from pyrovae.common import errors

X = torch.linspace(-1, 1, 12)[:, None]


class Half(nn.Module):
    """A guide that never draws the lower half of what the prior gives: every training bound warns of it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(self, x):
        pyro.module("half", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.HalfNormal(self.scale.exp().expand(len(x))))


class OneByOne(Half):
    """A pair whose programs take no dimension of particles: every estimate that wants several warns of it."""

    def guide(self, x):
        pyro.module("one", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x[:, 0], self.scale.exp()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            assert z.dim() == 1, "z must be a vector"
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def adam():
    return pyro.optim.Adam({"lr": 1e-3})


ELBO, IWAE = pv.objectives.ELBO(), pv.objectives.IWAE(4)
FEW = {"num_particles": (2,), "repeats": 4, "compile": False, "log_px": pv.Estimate(X[:, 0], X[:, 0].abs())}
SHORT = {"epochs": 1, "held_out": X, "num_samples": 30, "compile": False}
# Each is given a pair of its own, because a warning is given once for a pair. A loop of tqdm's lies in some of them.
DOORS = {
    "loss": (Half, lambda pair: ELBO.loss(pair.model, pair.guide, X)),
    "differentiable_loss": (Half, lambda pair: ELBO.differentiable_loss(pair.model, pair.guide, X)),
    "loss_and_grads": (Half, lambda pair: ELBO.loss_and_grads(pair.model, pair.guide, X)),
    "SVI": (Half, lambda pair: SVI(pair.model, pair.guide, adam(), ELBO).step(X)),
    "CompiledSVI": (Half, lambda pair: pv.CompiledSVI(pair.model, pair.guide, adam(), ELBO, inductor=False).step(X)),
    "fit": (Half, lambda pair: pv.fit(pair, X, epochs=1, progress=False, compile=False)),
    "fit with progress": (Half, lambda pair: pv.fit(pair, [X], epochs=1, progress=True, compile=False)),
    "compare": (OneByOne, lambda pair: pv.compare(pair.model, pair.guide, X, objectives=["iwae"], **FEW)),
    "race": (OneByOne, lambda pair: pv.race(type(pair), X, ["iwae(num_particles=2)"], (0,), **SHORT)),
    "IWAE": (OneByOne, lambda pair: IWAE.loss(pair.model, pair.guide, X)),
    "log_marginal": (OneByOne, lambda pair: pv.log_marginal(pair.model, pair.guide, X, num_samples=30)),
    "log_marginal of a pair": (OneByOne, lambda pair: pv.log_marginal(pair, X, num_samples=30)),
    "importance_bound": (OneByOne, lambda pair: pv.importance_bound(pair.model, pair.guide, X, num_particles=3)),
    "log_weights": (OneByOne, lambda pair: pv.log_weights(pair.model, pair.guide, X, num_particles=3)),
    "evaluate": (OneByOne, lambda pair: pv.evaluate(pair.model, pair.guide, X, methods=("iwae_3",))),
}


@pytest.mark.parametrize("name", DOORS)
def test_a_warning_points_at_the_users_line(name):
    make, call = DOORS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(make())
    ours = [one for one in caught if issubclass(one.category, UserWarning)]
    assert ours
    for one in ours:
        assert (one.filename, one.lineno) == (__file__, call.__code__.co_firstlineno), str(one.message)


def test_a_file_beside_the_package_whose_name_begins_as_its_own_is_the_users(tmp_path, monkeypatch):
    """/home/me/pyrovae_study.py is not in /home/me/pyrovae/."""
    package = Path(errors.__file__).parents[1]
    code = compile("from pyrovae.common import warn\nwarn('here')", f"{package}_study.py", "exec")
    with pytest.warns(UserWarning, match="here") as caught:
        exec(code, {"__name__": "study"})
    assert (caught[0].filename, caught[0].lineno) == (f"{package}_study.py", 2)


def test_other_warnings_of_trained_things_point_at_the_users_line(tmp_path):
    vae = small_vae()
    pv.fit(vae, ring(num_train=20), epochs=1, progress=False, checkpoints=pv.Checkpoints(tmp_path))
    with pytest.warns(UserWarning, match="nothing was trained") as caught:
        pv.fit(vae, ring(num_train=20), epochs=1, progress=False, checkpoints=pv.Checkpoints(tmp_path))
    assert (caught[0].filename, caught[0].lineno) == (__file__, sys._getframe().f_lineno - 1)
