"""`CompiledSVI`: steps, shapes, seeds, and losses that are not finite."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_steps import (
    POINTS,
    CompiledExactly,
    EagerSVI,
    adam,
    data,
    num_graphs,
    plain_guide,
    plain_model,
    small_vae,
)
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, ReweightedWakeSleep
from pyrovae.training.compiled_svi import CompiledSVI

# Steps, shapes, seeds -------------------------------------------------------------------------------------------------


def test_two_models_in_one_process_do_not_meet():
    x = data(6, 3)
    alone = []
    for settings in ({}, {"hidden": (5,)}):
        vae = small_vae(**settings)
        svi = EagerSVI(vae.model, vae.guide, adam(vae.parameters()), ELBO())
        torch.manual_seed(5)
        alone.append([svi.step(x) for _ in range(3)])
    vaes = [small_vae(), small_vae(hidden=(5,))]
    svis = [CompiledExactly(vae.model, vae.guide, adam(vae.parameters())) for vae in vaes]
    together, states = [[], []], []
    torch.manual_seed(5)
    states = [torch.get_rng_state()] * 2
    for _ in range(3):
        for number, svi in enumerate(svis):
            torch.set_rng_state(states[number])
            together[number].append(svi.step(x))
            states[number] = torch.get_rng_state()
    assert together == alone
    assert [svi.reason for svi in svis] == [None, None]
    assert [num_graphs(svi) for svi in svis] == [1, 1]


def test_more_shapes_than_a_few_are_warned_of_once(monkeypatch):
    assert pv.training.compiled_loss.USUAL_GRAPHS == 8
    monkeypatch.setattr(pv.training.compiled_loss, "USUAL_GRAPHS", 2)
    svi = CompiledExactly(plain_model, plain_guide)
    svi.step(data(1, 2))
    svi.step(data(2, 2))
    with pytest.warns(match="this is number 3: pad batches") as caught:
        svi.step(data(3, 2))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    svi.step(data(4, 2))
    svi.step(data(3, 2))
    assert svi.reason is None


def test_the_loss_is_evaluated_as_eagerly_and_without_a_step():
    vae, x = small_vae(), data(6, 3)
    svi = CompiledExactly(vae.model, vae.guide, loss=IWAE(3))
    eager = EagerSVI(vae.model, vae.guide, None, IWAE(3))
    before = copy.deepcopy(vae.state_dict())
    results = []
    for one in (svi, eager):
        torch.manual_seed(5)
        results.append([one.evaluate_loss(batch) for batch in (x, x + 1, x[:2], x)])
    assert results[0] == results[1]
    assert num_graphs(svi) == 2
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    svi.step(x)
    assert not torch.equal(vae.encoder.output.weight, before["encoder.output.weight"])
    torch.manual_seed(5)
    ours = svi.evaluate_loss(x)
    torch.manual_seed(5)
    assert ours == eager.evaluate_loss(x)
    assert isinstance(ours, float)


def test_steps_draw_afresh_and_a_seed_fixes_them():
    x, runs = data(6, 3), []
    vae = small_vae()
    svi = CompiledExactly(vae.model, vae.guide, torch.optim.SGD(vae.parameters(), lr=0.0))
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append([svi.step(x) for _ in range(3)])
    assert len(set(runs[0])) == 3
    assert runs[1] == runs[0]
    assert not set(runs[2]) & set(runs[0])


@pytest.mark.parametrize("objective", [ELBO(3), ReweightedWakeSleep(3, sleep_weight=0.5)], ids=repr)
def test_after_every_step_the_random_numbers_stand_where_eager_ones_do(objective):
    x, states = data(6, 3), []
    for kind in (EagerSVI, CompiledExactly):
        vae = small_vae()
        svi = kind(vae.model, vae.guide, adam(vae.parameters()), objective)
        torch.manual_seed(5)
        states.append([])
        for _ in range(3):
            svi.step(x)
            states[-1].append(torch.get_rng_state())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*states, strict=True))


def test_the_running_statistics_of_a_batch_norm_move_once_a_step():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(2).double(), nn.Linear(2, 4).double()

        def guide(self, x):
            pyro.module("normalised", self)
            loc, log_scale = self.linear(self.norm(x)).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x, running = [data(6, 2, seed=seed) + seed for seed in range(4)], []
    for kind in (SVI, CompiledExactly):
        pyro.clear_param_store()
        torch.manual_seed(3)
        normalised = Normalised()
        svi = kind(plain_model, normalised.guide, pyro.optim.Adam({"lr": 0.01}), ELBO())
        torch.manual_seed(5)
        running.append([])
        for batch in x:
            loss = svi.step(batch)
            norm = normalised.norm
            moved = norm.running_mean.tolist(), norm.running_var.tolist(), norm.num_batches_tracked.item()
            running[-1].append((loss, *moved))
    assert svi.reason is None
    assert running[1] == running[0]


# Numbers that are not finite ------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_site_and_takes_no_step():
    vae, x = small_vae().float(), data(6, 3).float()
    svi = CompiledExactly(vae.model, vae.guide, adam(vae.parameters()))
    svi.step(x)
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(FloatingPointError, match=r'loss is not finite .* site "x" of the model'):
        svi.step(torch.full_like(x, 1e30))
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert svi.reason is None
    assert math.isfinite(svi.step(x))
    assert all(value.isfinite().all() for value in vae.state_dict().values())


def test_a_parameter_that_is_not_a_number_is_found_and_takes_no_step():
    (x,) = POINTS[0]
    svi = CompiledExactly(plain_model, plain_guide, pyro.optim.Adam({"lr": 0.01}))
    svi.step(x)
    with torch.no_grad():
        pyro.get_param_store()["scale"].unconstrained().fill_(math.nan)
    before = pyro.param("weight").detach().clone()
    with pytest.raises(FloatingPointError, match=r'loss is not finite .* at site "x" of the model'):
        svi.step(x)
    assert torch.equal(pyro.param("weight"), before)


def test_bad_data_at_the_first_step_are_what_svi_says_they_are_and_no_overflow():
    vae = pv.VAE((3,), latent_dim=2, hidden=(4,), likelihood=pv.Bernoulli())
    with pytest.raises(ValueError, match="is outside") as caught:
        CompiledSVI(vae.model, vae.guide, inductor=False).step(torch.full((4, 3), 2.0))
    assert not isinstance(caught.value, FloatingPointError)


@pytest.mark.parametrize("loss", ["elbo", 3.0, Trace_ELBO])
def test_a_loss_that_is_none_is_refused(loss):
    with pytest.raises(pv.InputError, match=r"loss must be an ELBO with loss_and_grads or a function, got "):
        CompiledSVI(plain_model, plain_guide, loss=loss)


def test_an_optimiser_that_is_none_is_refused():
    with pytest.raises(pv.InputError, match=r"optim must be an optimiser of .*, got float"):
        CompiledSVI(plain_model, plain_guide, 0.1)
