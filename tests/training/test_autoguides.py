"""`fit` takes a pair of a function, or a `PyroModule`, and one of Pyro's autoguides, whose parameters come late."""

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import conjugate
from helpers import suite_seed
from pyro.infer import SVI
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyrovae as pv
from pyrovae.objectives import ELBO

pytestmark = pytest.mark.usefixtures("float64")
X, Y = conjugate.measurements(30)


class Both(NamedTuple):
    model: Any
    guide: Any


class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1, bias=False)
        self.linear.weight = PyroSample(dist.Normal(0.0, conjugate.WEIGHT_SD).expand([1, 3]).to_event(2))

    def forward(self, x, y):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, conjugate.NOISE_SD), obs=y)


def in_two_parts(model):
    guide = AutoGuideList(model)
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["w"])))
    return guide


MODELS = {"function": lambda: conjugate.regression, "module": Regression}
GUIDES = [
    AutoNormal,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoLowRankMultivariateNormal,
    AutoDelta,
    in_two_parts,
]
CASES = [("function", guide) for guide in GUIDES] + [("module", guide) for guide in GUIDES[:-1]]


def pair_of(model: str, guide) -> Both:
    pyro.clear_param_store()
    program = MODELS[model]()
    return Both(program, guide(program))


@pytest.mark.filterwarnings("ignore:particles run one after another")
@pytest.mark.parametrize(("model", "guide"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_training_is_that_of_svi_with_the_gradient_per_datum(model, guide):
    """All data in a batch; an optimiser whose steps go with the gradient, so that its factor shows."""
    found = []
    for way in ("fit", "svi"):
        pair = pair_of(model, guide)
        torch.manual_seed(suite_seed())
        pair.guide(X, Y)  # draws where the guide starts from
        if way == "fit":
            settings = {"optimizer": torch.optim.SGD, "lr": 0.03, "seed": suite_seed(1), "progress": False}
            pv.fit(pair, [(X, Y)], epochs=5, **settings)
        else:
            torch.manual_seed(suite_seed(1))
            svi = SVI(*pair, pyro.optim.SGD({"lr": 0.03 / len(X)}), ELBO())
            for _ in range(5):
                svi.step(X, Y)
        found.append({name: value.detach().clone() for name, value in pyro.get_param_store().items()})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_a_guide_that_has_not_run_gets_its_parameters_at_the_first_batch(model):
    pair = pair_of(model, AutoNormal)
    batches = list(zip(X.split(10), Y.split(10), strict=True))
    history = pv.fit(pair, batches, epochs=15, lr=0.15, schedule="cosine", seed=suite_seed(), validation=[(X, Y)])
    assert history.loss[-1] < history.loss[0] - 1
    mean, covariance = conjugate.regression_posterior(X, Y)
    median = next(iter(pair.guide.median().values())).flatten()
    assert (median - mean).abs().max() < 2 * covariance.diagonal().max().sqrt()


def test_a_training_is_resumed_to_the_bit(tmp_path):
    """Four epochs at once, and in two parts with new objects in between."""

    class Interrupted(Exception):
        pass

    def stop(record):
        if record["epoch"] == 3:
            raise Interrupted

    def train(folder, on_epoch=None):
        kept = pv.Checkpoints(tmp_path / folder, epochs=1)
        batches = list(zip(X.split(10), Y.split(10), strict=True))
        settings = {"checkpoints": kept, "seed": suite_seed(), "on_epoch": on_epoch, "progress": False}
        return pv.fit(pair_of("module", AutoDiagonalNormal), batches, epochs=4, **settings)

    whole, parameters = train("whole"), dict(pyro.get_param_store().items())
    with pytest.raises(Interrupted):
        train("parts", stop)
    assert train("parts").loss == whole.loss
    assert all(torch.equal(value, parameters[name]) for name, value in pyro.get_param_store().items())


def test_a_compiled_training_under_an_autoguide_is_the_eager_one(without_machine_code):
    def train(compile):
        pyro.clear_param_store()
        history = pv.fit(pair_of("function", AutoNormal), [(X, Y)], epochs=8, compile=compile, seed=suite_seed())
        return history.loss, [value.detach().clone() for value in pyro.get_param_store().values()]

    (eager, parameters), (compiled, others) = train(False), train(True)
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=0)
    torch.testing.assert_close(others, parameters, rtol=1e-10, atol=1e-12)
