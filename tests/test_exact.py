"""The exact references themselves: each agrees with a second way to the same number."""

import math

import pytest
import torch
from exact import conjugate, discrete_states, hierarchical, hierarchical_gradients, semi_supervised, state_space, topics
from exact.expectations import beta_grid, hermite, log_mean_exp, log_mean_weight, logit_grid, normal_grid, over_two
from exact.hierarchical import OF_THETA, OF_Z, Hierarchy
from pyro import poutine
from torch import Tensor
from torch.testing import assert_close


def close(one, other, atol=1e-10):
    one, other = (torch.as_tensor(value, dtype=torch.float64) for value in (one, other))
    assert_close(one, other, rtol=0, atol=atol)


# Expectations ---------------------------------------------------------------------------------------------------------


def test_grids_have_the_moments_of_their_distributions():
    for nodes, p in (normal_grid(), hermite()):
        close([(p * nodes**power).sum() for power in range(5)], [1, 0, 1, 0, 3])
    for grid in (beta_grid, logit_grid):
        nodes, p = grid(3, 2)
        close([(p * nodes**power).sum() for power in range(3)], [1, 0.6, 0.4])


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_the_log_of_a_mean_of_weights_is_that_by_enumeration_of_tuples(spread):
    log_w = spread * torch.randn(5, 3).double() - 20
    p = torch.rand(5).double()
    p = p / p.sum()
    close(log_mean_weight(log_w, p, 1), (p[:, None] * log_w).sum(0))
    close(log_mean_weight(log_w, p, 2), over_two(log_mean_exp, log_w, p))
    triples = torch.cartesian_prod(*[torch.arange(5)] * 3)
    truth = (p[triples].prod(-1)[:, None] * log_mean_exp(log_w[triples].transpose(0, 1))).sum(0)
    close(log_mean_weight(log_w, p, 3), truth)
    close(log_mean_weight(log_w, p, 10**9), (p[:, None] * log_w.exp()).sum(0).log(), atol=1e-6)


# The hierarchy --------------------------------------------------------------------------------------------------------

X = hierarchical.data(3)


def test_the_hierarchy_has_its_closed_forms():
    pair, exact = Hierarchy(), Hierarchy().with_exact_local_guide().with_exact_global_guide(X)
    close(pair.bound(X, 1), pair.elbo(X))
    close([exact.elbo(X), exact.bound(X, 8)], [exact.log_evidence(X)] * 2)
    one = exact.with_exact_global_guide(X[:1])
    close([one.joint_bound(X[:1], count) for count in (1, 5)], [one.log_evidence(X[:1])] * 2, atol=1e-9)
    close(pair.joint_bound(X[:1], 1), pair.elbo(X[:1]))


def test_the_evidence_of_the_hierarchy_is_an_integral_over_theta():
    pair = Hierarchy()
    theta = torch.linspace(-9, 10, 4001, dtype=torch.float64)
    local = hierarchical.normal(X, theta[:, None] + 0.3, math.hypot(hierarchical.LATENT_SD, hierarchical.NOISE_SD))
    joint = local.sum(-1) + hierarchical.normal(theta, hierarchical.PRIOR_MEAN, hierarchical.PRIOR_SD)
    close(pair.log_evidence(X), joint.logsumexp(0) + (theta[1] - theta[0]).log())


def test_the_programs_of_the_hierarchy_have_its_densities():
    pair, x = Hierarchy(), X
    guide = poutine.trace(pair.guide).get_trace(x)
    model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(x)
    theta, z = (guide.nodes[name]["value"] for name in ("theta", "z"))
    noise = (z - 0.45 * x - 0.2 * theta - 0.25) / math.exp(-0.4)
    log_p, log_q = pair.densities(noise, theta, x)
    outer = hierarchical.normal(theta, 0.5, 1.5), hierarchical.normal(theta, 0.9, math.exp(-1.2))
    close(model.log_prob_sum(), log_p.sum() + outer[0])
    close(guide.log_prob_sum(), log_q.sum() + outer[1])


def test_gradients_of_the_hierarchy_have_a_second_form():
    """The bound's by two routes; the thermodynamic sum's; and of wake-phi nothing at the exact posterior."""
    pair = Hierarchy()
    for count, found in ((1, hierarchical_gradients.of_elbo(pair, X)), (2, hierarchical_gradients.of_bound(pair, X))):
        other = hierarchical_gradients.in_every_parameter(pair, lambda at, count=count: -at.bound(X, count))
        close([found[name] for name in other], list(other.values()), atol=1e-5)
    exact = pair.with_exact_local_guide()
    close([hierarchical_gradients.of_wake_phi(exact, X)[name] for name in OF_Z], [0.0] * 4, atol=1e-6)
    # Where all weights are equal, the sum is the ELBO, and so is its gradient by either rule.
    elbo = hierarchical_gradients.of_elbo(exact, X)
    for gradient in (hierarchical_gradients.of_thermodynamic, hierarchical_gradients.of_thermodynamic_sum):
        close([gradient(exact, X)[name] for name in elbo], [elbo[name] for name in elbo], atol=1e-6)


def test_theta_as_a_leaf_of_the_path_has_another_gradient():
    """Or no test of the rule could tell the two apart."""
    pair = Hierarchy()
    right, wrong = hierarchical_gradients.of_bound(pair, X), hierarchical_gradients.of_theta_as_leaf(pair, X)
    assert abs(wrong["mu"] - right["mu"]) > 0.4 * abs(right["mu"])
    assert all(wrong[name] == right[name] for name in wrong if name not in OF_THETA)


# Conjugate programs ---------------------------------------------------------------------------------------------------


def test_the_coin_and_the_regression_have_their_evidence():
    x = conjugate.tosses(7, 3)
    close(conjugate.coin_log_evidence(x), conjugate.coin_log_evidence_by_quadrature(x))
    close(conjugate.coin_elbo(x, *conjugate.coin_posterior(x)), conjugate.coin_log_evidence(x))
    f, p = logit_grid(2.5, 4.0)
    joint = torch.stack([torch.tensor(conjugate.coin_joint_at(x, one.item()), dtype=torch.float64) for one in f])
    proposal = 1.5 * f.log() + 3.0 * torch.log1p(-f) - conjugate.log_beta(2.5, 4.0)
    close(conjugate.coin_elbo(x, 2.5, 4.0), (p * (joint - proposal)).sum())
    inputs, y = conjugate.measurements()
    mean, covariance = conjugate.regression_posterior(inputs, y)
    close(conjugate.regression_elbo(inputs, y, mean, covariance), conjugate.regression_log_evidence(inputs, y))
    prior = torch.distributions.MultivariateNormal(
        torch.zeros(3).double(), conjugate.WEIGHT_SD**2 * torch.eye(3).double()
    )
    posterior = torch.distributions.MultivariateNormal(mean, covariance)
    w = torch.tensor([0.3, -0.5, 0.2]).double()
    likelihood = hierarchical.normal(y, inputs @ w, conjugate.NOISE_SD).sum()
    bayes = prior.log_prob(w) + likelihood - posterior.log_prob(w)
    close(conjugate.regression_log_evidence(inputs, y), bayes)


# States and topics ----------------------------------------------------------------------------------------------------


def test_the_kalman_likelihood_is_the_density_of_the_sequence():
    x, lengths = state_space.sequences()
    for row, length, value in zip(x, lengths, state_space.log_evidence(x, lengths), strict=True):
        close(value, state_space.log_evidence_at_once(row, int(length)))


def test_the_smoothing_guide_is_the_posterior():
    x, lengths = state_space.sequences()
    guide = state_space.SmoothingGuide()
    for programs in ((state_space.masked, guide.masked, x, lengths),):
        model, proposal, *args = programs
        drawn = poutine.trace(proposal).get_trace(*args)
        at = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*args)
        close(at.log_prob_sum() - drawn.log_prob_sum(), state_space.log_evidence(x, lengths).sum())
    for row, length in zip(x, lengths, strict=True):
        one = row[None], length[None]
        drawn = poutine.trace(guide.trimmed).get_trace(*one)
        at = poutine.trace(poutine.replay(state_space.trimmed, trace=drawn)).get_trace(*one)
        close(at.log_prob_sum() - drawn.log_prob_sum(), state_space.kalman(row, int(length)))


def test_the_forward_algorithm_is_the_sum_over_paths():
    x = torch.randn(4, 5).double()
    close(discrete_states.chain_log_px(x), discrete_states.chain_log_px_path_by_path(x))
    close(discrete_states.chain_log_px(x[:, :1]), discrete_states.mixture_log_px(x[:, 0]))


def test_topics_have_one_evidence_by_enumeration_and_by_quadrature():
    close(topics.log_evidence(topics.WORDS), topics.log_evidence_by_quadrature(topics.WORDS))


def test_bounds_of_topics_are_in_order_and_converge():
    elbo, bound = (topics.bound(topics.WORDS, count) for count in (1, 4))
    assert elbo < bound < topics.log_evidence(topics.WORDS)
    first = topics.WORDS[:, :1]
    close(topics.bound(first, 4), topics.bound(first, 4, step=0.25, num=24), atol=1e-6)


def test_labels_take_away_the_sum_over_classes():
    m2, (x, labels) = semi_supervised.M2(), semi_supervised.data()
    z = torch.randn(2, len(x), 2).double()
    each: list[Tensor] = [m2.log_weights(z, x, torch.full_like(labels, y)) for y in range(3)]
    whole = m2.log_weights(z, x, torch.full_like(labels, -1))
    close(whole, torch.stack(each).logsumexp(0))
    weights = [m2.bound(x, labels, count).detach() for count in (1, 100)]
    assert bool((weights[0] < weights[1]).all() and (weights[1] < m2.log_px(x, labels)).all())
    mixed = m2.log_weights(z, x, labels)
    for n, label in enumerate(labels.tolist()):
        close(mixed[:, n], whole[:, n] if label < 0 else each[label][:, n])
