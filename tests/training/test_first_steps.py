"""What a first compiled step refuses or warns of: no parameter, one that nothing trains, a pair that is none."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from broken_pairs import PAIRS, ROWS, guide, model, nothing, other_latents
from compiled_steps import CompiledExactly, adam, data, plain_guide, plain_model, small_vae
from helpers import refusal
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal

import pyrovae as pv

LOSSES = [Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, partial(RenyiELBO, num_particles=2)]
PYRO_S_AND_OURS = [*LOSSES, pv.objectives.ELBO]

pytestmark = pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites configured")


def with_parameter(program):
    def registering(x):
        loc = pyro.param("loc", torch.zeros(()))
        program(x + loc)

    return registering


def first_step(pair, loss, *args):
    torch.manual_seed(0)
    return CompiledExactly(with_parameter(pair[0]), pair[1], pyro.optim.Adam({"lr": 0.1}), loss()).step(*args)


# Parameters that nothing trains -----------------------------------------------------------------------------------


def test_parameters_that_the_optimiser_does_not_hold_are_named_once():
    vae, x = small_vae(), data(6, 3)
    svi = CompiledExactly(vae.model, vae.guide, adam(vae.decoder.parameters()))
    with pytest.warns(match=r"optim does not hold .*encoder\..+ and \d+ more: unless another optimiser does") as caught:
        svi.step(x)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    svi.step(x)
    svi.step(x[:2])


def test_one_parameter_of_a_store_is_named():
    torch.manual_seed(0)
    Trace_ELBO().loss(plain_model, plain_guide, data(6, 2))
    store = dict(pyro.get_param_store().named_parameters())
    svi = CompiledExactly(plain_model, plain_guide, adam([p for name, p in store.items() if name != "weight"]))
    with pytest.warns(match="optim does not hold weight: unless another optimiser does"):
        svi.step(data(6, 2))


def test_a_side_that_is_frozen_on_purpose_is_not_warned_of():
    vae, x = small_vae(), data(6, 3)
    before = [p.detach().clone() for p in vae.encoder.parameters()]
    vae.encoder.requires_grad_(False)
    rest = [p for p in vae.parameters() if p.requires_grad]
    CompiledExactly(vae.model, vae.guide, adam(rest)).step(x)
    assert all(torch.equal(p, was) for p, was in zip(vae.encoder.parameters(), before, strict=True))


@pytest.mark.parametrize("loss", PYRO_S_AND_OURS)
def test_a_pair_without_a_parameter_is_refused_as_by_fit(loss):
    svi = CompiledExactly(model, guide, pyro.optim.Adam({"lr": 0.1}), loss())
    said = refusal(svi.step, ROWS)
    assert said == "model and guide must register a parameter (pyro.module or pyro.param), found none"
    assert said == refusal(pv.fit, PAIRS["no parameter"], ROWS, epochs=1, progress=False)


# Pairs that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", PYRO_S_AND_OURS)
def test_a_model_and_a_guide_that_are_swapped_are_told_so(loss):
    said = refusal(first_step, (guide, model), loss, ROWS)
    assert 'observes site "x", while the model observes nothing: are model and guide swapped?' in said


def without_obs(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([len(x), 3]).to_event(1))


@pytest.mark.parametrize("loss", LOSSES)
def test_what_pyro_only_warns_of_is_refused_without_its_warning(loss):
    said = 'model must observe the data at a site, and observes none; the guide does not draw "x": is an obs= missing?'
    assert refusal(first_step, (without_obs, guide), loss, ROWS) == said
    said = (
        "the guide must draw latents of the model, or mark a site as auxiliary, got \"u\", and the model has ['x', 'z']"
    )
    assert refusal(first_step, (model, other_latents), loss, ROWS) == said
    said = 'the guide must draw latents of the model, or mark a site as auxiliary, got "z", and the model has no site'
    assert refusal(first_step, (nothing, guide), loss, ROWS) == said


def test_evaluating_the_loss_first_refuses_as_a_step_does():
    svi = CompiledExactly(guide, with_parameter(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    assert "swapped" in refusal(svi.evaluate_loss, ROWS)


# What Pyro's users do on purpose ----------------------------------------------------------------------------------


def prior_alone(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.ones(2), 3.0).to_event(1))


def with_auxiliary(x):
    guide(x)
    pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})


def only_labels(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.zeros_like(x))


ON_PURPOSE = {
    "a prior alone": (prior_alone, guide),
    "an auxiliary site": (model, with_auxiliary),
    "an auxiliary loss of labels": (only_labels, nothing),
    "no site for this batch": (nothing, nothing),
    "a factor in the guide": PAIRS["factor"],
}


@pytest.mark.parametrize("name", ON_PURPOSE)
@pytest.mark.parametrize("loss", [Trace_ELBO, TraceEnum_ELBO])
def test_what_pyro_takes_on_purpose_is_taken_with_the_same_numbers(name, loss):
    of_model, of_guide = ON_PURPOSE[name]
    losses = []
    for kind in (SVI, CompiledExactly):
        pyro.clear_param_store()
        torch.manual_seed(1)
        svi = kind(with_parameter(of_model), of_guide, pyro.optim.Adam({"lr": 0.1}), loss())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pyro's, on Trace_ELBO of a factor
            losses.append([svi.step(ROWS) for _ in range(3)])
    assert losses[0] == losses[1]


def test_an_autoguide_and_the_stream_of_random_numbers_are_as_under_svi():
    found = []
    for kind in (SVI, CompiledExactly):
        pyro.clear_param_store()
        torch.manual_seed(2)
        auto = AutoMultivariateNormal(model)
        svi = kind(model, auto, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        found.append(([svi.step(ROWS) for _ in range(3)], torch.get_rng_state()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
