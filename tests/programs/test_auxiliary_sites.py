"""Auxiliary sites of a guide: an autoguide's bijection is taken, with its gradient, and any other is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error, suite_seed
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scalar_pairs import Pair, X, at, double, pair, plain, quadrature

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, VIMCO, DReG, ReweightedWakeSleep, ScoreFunction, StickingTheLanding


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


def location_and_scale(made: bool):
    """Returns a guide z ~ N(loc, scale), or the same made by a map with parameters of a draw without any."""

    def guide(x):
        loc = pyro.param("loc", double(0.2))
        scale = pyro.param("scale", double(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            if made:
                normal = dist.Normal(double(0.0), 1.0).expand([1]).to_event(1)
                a = pyro.sample("a", normal, infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(loc + scale * a, log_density=-scale.log(), event_dim=1))
            else:
                pyro.sample("z", dist.Normal(loc, scale).expand([1]).to_event(1))

    return guide


@pytest.mark.parametrize("objective", [ELBO(2), IWAE(3)], ids=str)
def test_a_map_with_parameters_learns_as_the_same_density_of_its_own_does(objective):
    losses, gradients = [], []
    for made in (True, False):
        torch.manual_seed(suite_seed(1))
        pyro.clear_param_store()
        losses.append(objective.loss_and_grads(plain().model, location_and_scale(made), X))
        gradients.append([pyro.get_param_store()[name].unconstrained().grad for name in ("loc", "scale")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "objective", [DReG(3), StickingTheLanding(2), VIMCO(3), ReweightedWakeSleep(3), ScoreFunction(2)], ids=str
)
def test_objectives_that_hold_draws_refuse_a_map_with_parameters(objective):
    """The log-Jacobian in its density is no score: at held draws these would take its slope, of mean 1 / scale."""
    for loss in (objective.loss, objective.loss_and_grads):
        with pytest.raises(pv.InputError, match='site "z" is a map with parameters of other draws: use elbo'):
            loss(plain().model, location_and_scale(True), X)
    objective.loss_and_grads(plain().model, location_and_scale(False), X)


def test_a_map_whose_parameters_were_frozen_at_first_is_refused_once_they_learn():
    objective, model, own = DReG(3), plain().model, torch.nn.Module().eval()
    own.scale = torch.nn.Parameter(double(0.5), requires_grad=False)

    def guide(x):
        scale = pyro.module("own", own).scale
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(double(0.0), 1.0).expand([1]).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(scale * a, log_density=-scale.log(), event_dim=1))

    objective.loss(model, guide, X)
    own.requires_grad_(True)
    with pytest.raises(pv.InputError, match='site "z" is a map with parameters of other draws: use elbo'):
        objective.loss_and_grads(model, guide, X)


@pytest.mark.parametrize("objective", [ELBO(2), IWAE(3), DReG(3), StickingTheLanding(2)], ids=str)
def test_latents_that_are_drawn_may_stand_beside_those_that_are_made_of_auxiliary_sites(objective):
    """The same guide twice: its first latent as a point with the density of its Jacobian, or drawn itself."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            scale = pyro.sample("scale", dist.LogNormal(double(0.0), 1.0))
            z = pyro.sample("z", dist.Normal(double(0.0), scale))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(made):
        def run(x):
            with pyro.plate("data", len(x), dim=-1):
                if made:
                    a = pyro.sample("a", dist.Normal(double(0.2), 0.5), infer={"is_auxiliary": True})
                    scale = pyro.sample("scale", dist.Delta(a.exp(), log_density=-a))
                else:
                    scale = pyro.sample("scale", dist.LogNormal(double(0.2), 0.5))
                pyro.sample("z", dist.Normal(0.3 * x[:, 0], scale))

        return run

    losses = []
    for made in (True, False):
        torch.manual_seed(suite_seed(1))
        losses.append(objective.loss(model, guide(made), X))
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
