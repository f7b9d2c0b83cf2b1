"""Differentiable AIS: the papers' weight and its gradient, and what it estimates, for latents of several kinds."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from annealed_pairs import linear, moved
from helpers import assert_within_standard_errors, correlated, draw, small_vae, suite_seed
from scalar_pairs import Pair, double, quadrature

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE
from pyrovae.programs import pair_at, run_pair

STANDARD = dist.Normal(double(0.0), 1.0)


def normal_density(v: torch.Tensor) -> torch.Tensor:
    return STANDARD.log_prob(v).sum(-1)


@pytest.mark.parametrize("num_transitions", [1, 2, 3])
def test_the_weight_is_the_papers_on_the_same_noise(num_transitions):
    vae, x, annealed = linear(num_transitions)
    with torch.no_grad():
        pair = run_pair(annealed.model, annealed.guide, x, num_particles=4)
        z, noise = pair.draws()["z_start"], pair.draws()["z_noise"]
        q, weight = vae.encode(x), vae.weight
        expected = -q.log_prob(z)
        v = noise[..., 0, :]
        for t in range(num_transitions):
            size, beta = annealed.step_sizes["z"][t], annealed.inverse_temperatures[t]
            half = z + 0.5 * size * v
            of_p = (x - half @ weight.T - vae.bias) @ weight / vae.scale**2 - (half - vae.prior_mean)
            new = v + size * (beta * of_p - (1 - beta) * (half - q.mean) / q.variance)
            expected = expected + normal_density(new) - normal_density(v)
            z = half + 0.5 * size * new
            if t < num_transitions - 1:
                v = annealed.damping[t] * new + (1 - annealed.damping[t] ** 2).sqrt() * noise[..., t + 1, :]
        expected = expected + vae.prior.log_prob(z) + vae.decode(z).log_prob(x)
    torch.testing.assert_close(pair.draws()["z"], z, rtol=0, atol=1e-9)
    torch.testing.assert_close(pair.terms().log_weights, expected, rtol=0, atol=1e-9)


def test_without_a_step_the_weight_is_that_of_the_pair():
    vae, x, annealed = linear(3, step_size=1e-12)
    pair = run_pair(annealed.model, annealed.guide, x, num_particles=4)
    plain = pair_at(vae.model, vae.guide, {"z": pair.draws()["z_start"]}, x)
    torch.testing.assert_close(pair.terms().log_weights, plain.terms().log_weights, rtol=0, atol=1e-9)


def assert_unbiased(log_weights: torch.Tensor, log_px: torch.Tensor) -> None:
    ratios = (log_weights - log_px).exp()
    assert_within_standard_errors(ratios.mean(0), torch.ones_like(log_px), ratios.std(0) / math.sqrt(len(ratios)))


def assert_moved(annealed: pv.DifferentiableAIS, x: torch.Tensor, latents: tuple[str, ...]) -> None:
    draws = run_pair(annealed.model, annealed.guide, x, num_particles=50).draws()
    for name in latents:
        assert (draws[name] - draws[f"{name}_start"]).abs().mean() > 0.03


@torch.no_grad()
def test_the_mean_weight_is_the_evidence_at_any_parameters():
    vae, x, annealed = linear(3)
    assert_unbiased(pv.log_weights(annealed.model, annealed.guide, x, num_particles=20_000), vae.log_px(x))


@torch.no_grad()
def test_the_gap_falls_with_the_transitions():
    """Of independent Gaussians as the guide the ELBO is exact, and short of log p(x) where latents are correlated."""
    vae = correlated()
    x = draw(vae, 10)
    exact = vae.log_px(x).mean()
    gaps = [(exact - vae.elbo(x).mean()).item()]
    for num_transitions in (4, 16):
        annealed = pv.DifferentiableAIS(vae, x, num_transitions=num_transitions, step_size=0.25)
        bounds = pv.log_weights(annealed.model, annealed.guide, x, num_particles=1_000).mean(1)
        gaps.append((exact - bounds.mean()).item())
        assert gaps[-1] < 0.9 * gaps[-2] - 5 * bounds.std().item() / math.sqrt(1_000)
    assert gaps[-1] > 0


@pytest.mark.parametrize("objective", [ELBO(2), IWAE(3)], ids=str)
def test_the_gradient_is_that_of_finite_differences_on_the_same_noise(objective):
    _, x, annealed = linear(2)

    def loss() -> torch.Tensor:
        torch.manual_seed(suite_seed(3))
        return objective.differentiable_loss(annealed.model, annealed.guide, x)

    parameters = list(annealed.parameters())
    found = torch.autograd.grad(loss(), parameters)
    generator, h = torch.Generator().manual_seed(suite_seed(4)), 1e-5
    for parameter, gradient in zip(parameters, found, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * h * direction)
                ends.append(loss().item())
                parameter.sub_(sign * h * direction)
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx((gradient * direction).sum().item(), rel=1e-6, abs=1e-6)


def test_parameters_stay_in_their_ranges():
    _, _, annealed = linear(4)
    betas = annealed.inverse_temperatures
    assert bool((betas.diff() > 0).all())
    assert betas[0] > 0
    assert betas[-1].item() == pytest.approx(1.0)
    assert bool(((annealed.damping > 0) & (annealed.damping < 1)).all())
    assert bool((annealed.step_sizes["z"] > 0).all())
    fresh = pv.DifferentiableAIS(small_vae(), torch.zeros(2, 2), num_transitions=2, step_size=0.2)
    torch.testing.assert_close(fresh.damping, torch.tensor([0.9]))
    torch.testing.assert_close(fresh.step_sizes["z"], torch.full((2, 2), 0.2))
    torch.testing.assert_close(fresh.inverse_temperatures, torch.tensor([0.5, 1.0]))


def test_long_steps_in_float32_are_not_taken_for_a_wrong_jacobian():
    """Leapfrog steps near the end of their stability stretch some directions ten thousandfold, and round as much."""
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    vae = pv.LinearGaussianVAE(weight, torch.zeros(6), 0.7)
    x = torch.ones(2, 6)
    annealed = pv.DifferentiableAIS(vae, x, num_transitions=12, step_size=0.46)
    assert pv.log_weights(annealed.model, annealed.guide, x, num_particles=2).isfinite().all()


# Other latents --------------------------------------------------------------------------------------------------------


def positive(x):
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(double(2.0), 1.0))
        pyro.sample("x", dist.Normal(rate.unsqueeze(-1), 0.5).to_event(1), obs=x)


def positive_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("rate", dist.LogNormal(x[:, 0].abs().log(), 0.6))


@torch.no_grad()
def test_latents_with_bounds_move_through_their_bijection():
    x = double([1.0, 2.5]).unsqueeze(-1)
    annealed = moved(pv.DifferentiableAIS(Pair(positive, positive_guide), x, num_transitions=2, step_size=0.1))
    prior = dist.Gamma(double(2.0), 1.0)
    joints = [lambda z, one=one: prior.log_prob(z) + dist.Normal(z, 0.5).log_prob(one) for one in x[:, 0]]
    log_px = torch.stack([quadrature(joint, 1e-6, 30.0) for joint in joints])
    assert_moved(annealed, x, ("rate",))
    assert_unbiased(pv.log_weights(annealed.model, annealed.guide, x, num_particles=20_000), log_px)


def chain(x):
    """z1 -> z2 -> x, with z2 in a plate of a datum's own parts."""
    with pyro.plate("data", len(x), dim=-2):
        z1 = pyro.sample("z1", dist.Normal(double(0.3), 1.0))
        with pyro.plate("parts", 2, dim=-1):
            z2 = pyro.sample("z2", dist.Normal(z1, 0.5))
            pyro.sample("x", dist.Normal(z2, 0.7), obs=x)


def chain_guide(x):
    with pyro.plate("data", len(x), dim=-2):
        z1 = pyro.sample("z1", dist.Normal(0.7 * x.mean(-1, keepdim=True), 0.7))
        with pyro.plate("parts", 2, dim=-1):
            pyro.sample("z2", dist.Normal(0.5 * (z1 + x), 0.5))


@torch.no_grad()
def test_several_latents_in_nested_plates_move_together():
    x = double([[0.5, 1.5], [-1.0, 0.2]])
    covariance = double([[1.25 + 0.49, 1.0], [1.0, 1.25 + 0.49]])
    log_px = dist.MultivariateNormal(double([0.3, 0.3]), covariance).log_prob(x)
    annealed = moved(pv.DifferentiableAIS(Pair(chain, chain_guide), x, num_transitions=3, step_size=0.1))
    assert {name: tuple(size.shape) for name, size in annealed.step_sizes.items()} == {"z1": (3,), "z2": (3,)}
    assert_moved(annealed, x, ("z1", "z2"))
    assert_unbiased(pv.log_weights(annealed.model, annealed.guide, x, num_particles=20_000), log_px)


@torch.no_grad()
def test_a_minibatch_that_the_plate_draws_is_one_for_all_steps():
    data = double([[0.5], [1.0], [2.0], [-1.0]])

    def program(draws: bool):
        def run(x):
            with pyro.plate("data", len(x), subsample_size=2, dim=-1) as rows:
                q = dist.Normal(0.4 * x[rows, 0], 0.9) if draws else STANDARD
                z = pyro.sample("z", q)
                if not draws:
                    pyro.sample("x", dist.Normal(z, 0.8), obs=x[rows, 0])

        return run

    pair = Pair(program(False), program(True))
    annealed = pv.DifferentiableAIS(pair, data, num_transitions=20, step_size=0.4)
    run = run_pair(annealed.model, annealed.guide, data, num_particles=300)
    rows = run.indices["data"]
    posterior = data[rows, 0] / 1.64
    # So many steps end near the posterior of those rows, wherever other rows would have led.
    assert (run.draws()["z"].mean(0) - posterior).abs().max() < 0.3
    assert len({tuple(run_pair(annealed.model, annealed.guide, data).indices["data"].tolist()) for _ in range(20)}) > 1
