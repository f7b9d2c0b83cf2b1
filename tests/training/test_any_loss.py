"""`CompiledSVI` takes any loss that `pyro.infer.SVI` takes, and gives the same numbers to the bit."""

import pytest
import torch
from any_losses import (
    X,
    assert_is_svi,
    bits,
    mmd,
    reals,
    samples_at_once,
    simple_elbo,
    states,
    states_in_guide,
    trained,
)
from compiled_steps import CompiledExactly
from programs_of_users import PROGRAMS
from pyro import infer
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO

from pyrovae import CompiledSVI


class Doubled(Trace_ELBO):
    def loss_and_grads(self, model, guide, *args, **kwargs):
        return 2 * super().loss_and_grads(model, guide, *args, **kwargs)


class Tempered(Trace_ELBO):
    """As in Pyro's tutorial on losses of one's own."""

    def loss(self, model, guide, *args, **kwargs):
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def differentiable_loss(self, model, guide, *args, **kwargs):
        model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
        return guide_trace.log_prob_sum() * 0.5 - model_trace.log_prob_sum()

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


LOSSES = {
    "Trace": (reals, Trace_ELBO),
    "Trace, 2 particles": (reals, lambda: Trace_ELBO(num_particles=2)),
    "Trace, 3 particles at once": (reals, lambda: Trace_ELBO(num_particles=3, vectorize_particles=True)),
    "Trace, bits": (bits, Trace_ELBO),
    "Trace, bits, 3 particles at once": (bits, lambda: Trace_ELBO(num_particles=3, vectorize_particles=True)),
    "TraceMeanField": (reals, infer.TraceMeanField_ELBO),
    "TraceEnum": (states, lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "TraceEnum, nesting unknown": (states, TraceEnum_ELBO),
    "TraceEnum, in the guide": (states_in_guide, TraceEnum_ELBO),
    "TraceGraph": (reals, TraceGraph_ELBO),
    "TraceGraph, bits": (bits, TraceGraph_ELBO),
    "Renyi": (reals, lambda: infer.RenyiELBO(alpha=0.5, num_particles=2)),
    "Renyi, particles at once": (bits, lambda: infer.RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True)),
    "TraceTMC": (samples_at_once, lambda: infer.TraceTMC_ELBO(max_plate_nesting=1)),
    "ReweightedWakeSleep": (reals, lambda: infer.ReweightedWakeSleep(num_particles=2, insomnia=0.5)),
    "Trace_MMD": (reals, mmd),
    "EnergyDistance": (reals, lambda: infer.EnergyDistance(num_particles=2)),
    "a subclass": (reals, Doubled),
    "a subclass with a loss of its own": (reals, Tempered),
    "a function": (reals, lambda: simple_elbo),
}
# An evaluation is another graph, and asks a loss for its `loss`.
EVALUATED = {
    "Trace, 3 particles at once", "TraceEnum, nesting unknown", "Renyi", "Trace_MMD",
    "a subclass with a loss of its own", "a function",
}  # fmt: skip
OF_JIT = {
    infer.JitTrace_ELBO: (reals, Trace_ELBO),
    infer.JitTraceEnum_ELBO: (states, TraceEnum_ELBO),
    infer.JitTraceMeanField_ELBO: (reals, infer.TraceMeanField_ELBO),
    infer.JitTraceGraph_ELBO: (bits, TraceGraph_ELBO),
}
KINDS = [
    "VAE with batch normalisation", "VAE with a flow in the guide", "VAE that draws its own minibatch",
    "VAE with a Bayesian decoder", "M2, labels enumerated in the guide", "attend, infer, repeat",
    "hidden Markov model", "LDA", "gamma exponential family", "regression, AutoNormal",
    "regression, AutoMultivariateNormal", "regression, AutoNormalizingFlow", "regression of PyroModules",
    "neural process", "counts in a closure, no argument", "groups in a list, sequential plate",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*found no sample sites configured")
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_pyros_or_of_the_user_gives_the_numbers_of_svi(name):
    assert_is_svi(*LOSSES[name], evaluations=2 if name in EVALUATED else 0)


@pytest.mark.parametrize("jit", OF_JIT)
def test_a_loss_that_compiles_itself_runs_as_the_one_it_was_made_from(jit):
    make, stock = OF_JIT[jit]
    assert_is_svi(make, jit, stock)


@pytest.mark.parametrize("name", KINDS)
def test_a_program_of_a_user_trains_with_its_own_loss(name):
    assert_is_svi(PROGRAMS[name], num_steps=2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deep Markov model, ragged", "the lengths in a packed sequence decide what is done"),
        ("ProdLDA", "it looks at the value of a tensor (topics.py, line "),
    ],
)
def test_what_runs_eagerly_says_so_once_and_names_the_line(name, reason):
    stocks = trained(SVI, PROGRAMS[name], None, evaluations=1)
    with pytest.warns(match="steps run eagerly") as caught:
        ours = trained(CompiledExactly, PROGRAMS[name], None, evaluations=1)
    assert len(caught) == 1
    assert ours[2].reason.startswith(reason)
    assert ours[0] == stocks[0]
    assert all(torch.equal(value, stocks[1][name]) for name, value in ours[1].items())


def renyi_at_once():
    return infer.RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=True)


@pytest.mark.parametrize(
    ("make", "loss"),
    [(reals, renyi_at_once), LOSSES["TraceEnum, in the guide"]],
    ids=["Renyi, particles at once", "TraceEnum, in the guide"],
)
def test_in_machine_code_they_agree_to_float64(make, loss, float64):
    stocks, parameters, _ = trained(SVI, make, loss(), args=(X.double(),))
    ours, others, svi = trained(CompiledSVI, make, loss(), args=(X.double(),))
    assert svi.reason is None
    assert ours == pytest.approx(stocks, rel=1e-10)
    torch.testing.assert_close(others, parameters, rtol=1e-10, atol=1e-12)
