"""One side trained alone: the other keeps its parameters and its buffers, and its modules are in evaluation mode."""

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from broken_off import WithParamsOfItsOwn, ring_data
from helpers import assert_within_standard_errors, draw, linear_gaussian, ring, small_vae, suite_seed
from pairs_of_sides import EAGER, ONE_BY_ONE, Normalised, by_side, same, values
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyrovae as pv
from pyrovae.evaluation import best_gaussian
from pyrovae.training import gradients_of
from pyrovae.training.data_count import DataCount


@pytest.mark.parametrize("objective", ["elbo", "dreg", Trace_ELBO()])
@pytest.mark.parametrize("train", ["model", "guide"])
def test_the_other_side_keeps_its_parameters_to_the_bit(train, objective):
    vae = linear_gaussian(2)
    before = {side: values(named) for side, named in by_side(vae).items()}
    more = {"num_particles": 2} if objective == "dreg" else {}
    history = pv.fit(vae, draw(vae, 12), epochs=2, batch_size=4, train=train, objective=objective, **more, **EAGER)
    for side, named in by_side(vae).items():
        assert same(named, before[side]) == (side != train), side
    assert history.guide_lr == [None, None]


def test_the_guide_alone_reaches_the_exact_posterior_of_a_fixed_model(without_machine_code):
    weight = torch.diag(torch.tensor([1.3, 0.4], dtype=torch.float64))  # whose posterior is diagonal
    vae = pv.LinearGaussianVAE(weight, torch.tensor([0.2, -0.1], dtype=torch.float64), 0.6)
    torch.manual_seed(suite_seed(4))
    x = draw(vae, 16)
    with torch.no_grad():
        for parameter in by_side(vae)["guide"].values():
            parameter.add_(0.5 * torch.randn_like(parameter))
    log_px, start = vae.log_px(x), vae.elbo(x)
    settings = {"objective": "sticking_the_landing", "schedule": "cosine", "lr": 0.05, "train": "guide"}
    pv.fit(vae, [x] * 15, epochs=20, compile=True, progress=False, **settings)
    assert torch.equal(vae.log_px(x), log_px)
    assert (log_px - start).mean() > 0.05
    assert (log_px - vae.elbo(x)).abs().max() < 1e-6


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_the_fixed_side_are_not_computed(compiled, without_machine_code):
    vae, x = small_vae(), ring().train_x[:10]
    pv.objectives.ELBO().loss(vae.model, vae.guide, x)
    parameters = dict(vae.named_parameters())
    guide = [p for name, p in parameters.items() if not name.startswith(("decoder", "likelihood"))]
    asked = []
    for name, parameter in [] if compiled else parameters.items():  # which a replay would not call
        parameter.register_hook(lambda _, name=name: asked.append(name))
    step = gradients_of(vae, pv.objectives.ELBO(), parameters, compiled, DataCount(("data",)), guide)
    torch.manual_seed(0)
    first = step(x)
    found = {name: p.grad for name, p in parameters.items()}
    assert {name for name, gradient in found.items() if gradient is not None} == set(asked) or compiled
    assert [name for name, gradient in found.items() if gradient is None and name.startswith("encoder")] == []
    assert [name for name, gradient in found.items() if gradient is not None and name.startswith("decoder")] == []
    torch.manual_seed(0)
    whole = gradients_of(vae, pv.objectives.ELBO(), parameters, compiled, DataCount(("data",)))
    assert torch.equal(whole(x).loss, first.loss)
    assert whole(x).norm > first.norm
    torch.manual_seed(0)
    whole(x)
    for name, gradient in found.items():
        assert gradient is None or torch.equal(gradient, parameters[name].grad)


@pytest.mark.parametrize("as_module", [True, False])
@pytest.mark.parametrize("train", ["model", "guide"])
def test_the_modules_of_the_fixed_side_are_in_evaluation_mode(train, as_module):
    pyro.clear_param_store()
    own = Normalised()
    pair = own if as_module else SimpleNamespace(model=own.model, guide=own.guide)
    before = values(dict(own.named_buffers()))
    pv.fit(pair, torch.randn(20, 3), epochs=2, batch_size=10, train=train, objective=ONE_BY_ONE, **EAGER)
    after = dict(own.named_buffers())
    fixed = "decoder" if train == "guide" else "encoder"
    for name, buffer in after.items():
        assert torch.equal(buffer, before[name]) == name.startswith(fixed), name
    assert own.seen == ((False, False, True) if train == "guide" else (True, True, False))
    assert all(module.training != as_module for module in own.modules())  # `fit` puts modules in evaluation mode


def test_parameters_of_pyro_and_of_globals_have_their_sides():
    pair = WithParamsOfItsOwn()
    pv.fit(pair, ring_data(), epochs=1, train="guide", lr=0.1, **EAGER)
    store = pyro.get_param_store()
    assert store["scale"].item() == pytest.approx(0.7)
    assert torch.equal(store["weight"], torch.ones(2))
    assert store["loc"].item() != 0
    pyro.clear_param_store()

    def model(x):
        slope = pyro.param("slope", torch.tensor(1.0))
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(theta, 1.0))
            pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)

    pair = SimpleNamespace(model=model, guide=AutoNormal(model))
    pv.fit(pair, torch.randn(8), epochs=2, batch_size=8, train="guide", lr=0.1, **EAGER)
    assert pyro.param("slope").item() == 1
    assert pair.guide.locs.theta.item() != 0


def test_the_amortisation_gap_falls_under_a_guide_trained_alone_and_log_px_stays(without_machine_code, monkeypatch):
    """A linear guide can be the best Gaussian of every datum, so that its gap can fall to 0; the family's stays."""
    monkeypatch.setattr(best_gaussian, "MAX_HALVINGS", 4)  # the search begins near its end
    vae = linear_gaussian(1, latent_dim=2, pinned=True)
    torch.manual_seed(suite_seed(8))
    x = draw(vae, 4)
    with torch.no_grad():
        vae.guide_bias.add_(0.5)
        vae.guide_log_scale.sub_(0.4)

    def measured():
        torch.manual_seed(suite_seed(6))
        log_px = pv.annealed_log_marginal(
            vae.model, vae.guide, x, num_distributions=20, num_chains=8, num_leapfrog=2, compile=False, progress=False
        )
        settings = {"num_draws": 8, "num_final_draws": 500, "progress": False}
        return pv.inference_gaps(vae.model, vae.guide, x, log_px=log_px, **settings)

    before = measured()
    settings = {"objective": "sticking_the_landing", "lr": 0.05, "schedule": "cosine", "train": "guide"}
    pv.fit(vae, [x] * 15, epochs=10, compile=True, progress=False, **settings)
    after = measured()
    assert before.amortisation.mean > 1.0
    assert abs(after.amortisation.mean) < 5 * after.amortisation.monte_carlo_error + 2e-3
    assert_within_standard_errors(
        after.approximation.mean - before.approximation.mean,
        0.0,
        after.approximation.monte_carlo_error + before.approximation.monte_carlo_error + 1e-3,
    )
    assert torch.equal(before.log_px.value, after.log_px.value)  # chains from the prior, in which the guide has no part
    errors = before.log_px.standard_error + 0.3  # of short chains
    assert_within_standard_errors(before.log_px.value, vae.log_px(x), errors)
