"""Every objective's gradient: against Pyro's, a formula written by hand, enumeration, and its mean."""

import itertools
import math
from dataclasses import FrozenInstanceError, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, draw, linear_gaussian, suite_seed
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

import pyrovae as pv
from pyrovae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    OBJECTIVES,
    PIWAE,
    VIMCO,
    AnalyticKLELBO,
    DReG,
    EnumeratedELBO,
    Renyi,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    ThermodynamicVO,
    from_name,
)

EVERY = [
    ELBO(5),
    StickingTheLanding(5),
    IWAE(5),
    DReG(5),
    Renyi(5, alpha=0.4),
    MIWAE(3, num_batches=2),
    PIWAE(3, num_batches=2),
    CIWAE(5, elbo_weight=0.3),
    ReweightedWakeSleep(5),
    VIMCO(5),
    ScoreFunction(5),
    ScoreFunction(5, baseline="leave_one_out"),
    ThermodynamicVO(5, num_partitions=3),
]
MODEL = ("weight", "bias", "prior_mean", "log_scale")
GUIDE = ("guide_weight", "guide_bias", "guide_log_scale")


@pytest.fixture
def vae():
    """A closed-form pair whose guide is off, in mean and in scale."""
    made = linear_gaussian(0, data_dim=3, latent_dim=2)
    with torch.no_grad():
        made.guide_log_scale.add_(0.3)
        made.guide_weight.mul_(0.8)
    return made


def loss_and_gradients(objective, vae, x, seed=3, model=None, guide=None):
    torch.manual_seed(suite_seed(seed))
    vae.zero_grad()
    loss = objective.loss_and_grads(model or vae.model, guide or vae.guide, x)
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in vae.named_parameters()}
    return loss, grads


def assert_gradients(ours, theirs, atol=1e-10):
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=atol, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


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
    """The noise e of z = A x + c + s e that the objective draws, `(K, batch, L)`."""
    torch.manual_seed(suite_seed(seed))
    q = vae.encode(x)
    with torch.no_grad():
        z = pv.programs.run_pair(vae.model, vae.guide, x, num_particles=objective.num_draws)
    z = z.guide_sites["z"]["value"]
    return ((z - q.mean) / q.stddev).detach()


def log_joint(vae, z, x):
    return vae.prior.log_prob(z) + vae.decode(z).log_prob(x)


def frozen_log_q(vae, z, x):
    """log q(z|x) with the guide's parameters detached."""
    mean = x @ vae.guide_weight.detach().T + vae.guide_bias.detach()
    return dist.Normal(mean, vae.guide_log_scale.detach().exp()).log_prob(z).sum(-1)


def hand_gradient(objective, vae, x):
    """The paper's estimator as a surrogate of its own, on the captured noise: `{parameter: gradient of the loss}`."""
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
    assert proved == set(OBJECTIVES.values())


# Means ---------------------------------------------------------------------------------------------------------------


PAIRS = 160  # of 64 draws each: 10,240


def gradient_draws(objective, vae, x, num):
    """`(num, parameters)` gradients of the guide, and of the model: independent draws, the data repeated."""
    draws = []
    for seed in range(num):
        _, gradients = loss_and_gradients(objective, vae, x, seed)
        draws.append(torch.cat([gradients[name].flatten() for name in (*GUIDE, *MODEL)]))
    return torch.stack(draws)


@pytest.mark.parametrize(
    ("objective", "reference"),
    [
        (StickingTheLanding(3), ELBO(3)),
        (ScoreFunction(3), ELBO(3)),
        (ScoreFunction(3, baseline="leave_one_out"), ELBO(3)),
        (ThermodynamicVO(3, num_partitions=1), ELBO(3)),
        (DReG(3), IWAE(3)),
        (VIMCO(3), IWAE(3)),
    ],
    ids=str,
)
def test_estimators_of_one_gradient_have_one_mean(objective, reference, vae):
    x = draw(vae, 2).repeat(64, 1)  # 64 independent draws of each at a time
    one, other = (gradient_draws(o, vae, x, PAIRS) for o in (objective, reference))
    difference = one - other  # paired: on the same noise
    error = difference.std(0) / math.sqrt(PAIRS)
    assert_within_standard_errors(one.mean(0), other.mean(0), error)
    assert not torch.equal(one, other)


def test_the_naive_path_derivative_of_iwae_is_biased_and_dreg_is_not(vae):
    """With one w~ in place of its square the score term that was dropped does not have mean 0."""

    class Naive(IWAE):
        def coefficients(self, log_weights, beta):
            weights = log_weights.softmax(0)
            return pv.objectives.Coefficients(weights, path=weights)

    x = draw(vae, 2).repeat(64, 1)
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


# Discrete latents, enumerated ----------------------------------------------------------------------------------------


class BinaryPair(torch.nn.Module):
    """Four binary latents with logits that depend on x, and a Gaussian decoder: small enough to enumerate."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(suite_seed(5))

        def parameter(*shape):
            return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.prior_logits, self.weight = parameter(4), parameter(4, 2)
        self.guide_weight, self.guide_bias = parameter(2, 4), parameter(4)

    def prior(self):
        return dist.Bernoulli(logits=self.prior_logits).to_event(1)

    def decode(self, z):
        return dist.Normal(z @ self.weight, 1.0).to_event(1)

    def encode(self, x):
        return dist.Bernoulli(logits=x @ self.guide_weight + self.guide_bias).to_event(1)

    def model(self, x):
        pyro.module("binary", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.decode(pyro.sample("z", self.prior())), obs=x)

    def guide(self, x):
        pyro.module("binary", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))


@pytest.mark.parametrize(("objective", "bound"), [
    (VIMCO(2), IWAE(2)),
    (VIMCO(3), IWAE(3)),
    (ScoreFunction(1), ELBO(1)),
    (ScoreFunction(2, baseline="leave_one_out"), ELBO(2)),
], ids=str)  # fmt: skip
def test_on_binary_latents_the_mean_gradient_is_the_exact_one_by_enumeration(objective, bound):
    pair, count = BinaryPair(), objective.num_particles
    x = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
    log_p = pair.prior().log_prob(states) + pair.decode(states).log_prob(x)
    log_q = pair.encode(x).log_prob(states)
    tuples = torch.cartesian_prod(*[torch.arange(16)] * count).reshape(-1, count)
    values = bound.bound((log_p - log_q)[tuples].T)
    exact = (log_q[tuples].sum(-1).exp() * values).sum()
    gradients = torch.autograd.grad(-exact, list(pair.parameters()))
    truth = torch.cat([g.flatten() for g in gradients])
    draws = []
    for seed in range(60):
        torch.manual_seed(suite_seed(seed))
        pair.zero_grad()
        objective.loss_and_grads(pair.model, pair.guide, x.expand(2_000, 2))
        draws.append(torch.cat([p.grad.flatten() for p in pair.parameters()]) / 2_000)
    draws = torch.stack(draws)
    assert_within_standard_errors(draws.mean(0), truth, draws.std(0) / math.sqrt(60))


# The interface -------------------------------------------------------------------------------------------------------


def test_an_objective_is_a_small_value():
    assert IWAE(50) == IWAE(num_particles=50) == from_name("iwae", num_particles=50)
    assert IWAE(50) != IWAE(49)
    assert IWAE(50) != DReG(50)
    assert len({IWAE(50), IWAE(50), DReG(50)}) == 2
    assert "num_particles=50" in repr(IWAE(50))
    with pytest.raises(FrozenInstanceError):
        IWAE(50).num_particles = 3


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_an_objective_serves_svi_a_torch_module_and_fit(objective):
    x = torch.randn(8, 2)

    def make():
        torch.manual_seed(suite_seed(0))
        return pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5))

    def flat(vae):
        return torch.cat([p.detach().flatten() for p in vae.parameters()])

    by_svi, by_hand = make(), make()
    torch.manual_seed(suite_seed(1))
    loss = SVI(by_svi.model, by_svi.guide, pyro.optim.SGD({"lr": 0.01}), objective).step(x)
    torch.manual_seed(suite_seed(1))
    module_loss = objective.differentiable_loss(by_hand.model, by_hand.guide, x)
    module_loss.backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.01).step()
    assert module_loss.item() == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(flat(by_svi), flat(by_hand))
    assert not torch.equal(flat(by_svi), flat(make()))
    assert math.isfinite(pv.fit(make(), x, epochs=1, objective=objective).loss[0])


def recorded(vae):
    """The guide of `vae`, and a list of the draws of each of its runs from now on."""
    draws = []

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            draws.append(pyro.sample("z", vae.encode(x)).detach())

    return guide, draws


class Shifted(dist.TorchDistribution):
    """q(z|x) whose draw is mean + stddev * noise, given."""

    has_rsample = True
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base, noise, batch_shape=None):
        self.base, self.noise = base, noise
        shape = base.batch_shape if batch_shape is None else batch_shape
        super().__init__(shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Shifted(self.base, self.noise, batch_shape)

    def rsample(self, sample_shape=()):
        noise = self.noise[: self.batch_shape[0]] if len(self.batch_shape) == 2 else self.noise[0]
        return self.base.mean + self.base.stddev * noise

    def log_prob(self, value):
        return self.base.log_prob(value)


@pytest.mark.parametrize("objective", [IWAE(7), DReG(7), MIWAE(3, num_batches=2)], ids=str)
def test_particles_in_chunks_give_the_same_loss(objective, vae):
    x, chunked = draw(vae, 4), replace(objective, chunk_size=3)
    guide, draws = recorded(vae)
    with torch.no_grad():
        chunked.loss(vae.model, guide, x)  # the gate looks at the pair
        draws.clear()
        found = chunked.loss(vae.model, guide, x)
        z = torch.cat(draws[2:])  # after a look at what else the programs draw
        expected = pv.programs.pair_at(vae.model, vae.guide, {"z": z}, x).terms().log_weights
    assert len(z.flatten().unique()) == z.numel()
    assert found == pytest.approx(-objective.bound(expected).sum().item(), abs=1e-10)


@pytest.mark.parametrize("objective", [o for o in EVERY if not isinstance(o, MIWAE)], ids=str)
def test_the_gradient_in_chunks_is_that_of_the_whole_on_the_chunks_draws(objective, vae):
    x, chunked = draw(vae, 4), replace(objective, chunk_size=2)
    recording, draws = recorded(vae)
    chunked.loss(vae.model, recording, x)
    draws.clear()
    _, gradients = loss_and_gradients(chunked, vae, x, guide=recording)
    z = torch.cat(draws[2:5])  # after a look at what else the programs draw
    noise = ((z - vae.encode(x).mean) / vae.encode(x).stddev).detach()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Shifted(vae.encode(x), noise))

    _, expected = loss_and_gradients(objective, vae, x, guide=guide)
    assert_gradients(gradients, expected, atol=1e-9)


@pytest.mark.parametrize("objective", [ELBO(3), StickingTheLanding(3), IWAE(3), DReG(3), CIWAE(3)], ids=str)
def test_beta_weighs_the_latent_terms_of_the_weights(objective):
    vae = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5), beta=3.0).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    torch.manual_seed(suite_seed(1))
    terms = pv.programs.run_pair(vae.model, vae.guide, x, num_particles=3).terms()
    expected = objective.bound(terms.log_likelihood + 3.0 * (terms.log_prior - terms.log_posterior)).sum()
    torch.manual_seed(suite_seed(1))
    assert -objective.loss(vae.model, vae.guide, x) == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("objective", [ReweightedWakeSleep(3), ThermodynamicVO(3)], ids=str)
def test_an_objective_that_has_no_beta_refuses_one(objective):
    vae = pv.VAE((2,), latent_dim=2, hidden=(4,), likelihood=pv.Gaussian(0.5), beta=3.0)
    with pytest.raises(pv.InputError, match="is not defined for a beta on the latents, got 3"):
        pv.fit(vae, torch.randn(5, 2), epochs=1, objective=objective)


# Guides of every kind ------------------------------------------------------------------------------------------------


def guides():
    """Guides with parameters a, of which the path derivative is had without knowing what they are."""

    def normal(a, x):
        pyro.sample("z", dist.Normal(a[0] * x, a[1].exp()).to_event(1))

    def multivariate(a, x):
        tril = torch.eye(2, dtype=x.dtype) * a[1].exp() + torch.tensor([[0, 0], [1, 0]], dtype=x.dtype) * a[0]
        pyro.sample("z", dist.MultivariateNormal(a[0] * x, scale_tril=tril))

    def flow(a, x):
        affine = dist.transforms.AffineTransform(a[1] * torch.ones(2, dtype=x.dtype), 1.5, event_dim=1)
        base = dist.Normal(a[0] * x, 0.7 * torch.ones(2, dtype=x.dtype)).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [affine]))

    def independent_flows(a, x):
        onto = [dist.transforms.AffineTransform(a[1], 0.8), dist.transforms.TanhTransform()]
        onto.append(dist.transforms.AffineTransform(a[0], 3.0))
        base = dist.Normal(a[0] * x, 0.7)
        pyro.sample("z", dist.TransformedDistribution(base, onto).to_event(1))

    def independent_multivariates(a, x):
        loc = torch.stack((a[0] * x, x + a[1]), -2)  # two independent vectors per datum
        tril = torch.eye(2, dtype=x.dtype) * a[1].exp() + torch.tensor([[0, 0], [1, 0]], dtype=x.dtype) * a[0]
        pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril).to_event(1))

    def log_normal(a, x):
        pyro.sample("z", dist.LogNormal(a[0] * x, a[1].exp()).to_event(1))

    def two_sites(a, x):
        z1 = pyro.sample("z1", dist.Normal(a[0] * x, 0.5).to_event(1))
        pyro.sample("z", dist.Normal(a[1] * z1 + x, 0.6).to_event(1))

    return {f.__name__: f for f in (
        normal, multivariate, flow, independent_flows, independent_multivariates, log_normal, two_sites,
    )}  # fmt: skip


@pytest.mark.parametrize("kind", guides())
@pytest.mark.parametrize("objective", [StickingTheLanding(3), DReG(3)], ids=str)
def test_the_path_derivative_is_that_of_the_parameters_detached_by_hand(kind, objective):
    a = torch.tensor([0.7, -0.3], dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 2, dtype=torch.float64)

    def guide_at(parameter):
        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                guides()[kind](parameter, x)

        return guide

    def model(x):
        one = torch.ones(2, dtype=x.dtype)
        with pyro.plate("data", len(x), dim=-1):
            if kind == "two_sites":
                centre = pyro.sample("z1", dist.Normal(0 * one, one).to_event(1))
            else:
                centre = torch.zeros(2, dtype=x.dtype)
            prior = dist.LogNormal(0 * one, one) if kind == "log_normal" else dist.Normal(centre, one)
            if kind == "independent_multivariates":
                z = pyro.sample("z", prior.expand((2, 2)).to_event(2)).sum(-2)
            else:
                z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z, one).to_event(1), obs=x)

    torch.manual_seed(suite_seed(1))
    objective.loss_and_grads(model, guide_at(a), x)
    ours = a.grad.clone()

    # By hand: the draws with their graph, and the density of the same family with its parameter detached.
    torch.manual_seed(suite_seed(1))
    with pyro.plate("num_particles", 3, dim=-2):
        drawn = pyro.poutine.trace(guide_at(a)).get_trace(x)
        frozen = pyro.poutine.trace(pyro.poutine.condition(guide_at(a.detach()), data={
            n: drawn.nodes[n]["value"] for n in ("z1", "z") if n in drawn.nodes})).get_trace(x)  # fmt: skip
        joint = pyro.poutine.trace(pyro.poutine.replay(model, trace=drawn)).get_trace(x)
    frozen.compute_log_prob()
    joint.compute_log_prob()
    log_w = sum(joint.nodes[n]["log_prob"] for n in ("z1", "z", "x") if n in joint.nodes)
    log_w = log_w - sum(frozen.nodes[n]["log_prob"] for n in ("z1", "z") if n in frozen.nodes)
    weights = log_w.detach().softmax(0).square() if isinstance(objective, DReG) else torch.full_like(log_w, 1 / 3)
    (expected,) = torch.autograd.grad(-(weights.detach() * log_w).sum(), a)
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_a_parameter_that_model_and_guide_share_gets_the_sum_of_its_two_gradients(objective):
    x = torch.randn(4, 2, dtype=torch.float64)

    def gradients(of_model, of_guide):
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(of_model * z, of_model.exp()).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(of_guide * x, of_guide.exp()).to_event(1))

        torch.manual_seed(suite_seed(2))
        objective.loss_and_grads(model, guide, x)

    apart = [torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    shared = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    gradients(*apart)
    gradients(shared, shared)
    assert apart[0].grad != 0
    assert apart[1].grad != 0
    torch.testing.assert_close(shared.grad, apart[0].grad + apart[1].grad, atol=1e-10, rtol=1e-10)


def test_sleep_phi_is_the_guides_log_density_at_the_models_own_draws(vae):
    x = draw(vae, 50)
    objective = ReweightedWakeSleep(2, sleep_weight=1.0)
    num, draws = 200, []
    for seed in range(num):
        _, gradients = loss_and_gradients(objective, vae, x, seed)
        draws.append(torch.cat([gradients[name].flatten() for name in GUIDE]))
    draws = torch.stack(draws)
    # The mean over (x, z) ~ p of -d log q(z|x), in closed form by many draws of the joint.
    torch.manual_seed(suite_seed(0))
    with torch.no_grad():
        z = vae.prior.sample((200_000,))
        dream = vae.decode(z).sample()
    loss = -vae.encode(dream).log_prob(z).mean() * 50
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [getattr(vae, n) for n in GUIDE])])
    error = draws.std(0) * math.sqrt(1 / num + 50 / 200_000)
    assert_within_standard_errors(draws.mean(0), truth, error)


# Signal to noise (Rainforth et al. 2018) -----------------------------------------------------------------------------


class RainforthPair:
    """Their model, D = 20: z ~ N(mu, I), x|z ~ N(z, I), q = N(A x + b, (2/3) I), parameters near the optimum.

    mu and b are one per datum, so that one backward pass gives as many independent gradients as there are data.
    """

    def __init__(self, num_draws):
        torch.manual_seed(suite_seed(0))
        self.x = torch.randn(1, 20, dtype=torch.float64) * 2**0.5
        mu, b = 0.01 * torch.randn(2, 20, dtype=torch.float64)
        self.slope = 0.5 * torch.eye(20, dtype=torch.float64) + 0.01 * torch.randn(20, 20, dtype=torch.float64)
        self.mu, self.b = (p.expand(num_draws, 20).clone().requires_grad_() for p in (mu, b))
        self.data = self.x.expand(num_draws, 20)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ self.slope.T + self.b, (2 / 3) ** 0.5).to_event(1))

    def gradients(self, objective, seed):
        torch.manual_seed(suite_seed(seed))
        self.mu.grad = self.b.grad = None
        objective.loss_and_grads(self.model, self.guide, self.data)
        return self.mu.grad.clone(), self.b.grad.clone()


def signal_to_noise(mean_by, deviation_by, num_draws=500, repeats=2):
    """SNR of (model, guide): mean from the one estimator and standard deviation from the other, over coordinates."""
    pair = RainforthPair(num_draws)
    means = [torch.cat(p) for p in zip(*(pair.gradients(mean_by, s) for s in range(repeats)), strict=True)]
    noise = [torch.cat(p) for p in zip(*(pair.gradients(deviation_by, 100 + s) for s in range(repeats)), strict=True)]
    return [(m.mean(0).norm() / n.std(0).norm()).item() for m, n in zip(means, noise, strict=True)]


def slope(sizes, values):
    logs = torch.tensor([sizes, values], dtype=torch.float64).log()
    centred = logs - logs.mean(1, keepdim=True)
    return ((centred[0] * centred[1]).sum() / centred[0].square().sum()).item()


def test_the_guides_signal_to_noise_falls_as_the_root_of_k_and_the_models_rises():
    """A raw SNR estimate has a floor of sqrt(2 / (pi T)): the mean is DReG's, the deviation IWAE's."""
    sizes = (1, 10, 100, 1_000)
    model, guide = zip(*(signal_to_noise(DReG(k), IWAE(k)) for k in sizes), strict=True)
    assert slope(sizes, guide) == pytest.approx(-0.5, abs=0.1), guide
    assert slope(sizes, model) == pytest.approx(0.5, abs=0.1), model


def test_with_more_batches_both_signals_rise_as_the_root_of_m():
    sizes = (1, 10, 100)
    pairs = [signal_to_noise(DReG(10), MIWAE(10, num_batches=m)) for m in sizes]
    model, guide = zip(*pairs, strict=True)
    assert slope(sizes, guide) == pytest.approx(0.5, abs=0.1), guide
    assert slope(sizes, model) == pytest.approx(0.5, abs=0.1), model
