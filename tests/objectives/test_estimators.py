"""Every objective's gradient against Pyro's and a formula written by hand, its mean, and identities between bounds."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from gradient_checks import EVERY, GUIDE, MODEL, assert_gradients, loss_and_gradients
from helpers import assert_within_standard_errors, draw, linear_gaussian, suite_seed
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

import pyrovae as pv
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MISELBO,
    MIWAE,
    OBJECTIVES,
    OVIS,
    PIWAE,
    SIWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    EnumeratedELBO,
    GDReG,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
)

# Against Pyro, where Pyro's is right -------------------------------------------------------------------------------

VECTORISED = {"vectorize_particles": True, "max_plate_nesting": 1}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ELBO(), Trace_ELBO()),
        (ELBO(4), Trace_ELBO(num_particles=4, **VECTORISED)),
        (AnalyticKLELBO(), TraceMeanField_ELBO()),
        (AnalyticKLELBO(3), TraceMeanField_ELBO(num_particles=3, **VECTORISED)),
        (IWAE(6), RenyiELBO(alpha=0, num_particles=6, **VECTORISED)),
        (Renyi(6, alpha=0.4), RenyiELBO(alpha=0.4, num_particles=6, **VECTORISED)),
        (Renyi(6, alpha=-1.5), RenyiELBO(alpha=-1.5, num_particles=6, **VECTORISED)),
        (Renyi(6, alpha=3.0), RenyiELBO(alpha=3.0, num_particles=6, **VECTORISED)),
    ],
)
def test_value_and_gradient_are_pyros_under_the_same_noise(ours, theirs, vae):
    x = draw(vae, 4)
    ours_loss, ours_grads = loss_and_gradients(ours, vae, x)
    theirs_loss, theirs_grads = loss_and_gradients(theirs, vae, x)
    assert ours_loss == pytest.approx(theirs_loss, abs=1e-10)
    assert_gradients(ours_grads, theirs_grads)


# Against formulas with the noise captured ----------------------------------------------------------------------------


def captured(vae, x, objective, seed=3):
    """Returns the noise e of z = A x + c + s e that the objective draws, `(K, batch, L)`."""
    torch.manual_seed(suite_seed(seed))
    q = vae.encode(x)
    with torch.no_grad():
        z = pv.programs.run_pair(vae.model, vae.guide, x, num_particles=objective.num_draws)
    z = z.guide_sites["z"]["value"]
    return ((z - q.mean) / q.stddev).detach()


def log_joint(vae, z, x):
    return vae.prior.log_prob(z) + vae.decode(z).log_prob(x)


def frozen_log_q(vae, z, x):
    """Returns log q(z|x) with the guide's parameters detached."""
    mean = x @ vae.guide_weight.detach().T + vae.guide_bias.detach()
    return dist.Normal(mean, vae.guide_log_scale.detach().exp()).log_prob(z).sum(-1)


def hand_gradient(objective, vae, x):
    """Returns the paper's gradient of the loss for each parameter, by a surrogate of its own on the captured noise."""
    noise = captured(vae, x, objective)
    count = len(noise)
    q = vae.encode(x)
    z = q.mean + q.stddev * noise  # with the guide's graph
    fixed = z.detach()
    log_p, log_q = log_joint(vae, fixed, x), q.log_prob(fixed)
    log_w = (log_p - log_q).detach()
    w = (log_w - log_w.logsumexp(0)).exp()

    def path(weights):
        # The model's parameters must not see this term: their gradient is put in apart.
        through = log_joint(vae, z, x) - frozen_log_q(vae, z, x)
        return (weights * through).sum(), [getattr(vae, name) for name in GUIDE]

    def gradient(of, names):
        grads = torch.autograd.grad(of, [getattr(vae, n) for n in names], retain_graph=True, allow_unused=True)
        return {n: torch.zeros_like(getattr(vae, n)) if g is None else g for n, g in zip(names, grads, strict=True)}

    def combine(model, through=None, score=None):
        result = gradient((model * log_p).sum(), MODEL) | {n: torch.zeros_like(getattr(vae, n)) for n in GUIDE}
        for part in ([path(through)[0]] if through is not None else []) + (
            [(score * log_q).sum()] if score is not None else []
        ):
            for name, value in gradient(part, GUIDE).items():
                result[name] = result[name] + value
        return {name: -value for name, value in result.items()}

    equal = torch.full_like(log_w, 1 / count)
    match objective:
        case StickingTheLanding():
            return combine(equal, equal)
        case ELBO():
            return combine(equal, equal, -equal)
        case GDReG():  # the prior is N(prior_mean, I): a draw at held noise moves with the mean
            leaf = fixed.clone().requires_grad_()
            log_ratio = log_joint(vae, leaf, x) - frozen_log_q(vae, leaf, x)
            along = w * vae.decode(leaf).log_prob(x) - w**2 * log_ratio
            (slope,) = torch.autograd.grad(along.sum(), leaf)
            return combine(w, w**2) | {"prior_mean": -slope.sum((0, 1))}
        case DReG():
            return combine(w, w**2)
        case IWAE():
            return combine(w, w, -w)
        case Renyi(alpha=alpha):
            tilted = ((1 - alpha) * log_w).exp()
            tilted = tilted / tilted.sum(0)
            return combine(tilted, tilted, -tilted)
        case PIWAE() | MIWAE():
            m, k = objective.num_batches, objective.num_particles
            groups = torch.cat([log_w[i * k : (i + 1) * k].softmax(0) for i in range(m)]) / m
            return combine(w if isinstance(objective, PIWAE) else groups, groups, -groups)
        case CIWAE(elbo_weight=c):
            mixed = c * equal + (1 - c) * w
            return combine(mixed, mixed, -mixed)
        case ReweightedWakeSleep():
            return combine(w, score=w)
        case VIMCO():
            learning = torch.empty_like(log_w)
            for k in range(count):
                others = [log_w[j] for j in range(count) if j != k]
                replaced = torch.stack([*others, torch.stack(others).mean(0)])
                learning[k] = log_w.logsumexp(0) - replaced.logsumexp(0)
            return combine(w, score=learning - w)
        case OVIS(gamma=gamma):
            rest = torch.stack([torch.cat((log_w[:k], log_w[k + 1 :])).logsumexp(0) for k in range(count)])
            control = rest - math.log(count - 1) - gamma * w + (1 - gamma) * math.log(1 - 1 / count)
            return combine(w, score=log_w.logsumexp(0) - math.log(count) - w - control)
        case ScoreFunction(baseline="none"):
            return combine(equal, score=log_w / count)
        case ScoreFunction():
            others = torch.stack([torch.cat((log_w[:k], log_w[k + 1 :])).mean(0) for k in range(count)])
            return combine(equal, score=(log_w - others) / count)
        case ThermodynamicVO():
            points = objective.points()
            model, score = torch.zeros_like(log_w), torch.zeros_like(log_w)
            for left, right in itertools.pairwise(points):
                tilted = (left * log_w).softmax(0)
                mean = (tilted * log_w).sum(0)
                correction = count / (count - 1) if left == 0 else 1.0
                covariance = correction * tilted * (log_w - mean)
                model = model + (right - left) * (tilted + left * covariance)
                score = score + (right - left) * (-tilted + (1 - left) * covariance)
            return combine(model, score=score)


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_the_gradient_is_the_papers_formula_on_the_captured_noise(objective, vae):
    x = draw(vae, 4)
    _, gradients = loss_and_gradients(objective, vae, x)
    assert_gradients(gradients, hand_gradient(objective, vae, x), atol=1e-9)


def test_every_objective_by_name_is_among_those_that_are_proved():
    proved = {type(objective) for objective in EVERY} | {AnalyticKLELBO, EnumeratedELBO}
    proved |= {SIWAE, MISELBO}  # which need a mixture: test_stratified.py
    assert proved == set(OBJECTIVES.values())


# Means ---------------------------------------------------------------------------------------------------------------


PAIRS, COPIES = 40, 128  # 5,120 draws


def gradient_draws(objective, vae, x, num):
    """Returns `num` independent gradients of the guide and of the model, `(num, parameters)`."""
    draws = []
    for seed in range(num):
        _, gradients = loss_and_gradients(objective, vae, x, seed)
        draws.append(torch.cat([gradients[name].flatten() for name in (*GUIDE, *MODEL)]))
    return torch.stack(draws)


_OF_REFERENCES: dict = {}


def reference_draws(objective, vae, x):
    """Returns the gradients that several estimators are compared with; every test has the same model and data."""
    if objective not in _OF_REFERENCES:
        _OF_REFERENCES[objective] = x, gradient_draws(objective, vae, x, PAIRS)
    assert torch.equal(_OF_REFERENCES[objective][0], x)
    return _OF_REFERENCES[objective][1]


@pytest.mark.parametrize(
    ("objective", "reference"),
    [
        (StickingTheLanding(3), ELBO(3)),
        (ScoreFunction(3), ELBO(3)),
        (ScoreFunction(3, baseline="leave_one_out"), ELBO(3)),
        (ThermodynamicVO(3, num_partitions=1), ELBO(3)),
        (DReG(3), IWAE(3)),
        (GDReG(3), IWAE(3)),
        (VIMCO(3), IWAE(3)),
        (OVIS(3), IWAE(3)),
    ],
    ids=str,
)
def test_estimators_of_one_gradient_have_one_mean(objective, reference, vae):
    x = draw(vae, 2).repeat(COPIES, 1)  # so many independent draws of each at a time
    one, other = gradient_draws(objective, vae, x, PAIRS), reference_draws(reference, vae, x)
    difference = one - other  # paired: on the same noise
    error = difference.std(0) / math.sqrt(PAIRS)
    assert_within_standard_errors(one.mean(0), other.mean(0), error)
    assert not torch.equal(one, other)


def test_the_naive_path_derivative_of_iwae_is_biased_and_dreg_is_not(vae):
    """With w~ in place of its square, the score term that was dropped does not have mean 0."""

    class Naive(IWAE):
        def coefficients(self, log_weights, beta):
            weights = log_weights.softmax(0)
            return pv.objectives.Coefficients(weights, path=weights)

    x = draw(vae, 2).repeat(COPIES, 1)
    iwae, dreg, naive = (gradient_draws(o, vae, x, PAIRS)[:, :10] for o in (IWAE(4), DReG(4), Naive(4)))

    def error(one):
        return (one - iwae).std(0) / math.sqrt(PAIRS)

    assert_within_standard_errors(dreg.mean(0), iwae.mean(0), error(dreg))
    assert ((naive - iwae).mean(0).abs() > 8 * error(naive)).any()


@pytest.mark.parametrize("objective", [StickingTheLanding(4), DReG(4)], ids=str)
def test_at_the_exact_posterior_the_guides_gradient_is_zero_without_variance(objective):
    vae = linear_gaussian(1, data_dim=3, latent_dim=1)  # in one dimension the best diagonal guide is the posterior
    x = draw(vae, 4)
    _, gradients = loss_and_gradients(objective, vae, x)
    _, total = loss_and_gradients(ELBO(4), vae, x)
    for name in GUIDE:
        assert gradients[name].abs().max() < 1e-9
        assert total[name].abs().max() > 1e-3


# Identities ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MIWAE(1, num_batches=4), ELBO(4)),
        (MIWAE(4, num_batches=1), IWAE(4)),
        (PIWAE(4, num_batches=1), IWAE(4)),
        (CIWAE(4, elbo_weight=1.0), ELBO(4)),
        (CIWAE(4, elbo_weight=0.0), IWAE(4)),
        (Renyi(4, alpha=0.0), IWAE(4)),
        (Renyi(4, alpha=1.0), ELBO(4)),
    ],
    ids=str,
)
def test_the_ends_of_a_family_are_the_members_that_it_joins(one, other, vae):
    x = draw(vae, 4)
    (loss, gradients), (expected, expected_gradients) = (loss_and_gradients(o, vae, x) for o in (one, other))
    assert loss == pytest.approx(expected, abs=1e-10)
    assert_gradients(gradients, expected_gradients)


def test_renyi_goes_to_the_elbo_as_alpha_goes_to_one(vae):
    x = draw(vae, 4)
    limit, _ = loss_and_gradients(ELBO(6), vae, x)
    near = [abs(loss_and_gradients(Renyi(6, alpha=1 - h), vae, x)[0] - limit) for h in (1e-2, 1e-3)]
    assert near[1] < 0.11 * near[0]


def test_miwae_with_swapped_axes_is_another_number(vae):
    log_w = torch.randn(6, 5, dtype=torch.float64)
    two_of_three = MIWAE(3, num_batches=2).bound(log_w)
    expected = 0.5 * (log_w[:3].logsumexp(0) + log_w[3:].logsumexp(0)) - math.log(3)
    torch.testing.assert_close(two_of_three, expected)
    assert (two_of_three - MIWAE(2, num_batches=3).bound(log_w)).abs().min() > 1e-3


def test_the_thermodynamic_sums_enclose_log_mean_w_and_meet_it_as_partitions_grow():
    log_w = 3 * torch.randn(50, 7, dtype=torch.float64)
    truth = IWAE(50).bound(log_w)
    gaps = []
    for partitions in (2, 10, 100, 1_000):
        left, right = ThermodynamicVO(50, num_partitions=partitions, first=1e-3).sums(log_w)
        assert (left <= truth).all()
        assert (truth <= right).all()
        gaps.append((right - left).max().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.05
