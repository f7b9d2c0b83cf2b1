"""Gradients of the guide against a truth that has no draws: quadrature for one continuous latent, enumeration and
one integral for discrete ones, and what relaxed bits are off by."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error, refusal, suite_seed
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

import pyrovae as pv
from pyrovae.objectives import ELBO, VIMCO, EnumeratedELBO, ReweightedWakeSleep, ScoreFunction, StickingTheLanding


def double(*values: float) -> Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


# One continuous latent, by quadrature --------------------------------------------------------------------------------

GUIDES = {"LogNormal": double(0.2, -0.7), "Exponential": double(0.3, 0.0)[:1], "Gumbel": double(0.5, -0.3)}
PRIORS = {"LogNormal": double(0.0, 0.0), "Exponential": double(0.0, 0.0)[:1], "Gumbel": double(0.0, 0.0)}
OBSERVED = double(1.0)


def family_at(family: str, a: Tensor) -> dist.TorchDistribution:
    if family == "Exponential":
        return dist.Exponential(torch.exp(-a[..., 0]))
    return getattr(dist, family)(a[..., 0], a[..., 1].exp())


def log_joint(family: str, z: Tensor) -> Tensor:
    return family_at(family, PRIORS[family]).log_prob(z) + dist.Normal(z.sin(), 0.5).log_prob(OBSERVED)


def nodes(family: str) -> tuple[Tensor, Tensor]:
    """Standard noise e, and the weights of the trapezoidal rule for an expectation over it."""
    if family == "Exponential":
        log_e = torch.linspace(-40, 4, 100_001, dtype=torch.float64)
        return log_e.exp(), torch.exp(log_e - log_e.exp()) * (log_e[1] - log_e[0])
    low, high, standard = (-9, 9, dist.Normal) if family == "LogNormal" else (-5, 40, dist.Gumbel)
    e = torch.linspace(low, high, 100_001, dtype=torch.float64)
    return e, standard(double(0.0), double(1.0)).log_prob(e).exp() * (e[1] - e[0])


def moved(family: str, e: Tensor, a: Tensor) -> Tensor:
    """The draw that the noise e gives."""
    if family == "Exponential":
        return a[..., 0].exp() * e
    z = a[..., 0] + a[..., 1].exp() * e
    return z.exp() if family == "LogNormal" else z


def gradient_by_quadrature(family: str) -> Tensor:
    """Of minus the ELBO, integrated over z on a grid that does not move with the parameters."""
    e, weight = nodes(family)
    a = GUIDES[family].clone().requires_grad_()
    z = moved(family, e, GUIDES[family])
    ratio = (family_at(family, a).log_prob(z) - family_at(family, GUIDES[family]).log_prob(z)).exp()
    elbo = (weight * ratio * (log_joint(family, z) - family_at(family, a).log_prob(z))).sum()
    return torch.autograd.grad(-elbo, a)[0]


def variance_by_quadrature(family: str, objective) -> Tensor:
    """Of one draw's gradient, each parameter."""
    e, weight = nodes(family)
    a = GUIDES[family].expand(len(e), -1).clone().requires_grad_()
    z = moved(family, e, a)
    if isinstance(objective, ScoreFunction):
        held = z.detach()
        log_q = family_at(family, a).log_prob(held)
        form = (log_joint(family, held) - log_q).detach() * log_q
    else:
        own = a.detach() if isinstance(objective, StickingTheLanding) else a
        form = log_joint(family, z) - family_at(family, own).log_prob(z)
    (draws,) = torch.autograd.grad(-form.sum(), a)
    mean = (weight[:, None] * draws).sum(0)
    return (weight[:, None] * (draws - mean).square()).sum(0)


def independent_gradients(objective, family: str, num: int = 40_000) -> Tensor:
    """`(num, parameters)`: each copy of the datum has parameters of its own."""
    a = GUIDES[family].expand(num, -1).clone().requires_grad_()

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", family_at(family, PRIORS[family]))
            pyro.sample("x", dist.Normal(z.sin(), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family_at(family, a))

    objective.loss_and_grads(model, guide, OBSERVED.expand(num))
    return a.grad


@pytest.mark.parametrize("family", GUIDES)
@pytest.mark.parametrize("objective", [
    ELBO(1), ELBO(4), StickingTheLanding(1), ScoreFunction(1), ScoreFunction(4, baseline="leave_one_out"),
], ids=str)  # fmt: skip
def test_on_a_latent_that_is_no_gaussian_the_gradient_is_that_by_quadrature(objective, family):
    draws = independent_gradients(objective, family)
    mean, error = mean_and_error(draws)
    assert_within_standard_errors(mean, gradient_by_quadrature(family), error)
    if objective.num_particles == 1:
        squares, error = mean_and_error((draws - mean).square())
        assert_within_standard_errors(squares, variance_by_quadrature(family, objective), error)


# Discrete latents of two kinds, enumerated ---------------------------------------------------------------------------


class DiscretePair(torch.nn.Module):
    """A category of three, a bit that depends on it, and another bit: twelve states, three sites, a Gaussian x."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(suite_seed(4))

        def parameter(*shape):
            return torch.nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.beta = 1.0
        self.prior, self.weight = parameter(3), parameter(5, 2)
        self.category, self.by_category, self.by_datum = parameter(2, 3), parameter(3), parameter(2)

    def sites(self, z1: Tensor, x: Tensor) -> dict[str, dist.TorchDistribution]:
        """Of the guide, its second site given the first."""
        return {
            "z1": dist.OneHotCategorical(logits=x @ self.category),
            "z2": dist.Bernoulli(logits=z1 @ self.by_category),
            "z3": dist.Bernoulli(logits=x @ self.by_datum),
        }

    def decode(self, z1: Tensor, z2: Tensor, z3: Tensor) -> dist.TorchDistribution:
        mean = z1 @ self.weight[:3] + z2[..., None] * self.weight[3] + z3[..., None] * self.weight[4]
        return dist.Normal(mean, 0.8).to_event(1)

    def priors(self) -> dict[str, dist.TorchDistribution]:
        half = dist.Bernoulli(double(0.5))
        return {"z1": dist.OneHotCategorical(logits=self.prior), "z2": half, "z3": half}

    def model(self, x: Tensor) -> None:
        pyro.module("discrete", self)
        with pyro.plate("data", len(x), dim=-1):
            with poutine.scale(scale=self.beta):
                z = [pyro.sample(name, prior) for name, prior in self.priors().items()]
            pyro.sample("x", self.decode(*z), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("discrete", self)
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=self.beta):
            z1 = pyro.sample("z1", dist.OneHotCategorical(logits=x @ self.category))
            for name in ("z2", "z3"):
                pyro.sample(name, self.sites(z1, x)[name])

    def enumerate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log q and log w of every state, `(12, batch)`."""
        states = list(itertools.product(torch.eye(3, dtype=torch.float64), double(0.0, 1.0), double(0.0, 1.0)))
        log_q, log_p = [], []
        for state in states:
            z = [value.expand(len(x), *value.shape) for value in state]
            log_q.append(sum(q.log_prob(v) for q, v in zip(self.sites(z[0], x).values(), z, strict=True)))
            prior = sum(p.log_prob(v) for p, v in zip(self.priors().values(), z, strict=True))
            log_p.append(prior + self.decode(*z).log_prob(x))
        return torch.stack(log_q), torch.stack(log_p) - torch.stack(log_q)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x|z) of every state, `(12, batch)`."""
        z = itertools.product(torch.eye(3, dtype=torch.float64), double(0.0, 1.0), double(0.0, 1.0))
        return torch.stack([self.decode(*state).log_prob(x) for state in z])

    def gradient(self, value: Tensor) -> Tensor:
        gradients = torch.autograd.grad(value, list(self.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat([
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(gradients, self.parameters(), strict=True)
        ])  # fmt: skip


LOG_T, STEP = torch.arange(-30.0, 60.0, 0.1, dtype=torch.float64), 0.1


def multiple_sample_truth(log_q: Tensor, log_w: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """L_K of one datum, and the mean of the sum of the normalised weights of K draws that fall on each state.

    E log s = int (e^-t - E e^-ts) dt/t and E 1/s = int E e^-ts dt, of a sum s of K independent weights.
    """
    scale = (log_q + log_w).logsumexp(0).detach()
    w, t = (log_w - scale).exp(), LOG_T.exp()
    terms = log_q.exp() * torch.exp(-t[:, None] * w / count)
    bound = scale + STEP * (torch.exp(-t) - terms.sum(1) ** count).sum()
    shares = STEP * (terms * (terms.sum(1) ** (count - 1) * t)[:, None]).sum(0) * w
    return bound, shares.detach()


X = double(0.4, -0.9)[None]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_integrals_of_several_samples_are_the_enumeration_of_all_tuples(count):
    pair = DiscretePair()
    log_q, log_w = (t[:, 0] for t in pair.enumerate(X))
    bound, shares = multiple_sample_truth(log_q, log_w, count)
    tuples = torch.cartesian_prod(*[torch.arange(12)] * count).reshape(-1, count)
    chance = log_q[tuples].sum(1).exp()
    exact = (chance * (log_w[tuples].logsumexp(1) - math.log(count))).sum()
    exact_shares = torch.zeros_like(shares)
    for k in range(count):
        exact_shares.index_add_(0, tuples[:, k], (chance * log_w[tuples].softmax(1)[:, k]).detach())
    assert bound.item() == pytest.approx(exact.item(), abs=1e-11)
    torch.testing.assert_close(shares, exact_shares, atol=1e-10, rtol=0)
    torch.testing.assert_close(pair.gradient(bound), pair.gradient(exact), atol=1e-10, rtol=0)


def test_the_enumeration_by_hand_is_pyros():
    pair = DiscretePair()
    x = torch.randn(5, 2, dtype=torch.float64)
    log_q, log_w = pair.enumerate(x)
    elbo = (log_q.exp() * log_w).sum()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        pair.model, config_enumerate(pair.guide, "parallel"), x
    )
    assert -loss.item() == pytest.approx(elbo.item(), abs=1e-10)
    torch.testing.assert_close(-pair.gradient(loss), pair.gradient(elbo), atol=1e-10, rtol=0)


@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_the_enumerated_elbo_is_that_by_hand_with_its_gradient(beta):
    pair, x = DiscretePair(), torch.randn(5, 2, dtype=torch.float64)
    pair.beta = beta
    (log_q, log_w), log_likelihood = pair.enumerate(x), pair.log_likelihood(x)
    elbo = (log_q.exp() * (log_likelihood + beta * (log_w - log_likelihood))).sum()
    loss = EnumeratedELBO().differentiable_loss(pair.model, pair.guide, x)
    assert -loss.item() == pytest.approx(elbo.item(), abs=1e-10)
    torch.testing.assert_close(-pair.gradient(loss), pair.gradient(elbo), atol=1e-10, rtol=0)
    torch.testing.assert_close(pv.enumerated_log_marginal(pair.model, x), (log_q + log_w).logsumexp(0).detach())


def test_log_px_by_enumeration_does_not_depend_on_how_it_is_cut_and_is_refused_where_there_are_too_many(monkeypatch):
    pair, x = DiscretePair(), torch.randn(300, 2, dtype=torch.float64)  # more data than one chunk
    (log_q, log_w) = pair.enumerate(x)
    exact = (log_q + log_w).logsumexp(0).detach()
    torch.testing.assert_close(pv.enumerated_log_marginal(pair.model, x), exact)
    monkeypatch.setattr(pv.evaluation.exact, "CHUNK", 5 * 128)  # states, five at a time
    torch.testing.assert_close(pv.enumerated_log_marginal(pair.model, x), exact)

    def model(x, latent):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", latent).sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    x = torch.zeros(2, 1)
    bits = dist.Bernoulli(torch.full((17,), 0.5)).to_event(1)
    message = refusal(pv.enumerated_log_marginal, partial(model, latent=bits), x)
    assert message == 'latents to be enumerated must have at most 65,536 values, got 2 for each of 17 at site "z"'
    for latent in (
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        dist.Binomial(torch.tensor([2.0, 3.0]), torch.tensor(0.5)).to_event(1),
    ):
        message = refusal(pv.enumerated_log_marginal, partial(model, latent=latent), x)
        rule = "enumeration needs discrete latents of the same finitely many values"
        assert message == f'{rule}, got {type(latent.base_dist).__name__} at site "z"'


def test_enumeration_of_impossible_values_keywords_and_networks_that_want_the_whole_batch():
    logits = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64))
    mask = double(0.0, 0.0, -math.inf)
    means = torch.nn.Parameter(double(-1.0, 0.5, 2.0))

    def model(x, whole=False):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.OneHotCategorical(logits=mask))
            loc = z @ means
            if whole:  # z of the data that are given, and not the same for all
                loc = loc + torch.stack([loc[..., i] for i in range(len(x))], -1) * 0
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x, whole=False):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.OneHotCategorical(logits=logits + mask))

    x = torch.randn(4, dtype=torch.float64)
    log_q = logits[:2].log_softmax(0)[:, None]
    log_p = dist.Normal(means[:2, None], 1.0).log_prob(x) - math.log(2)
    exact = -(log_q.exp() * (log_p - log_q)).sum()
    wanted = torch.autograd.grad(exact, [logits, means])
    for loss in (
        EnumeratedELBO().differentiable_loss(model, guide, x),
        EnumeratedELBO().differentiable_loss(model, guide, x=x),
        EnumeratedELBO().differentiable_loss(model, guide, x, whole=True),
    ):
        torch.testing.assert_close(loss, exact)
        torch.testing.assert_close(torch.autograd.grad(loss, [logits, means]), wanted)
    for program in (model, partial(model, whole=True)):
        torch.testing.assert_close(pv.enumerated_log_marginal(program, x), log_p.logsumexp(0).detach())

    def nothing(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(means[0], 1.0), obs=x)

    pair = pv.programs.run_pair(nothing, lambda x: None, x)
    assert refusal(EnumeratedELBO().check, pair) == "enumeration needs a latent site, and there is none"


def discrete_gradients(pair: DiscretePair, objective, num: int = 60, batch: int = 400) -> Tensor:
    draws = []
    for seed in range(num):
        torch.manual_seed(suite_seed(seed))
        pair.zero_grad()
        objective.loss_and_grads(pair.model, pair.guide, X.expand(batch, 2))
        draws.append(torch.cat([p.grad.flatten() for p in pair.parameters()]) / batch)
    return torch.stack(draws)


@pytest.mark.parametrize("objective", [
    ScoreFunction(8), ScoreFunction(8, baseline="leave_one_out"), VIMCO(2), VIMCO(8), VIMCO(32),
    ReweightedWakeSleep(2), ReweightedWakeSleep(8),
], ids=str)  # fmt: skip
def test_with_categories_and_many_particles_the_mean_gradient_is_the_exact_one(objective):
    pair = DiscretePair()
    log_q, log_w = (t[:, 0] for t in pair.enumerate(X))
    bound, shares = multiple_sample_truth(log_q, log_w, objective.num_particles)
    if isinstance(objective, ScoreFunction):
        bound = (log_q.exp() * log_w).sum()
    truth = -pair.gradient(bound)
    if isinstance(objective, ReweightedWakeSleep):
        of_guide = torch.cat(
            [torch.full((p.numel(),), n not in ("prior", "weight")) for n, p in pair.named_parameters()]
        )
        truth = torch.where(of_guide, -pair.gradient((shares * log_q).sum()), truth)
        assert (truth + pair.gradient(bound)).norm() > 0.1  # another direction than the bound's
    mean, error = mean_and_error(discrete_gradients(pair, objective))
    assert_within_standard_errors(mean, truth, error)


# Relaxed bits ---------------------------------------------------------------------------------------------------------

LOGIT, PRIOR_LOGIT = double(1.2), double(-0.4)


def log_likelihood(z: Tensor) -> Tensor:
    """Of x = 1, with a decoder that is far from linear between the corners."""
    return dist.Normal(2 * torch.tanh(4 * z - 1), 0.7).log_prob(double(1.0))


def logistic_kl(d: Tensor) -> Tensor:
    """Between logistic distributions of scale 1 whose means differ by d."""
    return d / torch.tanh(d / 2) - 2


def slope(value: Tensor, at: Tensor) -> float:
    return torch.autograd.grad(value, at)[0].item()


def discrete_slopes() -> tuple[float, float]:
    """d/d logit of E log p(x|b), over the two values of the bit, and of KL(q(b) || p(b))."""
    logit = LOGIT.clone().requires_grad_()
    one = torch.sigmoid(logit) * log_likelihood(double(1.0)) + torch.sigmoid(-logit) * log_likelihood(double(0.0))
    kl = torch.distributions.kl_divergence(dist.Bernoulli(logits=logit), dist.Bernoulli(logits=PRIOR_LOGIT))
    return slope(one, logit), slope(kl, logit)


def relaxed_slopes(temperature: float, hard: bool) -> tuple[float, float]:
    """The mean gradient of E log p(x|z) through relaxed draws, and d/d logit of the KL of the relaxed densities."""
    noise = torch.linspace(-40, 40, 400_000, dtype=torch.float64) - LOGIT  # z = 1/2 lies halfway between two nodes
    weight = torch.sigmoid(noise) * torch.sigmoid(-noise) * (noise[1] - noise[0])
    logit = LOGIT.clone().requires_grad_()
    z = torch.sigmoid((logit + noise) / temperature)
    if hard:
        z = z.round().detach() + z - z.detach()
    return slope((weight * log_likelihood(z)).sum(), logit), slope(logistic_kl(logit - PRIOR_LOGIT), logit)


def relaxed_draws(temperature: float, hard: bool, num: int = 40_000) -> tuple[Tensor, Tensor]:
    """Of the relaxed pair: the ELBO of every datum, and its gradient in the logit of every datum.

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
    values = []
    for _ in range(20):  # of the ELBO summed over the data there is one value a run
        values.append(-objective.loss(model, guide, x) / num)
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
    values, gradients = relaxed_draws(temperature, hard=True)
    at = [torch.sigmoid(sign * LOGIT) * log_likelihood(double(bit)) for sign, bit in ((1, 1.0), (-1, 0.0))]
    mean, error = mean_and_error(values)
    assert_within_standard_errors(mean, sum(at) - logistic_kl(LOGIT - PRIOR_LOGIT), error)
    likelihood, kl = relaxed_slopes(temperature, hard=True)
    mean, error = mean_and_error(gradients)
    assert_within_standard_errors(mean, likelihood - kl, error)
    with pytest.raises(AssertionError, match="standard errors apart"):
        assert_within_standard_errors(mean, discrete_slopes()[0] - kl, error)


def test_the_straight_through_gradient_of_a_cold_bit_is_the_trapezoidal_rule_of_the_difference():
    """It goes to p(1 - p) (f'(0) + f'(1)) / 2 and not to p(1 - p) (f(1) - f(0)), which it has for quadratic f only."""
    corner = [double(bit).requires_grad_() for bit in (0.0, 1.0)]
    ends = sum(slope(log_likelihood(z), z) for z in corner)
    chance = torch.sigmoid(LOGIT) * torch.sigmoid(-LOGIT)
    cold = relaxed_slopes(0.005, hard=True)[0]
    assert cold == pytest.approx(chance.item() * ends / 2, rel=0.01)
    assert abs(cold - discrete_slopes()[0]) > 0.1 * abs(discrete_slopes()[0])
