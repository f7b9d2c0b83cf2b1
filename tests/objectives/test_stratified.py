"""Bounds for mixture guides with draws from each component: against formulas on the same noise, quadrature, and IWAE.

The model is z ~ N(0, 1), x ~ N(z + shift, 1): log p(x) is log N(x; shift, 2), the posterior N((x - shift) / 2, 1/2).
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error, suite_seed
from pyro import poutine

import pyrovae as pv
from pyrovae.objectives import IWAE, MISELBO, SIWAE
from pyrovae.programs import Reading, Stratified, log_shares, run_pair

X = torch.tensor([1.5, -0.4, 2.0], dtype=torch.float64)
NAMES = ("logits", "loc", "log_scale", "shift")


def number(*values):
    return torch.tensor(values, dtype=torch.float64)


class MixturePair:
    """A mixture of S Gaussians as the guide, with parameters `(S,)`, or `(batch, S)` of each datum's own."""

    def __init__(self, logits=(0.3, -0.5), loc=(0.2, 1.0), log_scale=(-0.3, 0.1), copies=None, plain=False):
        size = () if copies is None else (copies,)
        given = (number(*part).expand(*size, -1).clone() for part in (logits, loc, log_scale))
        self.logits, self.loc, self.log_scale = (part.requires_grad_() for part in given)
        self.shift = torch.zeros(size, dtype=torch.float64, requires_grad=True)
        self.plain = plain

    def parameters(self):
        return [getattr(self, name) for name in NAMES]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(number(0.0).squeeze(), 1.0))
            pyro.sample("x", dist.Normal(z + self.shift, 1.0), obs=x)

    def q(self, x):
        loc, scale = self.loc.expand(len(x), -1), self.log_scale.exp().expand(len(x), -1)
        if self.plain:
            return dist.Normal(loc[:, 0], scale[:, 0])
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits.expand(len(x), -1)), dist.Normal(loc, scale))

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.q(x))


def log_px(x):
    return dist.Normal(0.0, number(2.0).sqrt()).log_prob(x).squeeze()


def loss_and_gradients(objective, pair, x=X, seed=3):
    torch.manual_seed(suite_seed(seed))
    loss = objective.differentiable_loss(pair.model, pair.guide, x)
    gradients = torch.autograd.grad(loss, pair.parameters(), allow_unused=True)
    return loss.detach(), [torch.zeros(1) if g is None else g for g in gradients]


# Formulas on the captured noise ---------------------------------------------------------------------------------------


def captured(pair, sizes, seed=3, reading=Reading()):  # noqa: B008
    """Returns the noise e of z = loc_k + scale_k e that chunks of these sizes draw, `(K, batch)`."""
    torch.manual_seed(suite_seed(seed))
    parts = []
    with torch.no_grad():
        for size in sizes:
            component = torch.arange(size) % pair.loc.shape[-1]
            with Stratified():
                run = run_pair(pair.model, pair.guide, X, num_particles=size, reading=reading)
            z = run.draws()["z"]
            parts.append((z - pair.loc[component, None]) / pair.log_scale[component, None].exp())
    return torch.cat(parts)


def by_hand(kind, pair, noise, beta=1.0, x=X):
    """Returns the loss by the papers' formulas, with its graph, on this noise."""
    size = pair.loc.shape[-1]
    component = torch.arange(len(noise)) % size
    z = pair.loc[component, None] + pair.log_scale[component, None].exp() * noise
    prior, likelihood = dist.Normal(0.0, 1.0).log_prob(z), dist.Normal(z + pair.shift, 1.0).log_prob(x)
    each = dist.Normal(pair.loc, pair.log_scale.exp()).log_prob(z[..., None])
    weights = pair.logits.softmax(-1)
    log_q = (weights * each.exp()).sum(-1).log()
    w = (likelihood + beta * (prior - log_q)).exp()
    if kind is SIWAE:
        bound = (weights[component, None] * w).sum(0).div(len(noise) // size).log()
    else:
        bound = sum(weights[k] * w[component == k].mean(0).log() for k in range(size))
    return -bound.sum()


@pytest.mark.parametrize("kind", [SIWAE, MISELBO])
@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [6]),
        ({"chunk_size": 4}, [4, 2]),
        ({"vectorize_particles": False}, [6]),
    ],
    ids=["at once", "in chunks", "one by one"],
)
def test_value_and_gradient_are_the_papers_formula_on_the_captured_noise(kind, settings, sizes):
    pair = MixturePair()
    objective = kind(6, **settings)
    reading = Reading(vectorize_particles=settings.get("vectorize_particles", "auto"))
    objective.loss(pair.model, pair.guide, X)  # the layout is found
    loss, gradients = loss_and_gradients(objective, pair)
    expected = by_hand(kind, pair, captured(pair, sizes, reading=reading))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, pair.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
        assert theirs.abs().min() > 1e-3


@pytest.mark.parametrize("kind", [SIWAE, MISELBO])
def test_beta_weighs_prior_and_density_and_not_the_weights_of_components(kind):
    pair = MixturePair()
    noise = captured(pair, [4])

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(number(0.0).squeeze(), 1.0))
            pyro.sample("x", dist.Normal(z + pair.shift, 1.0), obs=x)

    torch.manual_seed(suite_seed(3))
    loss = kind(4).differentiable_loss(model, poutine.scale(pair.guide, 0.3), X)
    assert loss.item() == pytest.approx(by_hand(kind, pair, noise, beta=0.3).item(), abs=1e-9)


# Special cases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SIWAE, MISELBO])
def test_with_one_component_they_are_iwae_on_the_same_noise(kind):
    one = MixturePair((0.3,), (0.2,), (-0.3,))
    plain = MixturePair((0.3,), (0.2,), (-0.3,), plain=True)
    (loss, gradients), (expected, of_iwae) = loss_and_gradients(kind(5), one), loss_and_gradients(IWAE(5), plain)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    for ours, theirs in zip(gradients, of_iwae, strict=True):
        torch.testing.assert_close(ours, theirs.expand_as(ours).to(ours), atol=1e-9, rtol=0)


def bounds(objective, pair, x, copies, seed=0):
    """Returns independent values of the bound at one datum, `(copies,)`."""
    torch.manual_seed(suite_seed(seed))
    with torch.no_grad(), Stratified():
        run = run_pair(pair.model, pair.guide, x.expand(copies), num_particles=objective.num_draws)
        shares = log_shares(run)
        return objective.stratified_bound(run.terms().log_weights.unflatten(0, shares.shape[:2]), shares)


def test_equal_components_are_iwae_of_as_many_draws_in_distribution():
    size, copies = 3, 20_000
    even = MixturePair((0.0,) * size, (0.2,) * size, (0.1,) * size)
    plain = MixturePair((0.0,), (0.2,), (0.1,), plain=True)
    ours = bounds(SIWAE(size), even, X[:1], copies)
    with torch.no_grad():
        theirs = IWAE(size).bound(pv.log_weights(plain.model, plain.guide, X[:1].expand(copies), num_particles=size))
    for change in (lambda bound: bound, torch.exp, torch.square):
        (one, error), (other, its_error) = mean_and_error(change(ours)), mean_and_error(change(theirs))
        assert_within_standard_errors(one, other, (error**2 + its_error**2).sqrt())
    uneven = MixturePair((2.0, 0.0, -2.0), (0.2,) * size, (0.1,) * size)
    mean, error = mean_and_error(bounds(SIWAE(size), uneven, X[:1], copies))
    assert mean < theirs.mean() - 5 * error  # as of fewer draws


def test_an_exact_posterior_has_the_value_and_the_weights_gradient_without_variance():
    scale = math.log(0.5) / 2
    exact = MixturePair((0.3, -0.5), (0.75, 0.75), (scale, scale))
    for objective in (SIWAE(4), MISELBO(4), MISELBO(2)):
        loss, (of_logits, of_loc, *_) = loss_and_gradients(objective, exact, X[:1])
        assert -loss.item() == pytest.approx(log_px(X[0]).item(), abs=1e-12)
        assert of_logits.abs().max() < 1e-12
        assert of_loc.abs().max() > 1e-3  # the score of the density stays, as in IWAE


def test_a_bad_component_lowers_the_bound():
    """Beside the exact posterior N(0.75, 1/2) of x = 1.5, with log p(x) = -1.828, lies N(-0.5, 1)."""
    pair = MixturePair((0.0, 0.0), (0.75, -0.5), (math.log(0.5) / 2, 0.0))
    assert log_px(X[0]).item() == pytest.approx(-1.828, abs=5e-4)
    for kind, figure in ((SIWAE, -1.902), (MISELBO, -2.465)):
        exact = quadrature(kind, pair)
        assert exact.item() == pytest.approx(figure, abs=5e-4)
        mean, error = mean_and_error(bounds(kind(2), pair, X[:1], 20_000))
        assert_within_standard_errors(mean, exact, error)


def test_the_bound_rises_with_the_draws_of_each_component_and_never_passes_log_px():
    pair, truth = MixturePair((0.0, 0.0)), log_px(X[0])
    means = []
    for draws in (1, 2, 8):
        ours = bounds(SIWAE(2 * draws), pair, X[:1], 4_000)
        miselbo = bounds(MISELBO(2 * draws), pair, X[:1], 4_000)
        assert (miselbo <= ours + 1e-12).all()  # on the same draws
        means.append(mean_and_error(ours))
    for (lower, error), (higher, its_error) in zip(means, [*means[1:], (truth, torch.zeros(()))], strict=True):
        assert higher > lower + 3 * (error**2 + its_error**2).sqrt()


# Means of gradients ---------------------------------------------------------------------------------------------------


def quadrature(kind, pair, nodes=60):
    """Returns the exact bound at K = S = 2 and X[0], with its graph, by Gauss-Hermite over both draws."""
    points, mass = np.polynomial.hermite_e.hermegauss(nodes)
    e, m = torch.from_numpy(points), torch.from_numpy(mass / math.sqrt(2 * math.pi))
    z = pair.loc[:, None] + pair.log_scale[:, None].exp() * e  # (2, nodes)
    each = dist.Normal(pair.loc, pair.log_scale.exp()).log_prob(z[..., None])
    weights = pair.logits.softmax(-1)
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z + pair.shift, 1.0).log_prob(X[0])
    log_w = log_w - (weights * each.exp()).sum(-1).log()
    if kind is MISELBO:
        return (weights[:, None] * m * log_w).sum()
    both = torch.logaddexp(weights[0].log() + log_w[0][:, None], weights[1].log() + log_w[1][None])
    return (m[:, None] * m * both).sum()


@pytest.mark.parametrize("kind", [SIWAE, MISELBO])
def test_the_mean_gradient_is_that_of_the_exact_bound_in_the_weights_too(kind):
    copies = 20_000
    many, one = MixturePair(copies=copies), MixturePair()
    _, gradients = loss_and_gradients(kind(2), many, X[:1].expand(copies))
    exact = quadrature(kind, one)
    expected = torch.autograd.grad(exact, one.parameters())
    for name, ours, theirs in zip(NAMES, gradients, expected, strict=True):
        mean, error = mean_and_error(-ours)
        assert_within_standard_errors(mean, theirs, error, note=name)
        assert (theirs.abs() > 5 * error).any(), name


@pytest.mark.parametrize("kind", [SIWAE, MISELBO])
def test_a_weight_that_rounding_hides_has_no_part_and_makes_no_subnormal_number(kind):
    log_w = torch.tensor([0.0, -95.0]).reshape(2, 1, 1).requires_grad_()  # exp(-95) is subnormal in float32
    bound = kind(2).stratified_bound(log_w, torch.zeros(2, 1, 1))
    (slope,) = torch.autograd.grad(bound.sum(), log_w)
    assert slope.flatten().tolist() == [1.0, 0.0]
    assert bound.item() == pytest.approx(-math.log(2))
