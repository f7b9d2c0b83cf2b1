"""The bounds of mixture guides on every kind of pair, and at every door."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Pair, assert_within_standard_errors, mean_and_error, refusal, small_vae, suite_seed
from mixture_guides import LOC, mixture, observe
from pyro.infer import SVI

import pyrovae as pv
from pyrovae.objectives import MISELBO, SIWAE, keeping_terms
from pyrovae.objectives.stratified import _StratifiedCall
from pyrovae.programs import log_shares, run_pair

KINDS = [SIWAE, MISELBO]


def vae_of(components=2, seed=0, **settings):
    posterior = pv.posteriors.Mixture(2, num_components=components)
    return small_vae(seed=seed, posterior=posterior, hidden=(4,), **settings)


def data(count=6):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(suite_seed(1)))


def stratified(objective, pair, *args):
    """Returns a run with draws from each component."""
    return _StratifiedCall(pair.model, pair.guide, args, {}, objective).run(objective.num_draws, once=True)


# Kinds of pairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_and_kl_of_a_step_count_each_component_by_its_weight(kind):
    vae, x = vae_of(3).double(), data().double()
    objective = kind(3_000)
    with keeping_terms() as kept:
        objective.loss(vae.model, vae.guide, x)
    with torch.no_grad():
        terms = run_pair(vae.model, vae.guide, x, num_particles=20_000).terms()
    draws = torch.stack((terms.log_likelihood.sum(-1), (terms.log_posterior - terms.log_prior).sum(-1)), -1)
    mean, error = mean_and_error(draws)
    assert_within_standard_errors(kept.total(), mean, 3 * error)


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_and_missing_cells_have_the_formula_on_the_same_draws(kind):
    vae = vae_of(2, condition=pv.OneHot(3), missing="mask").double()
    x, y = data().double(), torch.tensor([0, 1, 2, 0, 1, 2])
    x[0, 0] = torch.nan
    objective = kind(4)
    objective.loss(vae.model, vae.guide, x, y)
    torch.manual_seed(suite_seed(2))
    loss = objective.loss(vae.model, vae.guide, x, y)
    torch.manual_seed(suite_seed(2))
    with torch.no_grad():
        run = stratified(objective, vae, x, y)
        z, q = run.guide_sites["z"]["value"], vae.encode(x, y)
        log_w = run.terms().log_likelihood + vae.prior.log_prob(z) - q.log_prob(z)
        v = (log_w.exp().unflatten(0, (2, 2)) * q.mixture_distribution.probs.T).movedim(0, 1)  # (S, T, batch)
        weights = q.mixture_distribution.probs.T
        siwae, miselbo = v.sum(0).mean(0).log(), (weights * (v.mean(1) / weights).log()).sum(0)
    assert -loss == pytest.approx((siwae if kind is SIWAE else miselbo).sum().item(), abs=1e-9)


def masked_pair(is_there):
    """Latents of some data are masked, and nothing reads them there."""

    def model(x):
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=is_there):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(is_there, z, 0.0), 1.0), obs=x)

    def guide(x):
        components = dist.Normal(torch.tensor([0.3, 1.0]).expand(len(x), 2), 0.8)
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=is_there):
            pyro.sample(
                "z", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.2, 0.8]).expand(len(x), 2)), components)
            )

    return Pair(model, guide)


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_latent_has_no_part_in_the_bound(kind):
    x = torch.tensor([0.4, 1.0, -1.0])
    pair = masked_pair(torch.tensor([True, False, False]))
    run, objective = stratified(kind(4), pair, x), kind(4)
    shares = log_shares(run)
    assert shares[:, :, 1:].eq(0).all()
    torch.testing.assert_close(shares[0, :, 0].exp(), torch.tensor([0.4, 1.6]))
    bound = objective.stratified_bound(run.terms().log_weights.unflatten(0, (2, 2)), shares)
    torch.testing.assert_close(bound[1:], dist.Normal(0.0, 1.0).log_prob(x[1:]))


class GlobalPair:
    """theta ~ N(0, 1) for all data, x_n ~ N(z_n + theta, 1); the guide of z is a mixture, that of theta a Gaussian."""

    def __init__(self):
        self.loc = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        self.logits = torch.tensor([0.2, -0.4], dtype=torch.float64, requires_grad=True)

    def model(self, x):
        theta = pyro.sample("theta", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z + theta, 1.0), obs=x)

    def guide(self, x):
        theta = pyro.sample("theta", dist.Normal(self.loc, 0.5))
        with pyro.plate("data", len(x)):
            loc = 0.5 * (x - theta)[:, None] + torch.tensor([-0.5, 0.5], dtype=torch.float64)
            weights = dist.Categorical(logits=self.logits.expand(len(x), 2))
            pyro.sample("z", dist.MixtureSameFamily(weights, dist.Normal(loc, 0.7)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_globals_are_drawn_once_and_learn_from_the_whole_bound(kind, chunk_size):
    pair, x = GlobalPair(), data(4)[:, 0].double()
    objective = kind(4, chunk_size=chunk_size)
    objective.loss(pair.model, pair.guide, x)
    torch.manual_seed(suite_seed(5))
    loss = objective.differentiable_loss(pair.model, pair.guide, x)
    found = torch.autograd.grad(loss, [pair.loc, pair.logits])
    if chunk_size is not None:  # on other draws: the value of theta is one for all chunks, and the graph is whole
        assert all(g.isfinite().all() and g.abs().min() > 0 for g in found)
        return
    torch.manual_seed(suite_seed(5))
    run = stratified(objective, pair, x)
    theta, z = (run.guide_sites[name]["value"] for name in ("theta", "z"))
    assert theta.shape == ()
    weights = pair.logits.softmax(-1)
    loc = 0.5 * (x - theta)[:, None] + torch.tensor([-0.5, 0.5], dtype=torch.float64)
    log_q = (weights * dist.Normal(loc, 0.7).log_prob(z[..., None]).exp()).sum(-1).log()
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z + theta, 1.0).log_prob(x) - log_q
    w = log_w.exp().unflatten(0, (2, 2))  # (T, S, batch)
    bound = (weights[:, None] * w).sum(1).mean(0).log() if kind is SIWAE else (weights @ w.mean(0).log())
    expected = dist.Normal(0.0, 1.0).log_prob(theta) - dist.Normal(pair.loc, 0.5).log_prob(theta) + bound.sum()
    assert -loss.item() == pytest.approx(expected.item(), abs=1e-9)
    for ours, theirs in zip(found, torch.autograd.grad(-expected, [pair.loc, pair.logits]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_global_draw_without_a_path_gets_a_score_of_the_whole_loss(kind):
    logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    local = GlobalPair()

    def model(x):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)

    def guide(x):
        pyro.sample("c", dist.Bernoulli(logits=logit))
        with pyro.plate("data", len(x)):
            pyro.sample("z", mixture(len(x), components=dist.Normal(LOC.double() + local.loc, 1.0)))

    loss = kind(4).differentiable_loss(model, guide, data(4)[:, 0].double())
    (found,) = torch.autograd.grad(loss, [logit])
    # log q(c) is in the loss, too. Its gradient is 1 - p at c = 1 and -p at 0.
    scores = torch.stack((1 - logit.sigmoid(), -logit.sigmoid())).detach()
    assert min(abs(found - (loss.detach() + 1) * score) for score in scores) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_one_mixture_for_all_data_together_is_for_a_joint_bound(kind):
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            observe(z, x)

    def guide(x):
        pyro.sample("z", mixture(components=dist.Normal(x.sum() / (len(x) + 1) + 0.0 * LOC, (len(x) + 1) ** -0.5)))

    x = torch.tensor([0.3, -0.2, 1.0])  # every component is the posterior
    covariance = torch.eye(3) + 1
    log_px = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    assert -kind(4, joint=True).loss(model, guide, x) == pytest.approx(log_px.item(), abs=1e-5)
    assert "use joint=True" in refusal(kind(4).loss, model, guide, x)


# Doors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [SIWAE(4), MISELBO(4)], ids=str)
def test_svi_and_compiled_steps_give_one_training(objective):
    x, losses = data(), []
    for kind in (SVI, pv.CompiledSVI):
        pyro.clear_param_store()
        vae = vae_of()
        how = {} if kind is SVI else {"inductor": False}
        svi = kind(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), objective, **how)
        torch.manual_seed(suite_seed(3))
        losses.append([svi.step(x) for _ in range(4)])
    assert svi.reason is None
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0][-1] != losses[0][0]


def test_the_first_step_of_a_new_pair_may_be_in_chunks():
    vae, x = vae_of(), data()
    loss = SIWAE(8, chunk_size=2).loss_and_grads(vae.model, vae.guide, x)
    assert math.isfinite(loss)
    assert all(parameter.grad.abs().max() > 0 for parameter in vae.parameters())


def test_fit_trains_a_mixture_to_two_modes_that_one_gaussian_misses():
    """x = |z| + noise: the posterior has modes at both signs of z, and one Gaussian takes one or lies between them."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.abs(), 0.1), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(2))
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        scale = pyro.param("scale", torch.full((2,), 0.5), constraint=dist.constraints.positive)
        components = dist.Normal(loc.expand(len(x), 2), scale)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits.expand(len(x), 2)), components))

    x = torch.full((64,), 1.5)
    how = {"epochs": 80, "lr": 0.05, "batch_size": 64, "compile": False, "progress": False}
    pv.fit(Pair(model, guide), x, objective="siwae", num_particles=4, seed=suite_seed(), **how)
    loc = pyro.param("loc").detach()
    assert loc[0] == pytest.approx(-1.49, abs=0.15)
    assert loc[1] == pytest.approx(1.49, abs=0.15)
    log_px = math.log(2) + dist.Normal(0.0, math.sqrt(1.01)).log_prob(torch.tensor(1.5)).item()
    bound = -MISELBO(2).loss(model, guide, x) / 64
    assert bound == pytest.approx(log_px, abs=0.2)  # one Gaussian at one of the modes is at least log 2 below


def test_compare_takes_equally_many_draws_and_finds_no_bias():
    vae = vae_of()
    names = ("elbo", "iwae", "siwae", "miselbo")
    found = pv.compare(vae.model, vae.guide, data(), objectives=names, num_particles=[4], repeats=8, compile=False)
    assert {row.num_draws for row in found.rows} == {4}
    assert all(row.gap is not None for row in found.rows)


# Refusals -------------------------------------------------------------------------------------------------------------
