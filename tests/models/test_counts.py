"""The likelihoods of counts: masses, precision, size factors, and the parameters of simulated data."""

import math

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from families import COUNTS, LIKELIHOODS
from helpers import HalfPrior, assert_within_standard_errors, doubles, refusal, small_vae, suite_seed

import pyrovae as pv


def scipy_log_mass(name: str, outputs: torch.Tensor, x: np.ndarray) -> np.ndarray:
    """The log-mass at counts x `(num, D)` for outputs of the family, `(D,)` or `(k, D)`."""
    values = outputs.numpy()
    if name == "poisson":
        return scipy.stats.poisson.logpmf(x, np.exp(values))
    mean, total = np.exp(values[:2])
    log_mass = scipy.stats.nbinom.logpmf(x, total, total / (total + mean))
    if name == "negative_binomial":
        return log_mass
    gate = 1 / (1 + np.exp(-values[2]))
    return np.log(np.where(x == 0, gate, 0) + (1 - gate) * np.exp(log_mass))


@pytest.mark.parametrize("name", COUNTS)
def test_masses_sum_to_one_are_those_of_scipy_and_give_mean_and_draws(name):
    likelihood, num = LIKELIHOODS[name](), 40_000
    outputs = 0.7 * doubles(*likelihood.output_shape((4,)))
    p = likelihood(outputs, event_dim=0 if name == "poisson" else 1)
    p = p if name == "poisson" else p.base_dist
    x = torch.arange(2_000, dtype=torch.float64)[:, None].expand(-1, 4)
    log_mass = p.log_prob(x)
    np.testing.assert_allclose(log_mass[:60], scipy_log_mass(name, outputs, x[:60].numpy()), rtol=1e-9, atol=1e-9)
    mass = log_mass.exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close((x * mass).sum(0), p.mean, rtol=1e-9, atol=0)
    variance = (x.square() * mass).sum(0) - p.mean.square()
    torch.testing.assert_close(variance, p.variance, rtol=1e-8, atol=0)
    draws = p.sample((num,))
    assert_within_standard_errors(draws.mean(0), p.mean, (variance / num).sqrt())
    assert_within_standard_errors((draws == 0).double().mean(0), mass[0], (mass[0] * (1 - mass[0]) / num).sqrt())


@pytest.mark.parametrize("name", COUNTS)
def test_float32_is_right_where_totals_and_counts_are_large_and_the_family_becomes_the_poisson(name):
    x = torch.tensor([0.0, 1.0, 30.0, 5_000.0])
    outputs = torch.stack((x.clamp(min=0.01).log(), torch.full((4,), 13.0), torch.full((4,), -30.0)))
    outputs = outputs[0] if name == "poisson" else outputs[: 2 if name == "negative_binomial" else 3]
    found = LIKELIHOODS[name]()(outputs, event_dim=1).log_prob(x)
    exact = LIKELIHOODS[name]()(outputs.double(), event_dim=1).log_prob(x.double())
    assert abs(found.item() - exact.item()) < 0.01  # PyTorch's formula for the negative binomial is off by 0.16
    at_most = LIKELIHOODS[name]()(outputs.double().clamp(max=15.0), event_dim=0 if name == "poisson" else 1)
    poisson = torch.distributions.Poisson(x.double().clamp(min=0.01)).log_prob(x.double())
    assert abs(at_most.log_prob(x.double()).sum() - poisson.sum()) < 0.02


def test_extra_zeros_can_be_expanded_and_weighed_after_their_mean_was_asked_for():
    p = pv.ZeroInflatedNegativeBinomial()(torch.tensor([[3.0], [8.0], [-200.0]]), event_dim=1)
    before = p.log_prob(torch.zeros(1))
    assert p.mean.isfinite().all()
    assert p.sample().isfinite().all()
    assert torch.equal(p.expand((4,)).log_prob(torch.zeros(1)), before.expand(4))


@pytest.mark.parametrize("name", [*COUNTS, "beta"])
def test_value_and_gradient_are_finite_at_any_output(name):
    likelihood = LIKELIHOODS[name]()
    ends = torch.tensor([-1e4, -200.0, -20.0, 0.0, 20.0])
    shape = likelihood.output_shape(())
    grid = torch.cartesian_prod(*[ends] * (shape[0] if shape else 1))
    outputs = (grid if shape else grid.flatten()).clone().requires_grad_()
    for value in (0.001, 0.5, 0.999) if name == "beta" else (0.0, 1.0, 300.0):
        found = likelihood(outputs, event_dim=0).log_prob(torch.full((len(grid),), value))
        (gradient,) = torch.autograd.grad(found.sum(), outputs)
        assert found.isfinite().all()
        assert gradient.isfinite().all()


def fitted(likelihood, x, size=None):
    """The outputs of largest likelihood for one column, and their covariance by the observed information."""
    outputs = torch.zeros(*likelihood.output_shape((1,)), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([outputs], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss(outputs):
        rows = outputs.expand(len(x), *outputs.shape)
        return -likelihood(rows, 1, size).log_prob(x).mean()

    def closure():
        optimiser.zero_grad()
        value = loss(outputs)
        value.backward()
        return value

    optimiser.step(closure)
    information = len(x) * torch.autograd.functional.hessian(loss, outputs.detach())
    size_of = outputs.numel()
    return outputs.detach().flatten(), information.reshape(size_of, size_of).inverse()


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("name", COUNTS)
def test_the_parameters_of_simulated_counts_are_recovered_within_standard_errors(name, sized):
    """An intercept alone as decoder; the data are drawn by NumPy."""
    generator, num = np.random.default_rng(suite_seed(0)), 4_000
    truth = {"mean": 4.0, "total_count": 2.5, "gate": 0.3}
    size = generator.uniform(0.5, 2.0, num) if sized else np.ones(num)
    if name == "poisson":
        x = generator.poisson(truth["mean"] * size)
    else:
        x = generator.poisson(generator.gamma(truth["total_count"], truth["mean"] * size / truth["total_count"]))
    if name == "zero_inflated":
        x = np.where(generator.random(num) < truth["gate"], 0, x)
    x = torch.from_numpy(x).double()[:, None]
    found, covariance = fitted(LIKELIHOODS[name](), x, torch.from_numpy(size) if sized else None)
    expected = [math.log(truth["mean"]), math.log(truth["total_count"]), math.log(0.3 / 0.7)][: len(found)]
    error = covariance.diagonal().sqrt()
    assert (error < 0.15).all()
    assert_within_standard_errors(found, torch.tensor(expected, dtype=torch.float64), error)


@pytest.mark.parametrize("name", COUNTS)
def test_a_trained_vae_recovers_the_rates_of_classes_under_size_factors(name):
    """With the weights of z held at 0, the decoder is a regression of counts on the class, with the size as offset."""
    torch.manual_seed(suite_seed(1))
    num, rates = 1_000, torch.tensor([[2.0, 0.5], [8.0, 3.0]])
    y, size = torch.arange(num) % 2, 0.5 + torch.rand(num)
    x = torch.poisson(size[:, None] * rates[y])
    vae = small_vae((2,), hidden=(), likelihood=LIKELIHOODS[name](), condition=[pv.OneHot(2), pv.SizeFactor()])
    weight = vae.decoder.output.weight
    with torch.no_grad():
        weight.zero_()
        weight.register_hook(lambda grad: torch.cat((torch.zeros_like(grad[:, :2]), grad[:, 2:]), 1))
    pv.fit(vae, [(x, y, size)], epochs=60, batch_size=250, lr=0.1, schedule="cosine", seed=suite_seed(0), compile=False)
    p = vae.decode(torch.zeros(2, 2), torch.tensor([0, 1]), torch.ones(2))
    totals = torch.stack([size[y == k].sum() for k in (0, 1)])[:, None]
    slack = 0.02 if name == "poisson" else 0.05  # of the optimiser
    assert_within_standard_errors(p.mean.detach(), rates, (rates / totals).sqrt() * 1.5 + slack * rates)
    doubled = vae.decode(torch.zeros(2, 2), torch.tensor([0, 1]), torch.full((2,), 2.0))
    torch.testing.assert_close(doubled.mean, 2 * p.mean)


def test_size_factors_reach_every_particle_and_are_checked():
    vae = small_vae((3,), likelihood=pv.NegativeBinomial(), condition=pv.SizeFactor()).double()
    x, size = torch.poisson(torch.full((5, 3), 4.0, dtype=torch.float64)), torch.linspace(0.5, 2, 5)
    with torch.no_grad():
        z = doubles(7, 5, 2)
        p = vae.decode(z, size)
        for n in range(5):
            own = vae.likelihood(vae.decoder(z[:, n]), 1, size[n].double().expand(7))
            torch.testing.assert_close(p.log_prob(x)[:, n], own.log_prob(x[n]))

    def guide(x, size):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", HalfPrior(vae.encode(x, size), vae.prior))

    estimate = pv.log_marginal(vae.model, guide, x, size, num_samples=2_000)
    exact, error = pv.quadrature_log_marginal(vae.model, x, size, num_points=101)
    assert_within_standard_errors(estimate.log_px, exact, estimate.standard_error + error)
    assert refusal(vae.check_data, x, size - 1) == "y must be > 0, got -0.5 at index 0"
    assert refusal(vae.check_data, x, size[:4]) == "y must have shape (5,), a size per datum, got (4,)"
    assert refusal(vae.check_data, x, size.long()) == "y must be a floating-point tensor, got torch.int64"
    assert refusal(vae.check_data, x, size * math.nan) == "y must be finite, got nan at index (0,)"
    message = "condition SizeFactor needs a likelihood of counts, got Gaussian"
    assert refusal(small_vae, condition=pv.SizeFactor()) == message
    two = [pv.SizeFactor(), pv.SizeFactor()]
    assert refusal(small_vae, likelihood=pv.Poisson(), condition=two).endswith("at most one SizeFactor, got 2")


@pytest.mark.parametrize("count", [1e5, 1e6, 1e7])
def test_a_poisson_of_many_counts_does_not_cancel_in_float32(count):
    log_rate, x = torch.tensor([math.log(1.001 * count)]), torch.tensor([count])
    found = pv.Poisson()(log_rate, event_dim=1).log_prob(x).item()
    assert found == pytest.approx(scipy.stats.poisson.logpmf(count, math.exp(log_rate.double().item())), rel=1e-5)
