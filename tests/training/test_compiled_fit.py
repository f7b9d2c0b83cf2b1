"""`fit` with compiled steps gives the numbers of eager ones."""

import pytest
import torch
from compiled_steps import data, small_vae
from pyro.infer import Trace_ELBO

import pyrovae as pv
from pyrovae.training.compiled_loss import CompiledLoss


@pytest.fixture
def exactly(monkeypatch):
    """Lists the losses that `fit` compiles; they do without machine code."""
    made = []

    class Exact(CompiledLoss):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, inductor=False)
            made.append(self)

    monkeypatch.setattr(pv.training.gradients, "CompiledLoss", Exact)
    return made


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "linear"},
        {"objective": "iwae", "num_particles": 3, "max_grad_norm": 0.5},
        {"objective": "elbo_analytic_kl", "free_bits": 0.1, "beta_schedule": "cyclical", "schedule": "cosine"},
        {"objective": "dreg", "num_particles": 3, "validation": data(5, 3, seed=9), "patience": 1},
    ],
    ids=lambda settings: settings.get("objective", "elbo"),
)
def test_fit_gives_the_same_numbers_compiled_and_not(settings, exactly):
    x, results = data(20, 3), []
    for compile in (False, True):
        vae = small_vae()
        history = pv.fit(vae, x, epochs=4, batch_size=8, lr=0.01, seed=1, compile=compile, **settings)
        results.append((history.loss, history.elbo, vae.state_dict()))
    (compiled,) = exactly
    assert compiled.reason is None
    assert len(compiled._traced) == 2
    assert results[1][:2] == results[0][:2]
    assert all(torch.equal(value, results[0][2][name]) for name, value in results[1][2].items())


def test_fit_says_at_which_step_and_site_it_diverged(exactly):
    x = data(12, 3).float()
    x[8:] = 1e30
    batches = [(x[:4],), (x[4:8],), (x[8:],)]
    vae = small_vae().float()
    before = []
    with pytest.raises(FloatingPointError, match=r'not finite at epoch 1, step 3 .*site "x" of the model'):
        pv.fit(vae, batches, epochs=2, seed=1, compile=True)
    assert len(exactly) == 1
    twin = small_vae().float()
    pv.fit(twin, batches[:2], epochs=1, seed=1, compile=True)
    before = twin.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("compile", ["yes", None, 2, "True"])
def test_fit_and_log_marginal_take_true_false_and_auto_alone(compile):
    vae, x = small_vae(), data(6, 3)
    message = f"compile must be true, false or auto, got {compile!r}"
    with pytest.raises(pv.InputError, match=message):
        pv.fit(vae, x, epochs=1, compile=compile)
    with pytest.raises(pv.InputError, match=message):
        pv.log_marginal(vae.model, vae.guide, x, compile=compile)


def test_fit_compiles_no_objective_of_pyro():
    with pytest.raises(pv.InputError, match="compile needs an objective of pyrovae, got Trace_ELBO"):
        pv.fit(small_vae(), data(6, 3), epochs=1, objective=Trace_ELBO(), compile=True)


def test_fit_compiles_by_itself_where_there_are_many_steps(exactly, monkeypatch):
    vae, x = small_vae(), data(10, 3)
    monkeypatch.setattr(pv.training.gradients, "COMPILE_STEPS", 9)
    pv.fit(vae, x, epochs=4, batch_size=5)
    assert not exactly
    pv.fit(vae, x, epochs=5, batch_size=5, objective=Trace_ELBO())
    assert not exactly
    pv.fit(vae, x, epochs=5, batch_size=5, compile=False)
    assert not exactly
    pv.fit(vae, x, epochs=5, batch_size=5)
    assert len(exactly) == 1
