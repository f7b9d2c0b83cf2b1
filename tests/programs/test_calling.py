"""Every function of a model and a guide takes a pair in their place, with the same result."""

import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Pair, draw, linear_gaussian, suite_seed
from torch import nn

import pyrovae as pv

FEW_CHAINS = {"num_distributions": 3, "num_chains": 4, "num_leapfrog": 1, "compile": False}
OF_A_PAIR = {
    "log_marginal": (pv.log_marginal, {"num_samples": 20}),
    "importance_bound": (pv.importance_bound, {"num_particles": 3, "num_repeats": 4}),
    "log_weights": (pv.log_weights, {"num_particles": 3}),
    "annealed_log_marginal": (pv.annealed_log_marginal, FEW_CHAINS),
    "annealed_posterior": (lambda *args, **settings: pv.annealed_posterior(*args, **settings).mean("z"), FEW_CHAINS),
    "bidirectional_gap": (pv.bidirectional_gap, FEW_CHAINS),
    "evaluate": (pv.evaluate, {"methods": ("elbo", "is_50")}),
    "compare": (pv.compare, {"objectives": ["elbo"], "num_particles": [2], "repeats": 4, "compile": False}),
    "elbo_surgery": (pv.elbo_surgery, {"num_draws": 20}),
    "inference_gaps": (pv.inference_gaps, {"num_samples": 20, "num_steps": 25, "num_final_draws": 20}),
    "simulation_based_calibration": (pv.simulation_based_calibration, {"num_draws": 9, "num_bins": 2}),
    "elbo_terms": (pv.diagnostics.elbo_terms, {}),
    "active_units": (pv.diagnostics.active_units, {}),
    "annealed_rate_distortion": (pv.annealed_rate_distortion, FEW_CHAINS),
    "predictive_check": (
        pv.predictive_check,
        {"statistic": lambda x: x.sum(-1), "num_samples": 20, "num_replicates": 9},
    ),
    "posterior": (lambda *args, **settings: pv.posterior(*args, **settings).mean("z"), {"num_samples": 20}),
}
OF_A_MODEL = {"quadrature_log_marginal": (pv.quadrature_log_marginal, {"num_points": 51})}


def numbers(result):
    """Returns the tensors and numbers of a result, but for its times."""
    if isinstance(result, torch.Tensor | float | int):
        return [result]
    if isinstance(result, dict):
        return [x for name, value in result.items() if "seconds" not in str(name) for x in numbers(value)]
    if isinstance(result, list | tuple):
        return [x for value in result for x in numbers(value)]
    return numbers(vars(result)) if hasattr(result, "__dict__") else []


def same(one, other):
    found, expected = numbers(one), numbers(other)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=0, equal_nan=True)


def called(function, *args, **settings):
    pyro.clear_param_store()
    torch.manual_seed(suite_seed(1))
    return function(*args, **settings)


@pytest.mark.parametrize("name", OF_A_PAIR)
@pytest.mark.filterwarnings("ignore:the (best|pilot|step)")
def test_a_pair_stands_for_its_two_programs(name):
    """A VAE and a plain pair by turns: one function tells a pair from a model, before any other looks at it."""
    (function, settings), vae = OF_A_PAIR[name], linear_gaussian(0)
    plain = list(OF_A_PAIR).index(name) % 2 == 1
    x = draw(vae, 12)
    pair = Pair(vae.model, vae.guide) if plain else vae
    same(called(function, pair, x, **settings), called(function, vae.model, vae.guide, x, **settings))


def test_a_pair_stands_for_its_model():
    for function, settings in OF_A_MODEL.values():
        vae = linear_gaussian(0)
        x = draw(vae, 3)
        same(function(vae, x, **settings), function(vae.model, x, **settings))
    bits = pv.VAE((3,), latent_dim=2, hidden=(4,), likelihood=pv.Bernoulli(), posterior="bernoulli")
    x = bits.sample(4)
    same(pv.enumerated_log_marginal(bits, x), pv.enumerated_log_marginal(bits.model, x))


def test_every_public_function_of_a_model_and_a_guide_is_in_the_table():
    own = {
        name: f for name, f in vars(pv.diagnostics).items() if getattr(f, "__module__", "") == pv.diagnostics.__name__
    }
    public = {**{name: getattr(pv, name) for name in pv.__all__}, **own}
    functions = {name: f for name, f in public.items() if inspect.isfunction(f) and not name.startswith("_")}
    of_a_pair = {
        name for name, f in functions.items() if list(inspect.signature(f).parameters)[:2] == ["model", "guide"]
    }
    of_parts = {"impute", "conditional_log_marginal"}  # whose guides take a part of the data: tests/evaluation
    assert of_a_pair - of_parts == OF_A_PAIR.keys()


class Program(nn.Module):
    """A model that is called itself, and that has a `model` and a `guide` for another purpose."""

    def model(self):
        raise AssertionError

    guide = model

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_two_programs_are_two_programs_whatever_attributes_the_first_has():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    x = torch.tensor([[0.3], [-1.0]])
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).squeeze(-1)
    torch.testing.assert_close(pv.log_marginal(Program(), guide, x, num_samples=4).log_px.float(), exact)


def test_a_model_that_runs_itself_is_the_model_whatever_attributes_it_has():
    x = torch.tensor([[0.3], [-1.0]])
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).squeeze(-1)
    found, _ = pv.quadrature_log_marginal(Program(), x)
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=1e-5)


def test_a_class_is_a_pair_if_its_programs_are_functions_of_its_own():
    x = torch.ones(3)

    class Own:
        @staticmethod
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

        @staticmethod
        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    class Named:
        model, guide = Own.model, Own.guide

    class OfObjects(Own):
        def model(self, x):
            return Own.model(x)

    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).double()
    for pair in (Own, Named, OfObjects()):
        torch.testing.assert_close(pv.log_marginal(pair, x, num_samples=30).value.double(), exact, rtol=0, atol=1e-6)
        found, _ = pv.quadrature_log_marginal(pair, x)
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)
    for call in (pv.log_marginal, pv.quadrature_log_marginal):
        with pytest.raises(pv.InputError, match="or there must be a pair of a model and a guide, got <class"):
            call(OfObjects, x)
