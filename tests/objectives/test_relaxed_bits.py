"""Relaxed bits: what their KL, their likelihood and straight-through draws are off by."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error
from pyro.infer import Trace_ELBO
from scalar_pairs import double
from torch import Tensor

from pyrovae.objectives import ELBO

LOGIT, PRIOR_LOGIT = double(1.2), double(-0.4)


def log_likelihood(z: Tensor) -> Tensor:
    """Returns log p(x|z) of x = 1, with a decoder that is far from linear between the corners."""
    return dist.Normal(2 * torch.tanh(4 * z - 1), 0.7).log_prob(double(1.0))


def logistic_kl(d: Tensor) -> Tensor:
    """Returns the KL between logistic distributions of scale 1 whose means differ by d."""
    return d / torch.tanh(d / 2) - 2


def slope(value: Tensor, at: Tensor) -> float:
    return torch.autograd.grad(value, at)[0].item()


def discrete_slopes() -> tuple[float, float]:
    """Returns d/d logit of E log p(x|b), over the two values of the bit, and of KL(q(b) || p(b))."""
    logit = LOGIT.clone().requires_grad_()
    one = torch.sigmoid(logit) * log_likelihood(double(1.0)) + torch.sigmoid(-logit) * log_likelihood(double(0.0))
    kl = torch.distributions.kl_divergence(dist.Bernoulli(logits=logit), dist.Bernoulli(logits=PRIOR_LOGIT))
    return slope(one, logit), slope(kl, logit)


def relaxed_slopes(temperature: float, hard: bool) -> tuple[float, float]:
    """Returns the mean gradient of E log p(x|z) through relaxed draws, and d/d logit of the relaxed densities' KL."""
    noise = torch.linspace(-40, 40, 400_000, dtype=torch.float64) - LOGIT  # z = 1/2 lies halfway between two nodes
    weight = torch.sigmoid(noise) * torch.sigmoid(-noise) * (noise[1] - noise[0])
    logit = LOGIT.clone().requires_grad_()
    z = torch.sigmoid((logit + noise) / temperature)
    if hard:
        z = z.round().detach() + z - z.detach()
    return slope((weight * log_likelihood(z)).sum(), logit), slope(logistic_kl(logit - PRIOR_LOGIT), logit)


def relaxed_draws(temperature: float, hard: bool, runs: int = 0, num: int = 40_000) -> tuple[Tensor, Tensor]:
    """Returns a mean of the relaxed pair's ELBO for each of so many runs, and its gradient in the logit of every datum.

    Straight through by Pyro's own ELBO: ours refuses a draw whose density is that of another value.
    """
    family = dist.RelaxedBernoulliStraightThrough if hard else dist.RelaxedBernoulli
    objective = Trace_ELBO() if hard else ELBO(1)
    logits = LOGIT.expand(num).clone().requires_grad_()
    tau = double(temperature)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", family(tau, logits=PRIOR_LOGIT))
            pyro.sample("x", dist.Normal(2 * torch.tanh(4 * z - 1), 0.7), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family(tau, logits=logits))

    x = torch.ones(num, dtype=torch.float64)
    values = [-objective.loss(model, guide, x) / num for _ in range(runs)]
    objective.differentiable_loss(model, guide, x).backward()
    return torch.tensor(values), -logits.grad


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_the_kl_of_relaxed_bits_is_that_of_logistics_at_every_temperature(temperature):
    tau = double(temperature)
    q, p = (dist.RelaxedBernoulli(tau, logits=v) for v in (LOGIT, PRIOR_LOGIT))
    y = torch.linspace(-36, 36, 400_001, dtype=torch.float64)  # the logit of z, where z is below 1 in double
    z = torch.sigmoid(y)
    weight = (q.log_prob(z).exp() * z * (1 - z)) * (y[1] - y[0])
    kl = (weight * (q.log_prob(z) - p.log_prob(z))).sum()
    assert weight.sum().item() == pytest.approx(1, abs=1e-3)
    assert kl.item() == pytest.approx(logistic_kl(LOGIT - PRIOR_LOGIT).item(), abs=1e-3)


@pytest.mark.usefixtures("pairs_unchecked")
@pytest.mark.parametrize("temperature", [0.3, 0.5, 2.0])
def test_the_relaxed_elbo_has_its_own_gradient_without_bias_and_not_that_of_the_bits(temperature):
    likelihood, kl = relaxed_slopes(temperature, hard=False)
    mean, error = mean_and_error(relaxed_draws(temperature, hard=False)[1])
    assert_within_standard_errors(mean, likelihood - kl, error)
    true_likelihood, true_kl = discrete_slopes()
    with pytest.raises(AssertionError, match="standard errors apart"):
        assert_within_standard_errors(mean, true_likelihood - true_kl, error)


def test_the_bias_of_relaxed_likelihoods_goes_with_the_temperature_and_that_of_the_relaxed_kl_stays():
    truth, kl = discrete_slopes()
    biases = [abs(relaxed_slopes(t, hard=False)[0] - truth) for t in (2.0, 0.5, 0.1, 0.02)]
    assert biases == sorted(biases, reverse=True)
    assert biases[0] > 0.3 * abs(truth)
    assert biases[-1] < 0.05 * abs(truth)
    assert abs(relaxed_slopes(0.02, hard=False)[1] - kl) > 0.1


@pytest.mark.parametrize("temperature", [0.2, 2.0])
def test_a_straight_through_draw_has_the_value_of_the_bits_and_a_biased_gradient(temperature):
    values, gradients = relaxed_draws(temperature, hard=True, runs=20)
    at = [torch.sigmoid(sign * LOGIT) * log_likelihood(double(bit)) for sign, bit in ((1, 1.0), (-1, 0.0))]
    mean, error = mean_and_error(values)
    assert_within_standard_errors(mean, sum(at) - logistic_kl(LOGIT - PRIOR_LOGIT), error)
    likelihood, kl = relaxed_slopes(temperature, hard=True)
    mean, error = mean_and_error(gradients)
    assert_within_standard_errors(mean, likelihood - kl, error)
    with pytest.raises(AssertionError, match="standard errors apart"):
        assert_within_standard_errors(mean, discrete_slopes()[0] - kl, error)


def test_the_straight_through_gradient_of_a_cold_bit_is_the_trapezoidal_rule_of_the_difference():
    """It goes to p(1 - p) (f'(0) + f'(1)) / 2, which is p(1 - p) (f(1) - f(0)) only if f is quadratic."""
    corner = [double(bit).requires_grad_() for bit in (0.0, 1.0)]
    ends = sum(slope(log_likelihood(z), z) for z in corner)
    chance = torch.sigmoid(LOGIT) * torch.sigmoid(-LOGIT)
    cold = relaxed_slopes(0.005, hard=True)[0]
    assert cold == pytest.approx(chance.item() * ends / 2, rel=0.01)
    assert abs(cold - discrete_slopes()[0]) > 0.1 * abs(discrete_slopes()[0])
