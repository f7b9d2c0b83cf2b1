"""Every door x every refusal: what one entrance refuses, all that it concerns refuse, in the same words.

The kind of fault: a check that lives at one door, so that another trains to a wrong number or measures one. A pair is
refused where it is a fault in mathematics for what is asked, and taken at the doors that do not ask for it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, linear_gaussian, mean_and_error
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from pyro.poutine.scale_messenger import ScaleMessenger
from torch import nn

import pyrovae as pv
from pyrovae.objectives import (
    ELBO,
    IWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)


class Pair(NamedTuple):
    model: Callable
    guide: Callable


X = torch.linspace(0.5, 2.5, 100, dtype=torch.float64).unsqueeze(-1)


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def pair(prior, proposal, likelihood=lambda z: dist.Normal(z, 0.7), around=lambda program: program) -> Pair:
    """One scalar latent under `prior()` and `proposal(loc, scale)`, and x ~ likelihood(z), both as `(batch, 1)`."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior().expand([1]).to_event(1))
            pyro.sample("x", likelihood(z).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", double(0.2))
        scale = pyro.param("scale", double(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", proposal(loc, scale).expand([1]).to_event(1))

    return Pair(around(model), around(guide))


def normal():
    return dist.Normal(double(0.0), 1.0)


def plain() -> Pair:
    return pair(normal, dist.Normal)


def discrete() -> Pair:
    return pair(lambda: dist.Bernoulli(double(0.5)), lambda loc, scale: dist.Bernoulli(logits=loc + scale))


def masked() -> Pair:
    def around(program):
        return lambda x: poutine.mask(program, mask=torch.arange(len(x)) % 2 == 0)(x)

    return pair(normal, dist.Normal, around=around)


def masked_guide() -> Pair:
    """Without the density of the guide an "ELBO" is above log p(x)."""
    return Pair(plain().model, poutine.mask(plain().guide, mask=torch.tensor(False)))


def masked_distribution() -> Pair:
    return pair(normal, lambda loc, scale: dist.Normal(loc, scale).mask(torch.tensor(False)))


def auxiliary() -> Pair:
    """The guide's scale runs off where the density of `a` is missing in the weights."""

    def guide(x):
        scale = pyro.param("scale", double(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(double(0.0), scale), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a.unsqueeze(-1), 0.5).to_event(1))

    return Pair(plain().model, guide)


def name_taken() -> Pair:
    """The second of two modules under one name: what a notebook's cell leaves behind that is run again."""
    net = nn.Linear(1, 2).double()

    def guide(x):
        pyro.module("net", net)
        loc, log_scale = net(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    pyro.module("net", nn.Linear(1, 2).double())
    return Pair(plain().model, guide)


def beyond_the_prior() -> Pair:
    """`Exponential.log_prob` is finite below 0."""
    return pair(lambda: dist.Exponential(double(1.0)), dist.Normal)


def short_of_the_prior() -> Pair:
    """Pareto k does not see what the guide never draws."""
    return pair(normal, lambda loc, scale: dist.HalfNormal(scale + 0 * loc))


def point() -> Pair:
    return pair(normal, lambda loc, scale: dist.Delta(loc + scale))


def under_beta(beta: float = 4.0) -> Pair:
    def weighed(program):
        def run(x):
            with OnLatents(beta):
                program(x)

        return run

    return Pair(*map(weighed, plain()))


class OnLatents(ScaleMessenger):
    """A scale on what is not observed."""

    def _process_message(self, msg):
        if msg["type"] == "sample" and not msg["is_observed"]:
            super()._process_message(msg)


# The doors -----------------------------------------------------------------------------------------------------------

FEW = {"progress": False}


def known() -> pv.Estimate:
    return pv.Estimate(torch.zeros(len(X)), torch.zeros(len(X)))


def compiled(pair: Pair, objective) -> None:
    svi = pv.CompiledSVI(*pair, Adam({"lr": 0.01}), objective, inductor=False)
    for _ in range(2):
        svi.step(X)


def eager(pair: Pair, objective) -> None:
    with poutine.messenger.Messenger():  # under a handler of the caller's, steps are not replayed
        pv.CompiledSVI(*pair, Adam({"lr": 0.01}), objective, inductor=False).step(X)


def compare(pair: Pair, objective) -> None:
    settings = {"num_particles": [4], "repeats": 4, "log_px": known(), "compile": False}
    pv.compare(*pair, X, objectives=[lambda num: objective], **settings, **FEW)


def race(pair: Pair, objective) -> None:
    pv.race(lambda: pair, X, {"it": objective}, (0,), epochs=1, held_out=X[:8], num_samples=20, **FEW)


ANNEALED = {"start": "guide", "num_distributions": 2, "num_chains": 2, "num_leapfrog": 1, **FEW}

TRAINS = {
    "differentiable_loss": lambda pair, objective: objective.differentiable_loss(*pair, X),
    "loss": lambda pair, objective: objective.loss(*pair, X),
    "SVI": lambda pair, objective: SVI(*pair, Adam({"lr": 0.01}), objective).step(X),
    "CompiledSVI": compiled,
    "CompiledSVI, eager": eager,
    "fit": lambda pair, objective: pv.fit(pair, X, epochs=1, objective=objective, **FEW),
    "compare": compare,
    "race": race,
}
WEIGHS = {
    "log_marginal": lambda pair: pv.log_marginal(*pair, X, num_samples=50, **FEW),
    "importance_bound": lambda pair: pv.importance_bound(*pair, X, num_particles=5, num_repeats=2, **FEW),
    "evaluate": lambda pair: pv.evaluate(*pair, X, methods=["is_50"], **FEW),
    "annealed": lambda pair: pv.annealed_log_marginal(*pair, X, **ANNEALED),
    "bidirectional": lambda pair: pv.bidirectional_gap(*pair, X, **ANNEALED),
    "surgery": lambda pair: pv.elbo_surgery(*pair, X, num_draws=2, **FEW),
    "gaps": lambda pair: pv.inference_gaps(*pair, X, num_final_draws=10, num_samples=20, **FEW),
    "calibration": lambda pair: pv.simulation_based_calibration(*pair, X, num_draws=9, num_bins=2, **FEW),
    "log_weights": lambda pair: pv.log_weights(*pair, X, num_particles=2),
    "race": lambda pair: race(pair, ELBO()),
}
RSAMPLE = 'needs a reparameterised guide, and site "z" has no rsample'
AUXILIARY = 'the guide\'s auxiliary site "a" must be what all latents are a bijection of'
TAKEN = "net.weight would never train"
OUTSIDE = 'the guide must draw what the prior can give at site "z"'
SHORT = 'the guide never draws a part of what the prior gives at site "z"'
POINT = r'site "z" is a point \(Delta\)'
MASKED = r"masked|without a mask"

# Pair, an objective that must not train it, what is said, and the estimates that do not refuse it.
REFUSED = {
    "no rsample": (discrete, ELBO(), RSAMPLE),
    "no rsample, IWAE": (discrete, IWAE(8), RSAMPLE),
    "no rsample, path derivative": (discrete, DReG(8), RSAMPLE),
    "masked, analytic KL": (masked, AnalyticKLELBO(), MASKED),
    "masked, IWAE": (masked, IWAE(4), MASKED),
    "a mask of the guide's": (masked_guide, ELBO(), "must have the same mask in model and guide"),
    "a mask of the guide's distribution": (masked_distribution, ELBO(), "must have the same mask in model and guide"),
    "a mask of the guide's, IWAE": (masked_guide, IWAE(4), "needs latents without a mask"),
    "a mask of the guide's, analytic KL": (masked_guide, AnalyticKLELBO(), "needs latents without a mask"),
    "auxiliary": (auxiliary, ELBO(), AUXILIARY),
    "auxiliary, score function": (auxiliary, ScoreFunction(2), AUXILIARY),
    "name taken": (name_taken, ELBO(), TAKEN),
    "name taken, IWAE": (name_taken, IWAE(4), TAKEN),
    "outside the prior": (beyond_the_prior, ELBO(), OUTSIDE),
    "outside the prior, path derivative": (beyond_the_prior, StickingTheLanding(), OUTSIDE),
    "outside the prior, thermodynamic": (beyond_the_prior, ThermodynamicVO(4), OUTSIDE),
    "point, IWAE": (point, IWAE(4), POINT),
    "beta, wake-sleep": (under_beta, ReweightedWakeSleep(4), "is not defined for a beta on the latents, got 4"),
    "beta, thermodynamic": (under_beta, ThermodynamicVO(4), "is not defined for a beta on the latents, got 4"),
}


@pytest.mark.parametrize("door", TRAINS)
@pytest.mark.parametrize("name", REFUSED)
def test_every_door_refuses_to_train_what_one_refuses(name, door):
    make, objective, said = REFUSED[name]
    pair = make()
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    if (make, door) == (name_taken, "race"):  # every run of which has a param store of its own
        TRAINS[door](pair, objective)
        return
    with pytest.raises(pv.InputError, match=said) as caught:
        TRAINS[door](pair, objective)
    assert len(str(caught.value).splitlines()) == 1
    for name, value in before.items():
        assert torch.equal(pyro.param(name), value)


MEASURED = {
    "masked": (masked, MASKED, {"log_weights"}),
    "auxiliary": (auxiliary, AUXILIARY, set()),
    "name taken": (name_taken, TAKEN, {"race"}),
    "short of the prior": (
        short_of_the_prior,
        f"{SHORT}|Normal|one support in model and guide",
        {"importance_bound", "surgery", "log_weights", "calibration"},
    ),
    "point": (point, POINT, {"log_weights"}),
}


@pytest.mark.filterwarnings("ignore:the guide never draws")
@pytest.mark.parametrize("door", WEIGHS)
@pytest.mark.parametrize("name", MEASURED)
def test_every_estimate_refuses_what_one_refuses(name, door):
    make, said, allowed = MEASURED[name]
    pair = make()
    if door in allowed:
        WEIGHS[door](pair)
        return
    with pytest.raises(pv.InputError, match=said) as caught:
        WEIGHS[door](pair)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("door", [*TRAINS, *WEIGHS])
def test_every_door_takes_a_plain_pair(door):
    (TRAINS[door](plain(), ELBO(2)) if door in TRAINS else WEIGHS[door](plain()))


# What the numbers would be, and that they are right where a pair is taken --------------------------------------------


def quadrature(log_joint: Callable, low: float, high: float, num: int = 400_001) -> torch.Tensor:
    """log of the integral of exp(log_joint(z)) over z, by the trapezoidal rule."""
    z = torch.linspace(low, high, num, dtype=torch.float64)
    return log_joint(z).logsumexp(0) + math.log((high - low) / (num - 1))


def at(x: float, num: int = 1) -> torch.Tensor:
    return torch.full((num, 1), x, dtype=torch.float64)


def given(pair: Pair, loc: float, scale: float) -> Pair:
    store = pyro.get_param_store()
    store["loc"] = double(loc)
    store.setdefault("scale", double(scale), dist.constraints.positive)
    store["scale"] = double(scale)
    return pair


def test_a_draw_outside_the_priors_support_has_weight_0_in_every_chunk():
    """By `Exponential.log_prob`, which is finite below 0, the mean would be -4.25 where validation is off."""
    broad = pair(lambda: dist.Exponential(double(1.0)), dist.Normal, lambda z: dist.Normal(z, 3.0))
    found = pv.log_marginal(*given(broad, 1.0, 0.27), at(-6.0), num_samples=200_000, chunk_size=1_000)
    truth = quadrature(lambda z: -z + dist.Normal(z, 3.0).log_prob(double(-6.0)), 0.0, 30.0)
    assert found.mean == pytest.approx(truth.item(), abs=5 * found.monte_carlo_error)
    assert truth == pytest.approx(-4.565, abs=1e-3)
    draws = pv.log_weights(*given(broad, -1.0, 0.27), at(-6.0), num_particles=100)
    assert (draws == -math.inf).double().mean() > 0.9


def test_a_prior_beyond_the_guides_support_is_warned_of_once_and_the_bound_is_below_log_px():
    half = given(short_of_the_prior(), 0.2, 1.0)
    with pytest.warns(UserWarning, match="the bound is valid but never tight") as caught:
        losses = [IWAE(8).loss(*half, at(-1.0, 500)) / 500 for _ in range(3)]
    assert len(caught) == 1
    assert max(-loss for loss in losses) < dist.Normal(0.0, math.sqrt(1 + 0.49)).log_prob(torch.tensor(-1.0))


def test_a_defensive_guide_reaches_all_of_the_prior():
    half = given(short_of_the_prior(), 0.2, 1.0)
    x, truth = at(0.5), dist.Normal(double(0.0), math.sqrt(1 + 0.49)).log_prob(double(0.5))
    found = pv.log_marginal(half.model, pv.proposals.defensive(*half), x, num_samples=50_000)
    assert_within_standard_errors(found.value[0], truth, found.standard_error[0])


@pytest.mark.parametrize(
    ("prior", "proposal"),
    [
        (lambda: dist.Uniform(double(-1.0), 1.0), dist.Normal),
        (lambda: dist.Categorical(torch.ones(3, dtype=torch.float64)), lambda loc, scale: five(loc)),
    ],
    ids=["an interval with tensors as bounds", "fewer classes"],
)
def test_supports_are_known_by_their_constraints_or_by_draws(prior, proposal):
    said = pair(prior, proposal, lambda z: dist.Normal(z.double(), 0.7))
    for objective in (ELBO(), ScoreFunction()):
        with pytest.raises(pv.InputError, match=f"{OUTSIDE}|no rsample"):
            objective.loss(*said, at(0.5, 50))
    assert math.isfinite(VIMCO(64).loss(*said, at(0.5, 50)))
    assert pv.log_marginal(*given(said, 0.2, 0.5), at(0.5), num_samples=500).value.isfinite().all()


def five(loc):
    return dist.Categorical(logits=loc * torch.arange(5, dtype=torch.float64))


@pytest.mark.parametrize("z", [double(0.3), double(0.9)], ids=str)
def test_data_whose_support_depends_on_a_latent_may_have_weight_0(z):
    """x ~ Uniform(0, z), z ~ Uniform(0, 1): p(x) = -log x."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("z", dist.Uniform(double(0.0), 1.0).expand([1]).to_event(1))
            pyro.sample("x", dist.Uniform(double(0.0), top).to_event(1), obs=x)

    def guide(x):
        edge = pyro.param("edge", double(0.1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(double(0.0) * edge, 1.0).expand([1]).to_event(1))

    x = z.reshape(1, 1)
    found = pv.log_marginal(model, guide, x, num_samples=20_000)
    assert_within_standard_errors(found.value[0], (-z.log()).log(), found.standard_error[0])
    with pytest.raises(pv.InputError, match="all are zero"):  # under every latent
        pv.log_marginal(model, guide, -x, num_samples=10)


def test_quadrature_takes_data_whose_support_depends_on_a_latent():
    """x ~ Uniform(0, exp(z)), z ~ N(0, 1): p(x) = E[exp(-z); z > log x]."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal().expand([1]).to_event(1))
            pyro.sample("x", dist.Uniform(double(0.0), z.exp()).to_event(1), obs=x)

    value, error = pv.quadrature_log_marginal(model, at(0.7))
    truth = quadrature(lambda z: normal().log_prob(z) - z, math.log(0.7), 12.0)
    assert abs(value.item() - truth.item()) <= error.item() + 1e-5


def test_values_outside_the_support_that_a_mask_excludes_are_no_fault():
    vae = linear_gaussian(0, data_dim=1)
    seen = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", vae.prior)
            with poutine.mask(mask=seen[: len(x)]):
                pyro.sample("x", dist.Exponential(vae.decode(z).mean.exp()).to_event(1), obs=x)

    x = torch.tensor([[0.5], [-3.0], [0.5]], dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", vae.prior)

    found = pv.log_marginal(model, guide, x, num_samples=200)
    assert found.value.isfinite().all()
    assert found.value[1] == 0  # nothing was seen: every weight is 1
    assert math.isfinite(IWAE(4).loss_and_grads(model, guide, x))
    with pytest.raises(pv.InputError, match=r"-3.0 at index .* is outside GreaterThanEq"):
        pv.log_marginal(poutine.mask(model, torch.tensor(True)), guide, x[[1, 0, 2]], num_samples=10)


@pytest.mark.parametrize("shape", [(2, 3), (2, 2)], ids=str)
def test_masks_of_elements_within_an_event_exclude_what_they_say(shape):
    mask = torch.tensor([[True, False, True], [False, True, True]])[:, : shape[1]]
    x = torch.where(mask, torch.linspace(0.2, 0.9, shape[1], dtype=torch.float64).expand(shape), -1.0)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal())
            rate = z.exp().unsqueeze(-1).expand(*z.shape, x.shape[-1])
            pyro.sample("x", dist.Exponential(rate).mask(mask).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("loc", double(0.2)), 1.0))

    def log_joint(z, x, seen):
        prior = dist.Normal(double(0.0), 1.0).log_prob(z)
        return prior + dist.Exponential(z.exp().unsqueeze(-1)).log_prob(x[seen]).sum(-1)

    truth = [quadrature(lambda z, n=n: log_joint(z, x[n], mask[n]), -8.0, 8.0, 4_001) for n in range(2)]
    found = pv.log_marginal(model, guide, x, num_samples=4_000)
    assert_within_standard_errors(found.value, torch.stack(truth), found.standard_error)
    assert math.isfinite(ELBO().loss_and_grads(model, guide, x))
    with pytest.raises(ValueError, match=r"-2.0 at index .* is outside"):
        ELBO().loss(model, guide, torch.where(mask, -2.0, x))


def test_a_masked_event_outside_its_support_costs_nothing():
    rows = torch.tensor([True, False])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal())
            rate = z.exp().unsqueeze(-1).expand(*z.shape, 2)
            pyro.sample("x", dist.Exponential(rate).to_event(1).mask(rows), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("loc", double(0.2)), 1.0))

    x = torch.tensor([[0.5, 0.7], [0.5, -1.0]], dtype=torch.float64)
    losses = []
    for data in (x, x.abs()):
        torch.manual_seed(1)
        losses.append(ELBO().loss(model, guide, data))
    assert losses[0] == losses[1]


def test_a_defensive_guide_draws_from_all_of_a_prior_on_an_interval():
    uniform = pair(lambda: dist.Uniform(double(0.0), 1.0), lambda loc, scale: dist.Uniform(double(0.2), 0.8))
    x, truth = at(0.1), quadrature(lambda z: dist.Normal(z, 0.7).log_prob(double(0.1)), 0.0, 1.0)
    with pytest.raises(pv.InputError, match=SHORT):  # the bounds are tensors, and compared by their values
        pv.log_marginal(*uniform, x, num_samples=100)
    found = pv.log_marginal(uniform.model, pv.proposals.defensive(*uniform), x, num_samples=20_000)
    assert_within_standard_errors(found.value[0], truth, found.standard_error[0])


# Auxiliary sites -----------------------------------------------------------------------------------------------------


def autoguided() -> Pair:
    model = pair(lambda: dist.Exponential(double(1.0)), None).model

    def create_plates(x):
        return pyro.plate("data", len(x), dim=-1)

    return Pair(model, AutoNormal(model, create_plates=create_plates))


def near_the_posterior(auto: Pair, x: torch.Tensor) -> Pair:
    ELBO().loss(*auto, x)  # it makes its parameters at its first use
    store = pyro.get_param_store()
    store["AutoNormal.locs.z"] = torch.full_like(store["AutoNormal.locs.z"], 0.85)
    store["AutoNormal.scales.z"] = torch.full_like(store["AutoNormal.scales.z"], 0.35)
    ELBO().loss(*auto, x)  # and takes over what the store holds at the next
    return auto


def gradient(objective, auto: Pair, x: torch.Tensor) -> torch.Tensor:
    parameters = [value.unconstrained() for value in pyro.get_param_store().values()]
    for parameter in parameters:
        parameter.grad = None
    objective.loss_and_grads(*auto, x)
    return torch.cat([parameter.grad for parameter in parameters], -1)


def test_an_autoguide_whose_latents_are_a_bijection_of_its_auxiliary_site_is_taken():
    x = at(3.0, 20)
    auto = near_the_posterior(autoguided(), x)
    truth = quadrature(lambda z: -z + dist.Normal(z, 0.7).log_prob(double(3.0)), 0.0, 20.0)
    found = pv.log_marginal(*auto, x, num_samples=5_000)
    assert_within_standard_errors(found.value, truth, found.standard_error)
    bound = pv.importance_bound(*auto, x, num_particles=1, num_repeats=200)
    assert truth - 0.2 < bound.mean < truth
    results = []
    for objective in (ELBO(), Trace_ELBO()):
        torch.manual_seed(2)
        results.append((objective.loss(*auto, x), gradient(objective, auto, x)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("objective", "plain"), [(StickingTheLanding(2), ELBO(2)), (DReG(4), IWAE(4))], ids=str)
def test_path_derivatives_go_through_an_autoguides_bijection(objective, plain):
    x = at(3.0, 2_000)
    auto = near_the_posterior(autoguided(), x)
    means, errors = zip(*(mean_and_error(gradient(one, auto, x)) for one in (objective, plain)), strict=True)
    assert_within_standard_errors(means[0] - means[1], torch.zeros(2), (errors[0] ** 2 + errors[1] ** 2).sqrt())


def test_a_point_whose_density_is_not_its_jacobians_is_refused():
    def guide(x):
        loc = pyro.param("loc", double(0.2))
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(loc, 1.0).expand([1]).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(2 * a, log_density=-a.sum(-1), event_dim=1))

    with pytest.raises(pv.InputError, match=r"log_density = -log \|det J\|, -0.6931 at a draw, got"):
        ELBO().loss(plain().model, guide, X)


# Parameters ----------------------------------------------------------------------------------------------------------


def test_a_store_that_was_read_from_a_file_does_not_hide_a_new_models_parameters(tmp_path):
    """100 steps would move nothing."""
    old = nn.Linear(1, 2).double()
    pyro.module("net", old)
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    net = nn.Linear(1, 2).double()

    def guide(x):
        pyro.module("net", net)
        loc, log_scale = net(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(plain().model, guide, Adam({"lr": 0.01}), ELBO())
    svi.step(X)
    pyro.get_param_store().load(tmp_path / "store.pt")
    with pytest.raises(pv.InputError, match=TAKEN):
        svi.step(X)


def test_a_program_that_computes_with_what_the_store_returns_is_taken():
    net = nn.Linear(1, 2).double()
    with torch.no_grad():
        pyro.param("weight", net.weight.detach() + 1)

    def guide(x):
        weight = pyro.param("weight", net.weight)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x * weight[0], weight[1].exp()).to_event(1))

    svi = SVI(plain().model, guide, Adam({"lr": 0.01}), ELBO())
    before = pyro.param("weight").detach().clone()
    svi.step(X)
    assert not torch.equal(pyro.param("weight"), before)


@pytest.mark.parametrize("loss", [Trace_ELBO(), ELBO()], ids=["Pyro's", "ours"])
def test_compiled_steps_refuse_a_name_that_is_taken_under_pyros_own_loss_too(loss):
    svi = pv.CompiledSVI(*name_taken(), Adam({"lr": 0.01}), loss, inductor=False)
    with pytest.raises(pv.InputError, match=TAKEN):
        svi.step(X)


# Once for each structure ---------------------------------------------------------------------------------------------


def test_the_gate_is_gone_through_once_for_each_structure_and_again_when_it_changes():
    family, runs = [dist.Normal], [0]

    def guide(x):
        runs[0] += 1
        loc = pyro.param("loc", double(0.2))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family[0](loc, double(1.0)).expand([1]).to_event(1))

    svi = SVI(pair(lambda: dist.LogNormal(double(0.0), 1.0), None).model, guide, Adam({"lr": 0.01}), VIMCO(4))
    counts = []
    for step in range(6):
        if step == 3:
            family[0] = dist.LogNormal
        runs[0] = 0
        svi.step(X)
        counts.append(runs[0])
    assert counts[1] == counts[2] == counts[4] == counts[5] == 2  # the step's own
    assert counts[0] > 2
    assert counts[3] > 2


def test_the_gate_leaves_random_numbers_modes_and_running_statistics_alone():
    net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double().train()

    def guide(x):
        pyro.module("net", net)
        loc, log_scale = net(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    model = plain().model
    torch.manual_seed(1)
    first = ELBO(2).loss(model, guide, X)  # through the gate
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert ELBO(2).loss(model, guide, X) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())
