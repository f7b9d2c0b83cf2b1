"""Data that no density takes are refused in one line, which names site, value and remedy, by every function."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import CompiledExactly
from helpers import refusal, small_vae
from pyro.infer import SVI, Trace_ELBO

import pyrovae as pv
from pyrovae.common import settings_as_flags

BITS = torch.tensor([0, 1, 1, 0])
HOLES = torch.tensor([0.3, torch.nan, 1.0, 0.0])


def pair_of(likelihood):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc.expand(len(x)), 1.0))

    return SimpleNamespace(model=model, guide=guide)


def compiled(loss):
    return lambda m, g, x: CompiledExactly(m, g, pyro.optim.Adam({"lr": 0.1}), loss).step(x)


ITERATIVE = {"compile": False, "progress": False}
FUNCTIONS = {
    "log_marginal": lambda m, g, x: pv.log_marginal(m, g, x, num_samples=50),
    "importance_bound": lambda m, g, x: pv.importance_bound(m, g, x, num_particles=2),
    "annealed": lambda m, g, x: pv.annealed_log_marginal(m, g, x, num_distributions=2, num_chains=2),
    "quadrature": lambda m, g, x: pv.quadrature_log_marginal(m, x),
    "posterior": lambda m, g, x: pv.posterior(m, g, x, num_samples=50),
    "evaluate": lambda m, g, x: pv.evaluate(m, g, x, methods=("elbo",)),
    "compare": lambda m, g, x: pv.compare(m, g, x, objectives=["elbo"], num_particles=[1], repeats=4, **ITERATIVE),
    "fit": lambda m, g, x: pv.fit(SimpleNamespace(model=m, guide=g), x, epochs=1, progress=False),
}
OBJECTIVES = {
    "loss": lambda m, g, x: pv.objectives.IWAE(4).loss(m, g, x),
    "loss_and_grads": lambda m, g, x: pv.objectives.ELBO().loss_and_grads(m, g, x),
    "svi": lambda m, g, x: SVI(m, g, pyro.optim.Adam({"lr": 0.1}), pv.objectives.ELBO()).step(x),
    "analytic": lambda m, g, x: pv.objectives.AnalyticKLELBO().loss(m, g, x),
    "compiled": compiled(pv.objectives.ELBO()),
    "compiled, Pyro's": compiled(Trace_ELBO()),
}
WEIGHTS = {"log_weights": lambda m, g, x: pv.log_weights(m, g, x, num_particles=3)}


@pytest.mark.parametrize("name", FUNCTIONS | OBJECTIVES | WEIGHTS)
def test_whole_numbers_where_a_density_needs_real_ones_are_named(name):
    """They were a traceback: "result type Float can't be cast to the desired output type Long"."""
    pyro.clear_param_store()
    pair = pair_of(lambda z: dist.Bernoulli(logits=z))
    call = (FUNCTIONS | OBJECTIVES | WEIGHTS)[name]
    assert refusal(lambda: call(pair.model, pair.guide, BITS)) == 'site "x": data are int64; say x.float()'


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_the_dtype_that_is_advised_is_taken(dtype):
    pair = pair_of(lambda z: dist.Bernoulli(logits=z.double()))
    said = str(dtype).removeprefix("torch.")
    message = refusal(lambda: pv.log_marginal(pair.model, pair.guide, BITS.to(dtype), num_samples=50))
    assert message == f'site "x": data are {said}; say x.float()'
    assert pv.log_marginal(pair.model, pair.guide, BITS.float(), num_samples=50).log_px.isfinite().all()


def test_counts_may_stay_whole_numbers_and_other_errors_stay_what_they_are():
    pair = pair_of(lambda z: dist.Poisson(z.exp()))
    assert pv.log_marginal(pair.model, pair.guide, BITS, num_samples=50).log_px.isfinite().all()

    class Broken(dist.Normal):
        def log_prob(self, value):
            raise RuntimeError("of its own")

    broken = pair_of(lambda z: Broken(z, 1.0))
    with pytest.raises(RuntimeError, match="of its own"):
        pv.objectives.ELBO().loss(broken.model, broken.guide, BITS.float())


@pytest.mark.parametrize("name", FUNCTIONS | OBJECTIVES)
def test_nan_is_refused_at_the_first_batch_and_the_hint_is_for_a_program(name):
    """Objectives and compiled steps took it, and the others spoke of a VAE, which was none."""
    pyro.clear_param_store()
    pair = pair_of(lambda z: dist.Normal(z, 1.0).mask(torch.tensor(True)))
    call = (FUNCTIONS | OBJECTIVES)[name]
    message = refusal(lambda: call(pair.model, pair.guide, HOLES))
    hint = 'if it is a missing cell, mask it in the model and say model.missing = "mask"'
    assert message.endswith(f"x must be finite, got nan at index (1,); {hint}")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_program_that_knows_what_to_do_with_nan_and_infinity_is_taken(name):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            likelihood = dist.Normal(z, 1.0).mask(x.isfinite())
            pyro.sample("x", likelihood, obs=x.nan_to_num(0.0, 0.0, 0.0))

    pyro.clear_param_store()
    guide = pair_of(lambda z: dist.Normal(z, 1.0)).guide
    OBJECTIVES[name](model, guide, torch.tensor([0.3, torch.nan, torch.inf, -torch.inf]))


def test_the_hint_on_nan_is_what_the_user_has():
    vae, x = small_vae((2,)), torch.tensor([[0.0, torch.nan]])
    start = "x must be finite, got nan at index (0, 1)"
    call = lambda model, guide: refusal(lambda: pv.log_marginal(model, guide, x, num_samples=9))  # noqa: E731
    assert call(vae.model, vae.guide) == f"{start}; if it is a missing cell, the VAE needs missing='mask'"
    with settings_as_flags():
        assert call(vae.model, vae.guide) == f"{start}; if it is a missing cell, the VAE needs --missing mask"
    linear = pv.LinearGaussianVAE(torch.ones(2, 1), torch.zeros(2), 0.5, torch.zeros(1))
    assert call(linear.model, linear.guide) == start  # it cannot take any
    own = SimpleNamespace(**vars(pair_of(lambda z: dist.Normal(z, 1.0))))

    class Own:
        def model(self, x):
            own.model(x)

        def guide(self, x):
            own.guide(x)

    assert call(Own().model, Own().guide).endswith('say self.missing = "mask"')
