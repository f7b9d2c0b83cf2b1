"""`fit` with compiled steps gives the numbers of eager ones."""

import pyro
import pytest
import torch
from any_losses import Pair, States, X
from compiled_steps import data, small_vae
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

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
    # A last, smaller batch is traced by itself.
    x, results = data(20 if settings.get("objective") in (None, "iwae") else 16, 3), []
    for compile in (False, True):
        vae = small_vae()
        history = pv.fit(vae, x, epochs=3, batch_size=8, lr=0.01, seed=1, compile=compile, **settings)
        results.append((history.loss, history.elbo, vae.state_dict()))
    (compiled,) = exactly
    assert compiled.reason is None
    assert len(compiled._traced) == len({8, len(x) % 8 or 8})
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
    pv.fit(twin, batches[:2], epochs=1, seed=1, compile=False)
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


@pytest.mark.parametrize(
    "objective", [Trace_ELBO(), Trace_ELBO(num_particles=3, vectorize_particles=True), TraceMeanField_ELBO()]
)
def test_fit_gives_the_same_numbers_compiled_and_not_under_a_loss_of_pyros(objective, exactly):
    x, results = data(16, 3), []
    for compile in (False, True):
        vae = small_vae()
        history = pv.fit(vae, x, epochs=2, batch_size=8, lr=0.01, seed=1, compile=compile, objective=objective)
        results.append((history.loss, vae.state_dict()))
    (compiled,) = exactly
    assert compiled.reason is None
    assert results[1][0] == results[0][0]
    assert all(torch.equal(value, results[0][1][name]) for name, value in results[1][1].items())


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: States(in_guide=True), TraceEnum_ELBO),
        (Pair, lambda: Trace_ELBO(num_particles=2, vectorize_particles=True)),
    ],
    ids=["TraceEnum", "particles at once"],
)
def test_a_training_whose_loss_sets_itself_up_is_resumed_to_the_bit(make, loss, compile, exactly, tmp_path):
    """Both losses run the pair once to find how deep its plates are nested, in each part of the training."""

    class Interrupted(Exception):
        pass

    def stop(record):
        if record["epoch"] == 2:
            raise Interrupted

    def train(folder, on_epoch=None):
        pyro.clear_param_store()
        torch.manual_seed(3)
        pair = make()
        kept = pv.Checkpoints(tmp_path / folder, epochs=1)
        settings = {"checkpoints": kept, "on_epoch": on_epoch, "objective": loss(), "compile": compile}
        history = pv.fit(pair, X, epochs=3, batch_size=3, seed=1, progress=False, **settings)
        return history.loss, pair.state_dict()

    whole, parameters = train("whole")
    with pytest.raises(Interrupted):
        train("parts", stop)
    resumed, others = train("parts")
    assert [compiled.reason for compiled in exactly] == [None] * 3 * compile
    assert resumed == whole
    assert all(torch.equal(value, parameters[name]) for name, value in others.items())


def test_fit_compiles_by_itself_where_there_are_many_steps(exactly, monkeypatch):
    vae, x = small_vae(), data(10, 3)
    monkeypatch.setattr(pv.training.gradients, "COMPILE_STEPS", 3)
    pv.fit(vae, x, epochs=1, batch_size=5)
    assert not exactly
    pv.fit(vae, x, epochs=2, batch_size=5, compile=False)
    assert not exactly
    pv.fit(vae, x, epochs=2, batch_size=5)
    assert len(exactly) == 1
    pv.fit(vae, x, epochs=2, batch_size=5, objective=Trace_ELBO())
    assert len(exactly) == 2
