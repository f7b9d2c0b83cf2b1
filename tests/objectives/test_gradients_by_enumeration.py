"""Gradients of the guide for discrete latents, against enumeration of all states and one integral."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, mean_and_error, refusal, suite_seed
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scalar_pairs import double
from torch import Tensor

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE, OVIS, VIMCO, EnumeratedELBO, ReweightedWakeSleep, ScoreFunction

# Four bits, and tuples of particles enumerated ------------------------------------------------------------------------


def mapped(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x W; the weight may be another one for each datum."""
    return (x.unsqueeze(-2) @ weight).squeeze(-2)


def gradients_of_copies(pair: torch.nn.Module, objective, x: Tensor) -> Tensor:
    """Returns the gradient of the loss of each datum in its own copy of the parameters, `(data, parameters)`."""
    objective.loss_and_grads(pair.model, pair.guide, x)
    return torch.cat([p.grad.flatten(1) for p in pair.parameters()], 1)


class BinaryPair(torch.nn.Module):
    """Has four binary latents with logits that depend on x, and a Gaussian decoder: small enough to enumerate.

    With `copies` each of so many data has its own copy of the parameters.
    """

    def __init__(self, *copies: int):
        super().__init__()
        generator = torch.Generator().manual_seed(suite_seed(5))

        def parameter(*shape):
            value = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return torch.nn.Parameter(value.repeat(*copies, *[1] * len(shape)))

        self.prior_logits, self.weight = parameter(4), parameter(4, 2)
        self.guide_weight, self.guide_bias = parameter(2, 4), parameter(4)

    def prior(self):
        return dist.Bernoulli(logits=self.prior_logits).to_event(1)

    def decode(self, z):
        return dist.Normal(mapped(z, self.weight), 1.0).to_event(1)

    def encode(self, x):
        return dist.Bernoulli(logits=mapped(x, self.guide_weight) + self.guide_bias).to_event(1)

    def model(self, x):
        pyro.module("binary", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.decode(pyro.sample("z", self.prior())), obs=x)

    def guide(self, x):
        pyro.module("binary", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))


@pytest.mark.usefixtures("pairs_unchecked")
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
    num = 20_000
    mean, error = mean_and_error(gradients_of_copies(BinaryPair(num), objective, x.expand(num, 2)))
    assert_within_standard_errors(mean, truth, error)


# Discrete latents of two kinds, enumerated ---------------------------------------------------------------------------


class DiscretePair(torch.nn.Module):
    """Has a category of three, a bit that depends on it, and another bit: twelve states, three sites, a Gaussian x.

    With `copies` each of so many data has its own copy of the parameters.
    """

    def __init__(self, *copies: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(suite_seed(4))

        def parameter(*shape):
            value = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return torch.nn.Parameter(value.repeat(*copies, *[1] * len(shape)))

        self.beta = 1.0
        self.prior, self.weight = parameter(3), parameter(5, 2)
        self.category, self.by_category, self.by_datum = parameter(2, 3), parameter(3), parameter(2)

    def sites(self, z1: Tensor, x: Tensor) -> dict[str, dist.TorchDistribution]:
        """Returns the distributions of the guide's sites, the second given the first."""
        return {
            "z1": dist.OneHotCategorical(logits=mapped(x, self.category)),
            "z2": dist.Bernoulli(logits=(z1 * self.by_category).sum(-1)),
            "z3": dist.Bernoulli(logits=(x * self.by_datum).sum(-1)),
        }

    def decode(self, z1: Tensor, z2: Tensor, z3: Tensor) -> dist.TorchDistribution:
        of_bits = z2[..., None] * self.weight[..., 3, :] + z3[..., None] * self.weight[..., 4, :]
        return dist.Normal(mapped(z1, self.weight[..., :3, :]) + of_bits, 0.8).to_event(1)

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
            z1 = pyro.sample("z1", dist.OneHotCategorical(logits=mapped(x, self.category)))
            for name in ("z2", "z3"):
                pyro.sample(name, self.sites(z1, x)[name])

    def enumerate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log q and log w of every state, `(12, batch)`."""
        states = list(itertools.product(torch.eye(3, dtype=torch.float64), double(0.0, 1.0), double(0.0, 1.0)))
        log_q, log_p = [], []
        for state in states:
            z = [value.expand(len(x), *value.shape) for value in state]
            log_q.append(sum(q.log_prob(v) for q, v in zip(self.sites(z[0], x).values(), z, strict=True)))
            prior = sum(p.log_prob(v) for p, v in zip(self.priors().values(), z, strict=True))
            log_p.append(prior + self.decode(*z).log_prob(x))
        return torch.stack(log_q), torch.stack(log_p) - torch.stack(log_q)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Returns log p(x|z) of every state, `(12, batch)`."""
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
    """Returns L_K of one datum, and for each state the mean total of the normalised weights of K draws that fall on it.

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
    monkeypatch.setattr(pv.evaluation.chunks, "PAIRS_PER_CHUNK", 5 * 128)  # states, five at a time
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


@pytest.mark.usefixtures("pairs_unchecked")
@pytest.mark.parametrize("objective", [
    ScoreFunction(8), ScoreFunction(8, baseline="leave_one_out"), VIMCO(2), VIMCO(8), VIMCO(32), OVIS(8),
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
    num = 6_000
    mean, error = mean_and_error(gradients_of_copies(DiscretePair(num), objective, X.expand(num, 2)))
    assert_within_standard_errors(mean, truth, error)
