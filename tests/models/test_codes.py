"""Codes of bits and classes, hard and relaxed: log p(x) by enumeration, straight-through gradients."""

import itertools
import math

import pytest
import torch
from helpers import (
    OF_MIXTURES,
    assert_within_standard_errors,
    every_objective,
    perturbed,
    refusal,
    small_vae,
    suite_seed,
)

import pyrovae as pv
from pyrovae.models import posteriors, priors
from pyrovae.models.code_distributions import (
    StraightThroughBernoulli,
    StraightThroughOneHot,
)
from pyrovae.objectives import check_objective

CODES = {
    "bits": lambda temperature: posteriors.Bernoulli(3, temperature),
    "classes": lambda temperature: posteriors.Categorical(2, 3, temperature),
    "relaxed bits": lambda temperature: posteriors.RelaxedBernoulli(3, temperature),
    "relaxed classes": lambda temperature: posteriors.RelaxedCategorical(2, 3, temperature),
}


def coded(kind, temperature=None, seed=0, **settings):
    torch.manual_seed(suite_seed(seed))
    posterior = CODES[kind](temperature)
    settings = {"latent_dim": posterior.latent_dim, "hidden": (5,), "likelihood": pv.Gaussian(0.5), **settings}
    return perturbed(pv.VAE((4,), posterior=posterior, **settings))


def codes_of(kind):
    if kind == "bits":
        return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    return torch.stack([torch.stack(pair) for pair in itertools.product(torch.eye(3), torch.eye(3))])


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("kind", ["bits", "classes"])
def test_log_px_of_codes_is_the_sum_over_all_of_them(kind, temperature):
    vae, codes = coded(kind, temperature), codes_of(kind)
    with torch.no_grad():
        x = vae.sample(5)
        assert vae.prior.log_prob(codes).exp().sum().item() == pytest.approx(1, abs=1e-6)
        q = vae.encode(x)
        assert q.log_prob(codes[:, None]).exp().sum(0).tolist() == pytest.approx([1] * 5, abs=1e-6)
        joint = vae.prior.log_prob(codes)[:, None] + vae.decode(codes[:, None]).log_prob(x)
    found = pv.log_marginal(vae.model, vae.guide, x, num_samples=8_000)
    assert_within_standard_errors(found.log_px, joint.logsumexp(0), found.standard_error)
    torch.testing.assert_close(pv.enumerated_log_marginal(vae.model, x), joint.logsumexp(0).double())
    posterior = joint.softmax(0)
    elbo = pv.importance_bound(vae.model, vae.guide, x, num_particles=1, num_repeats=2_000)
    mass = q.log_prob(codes[:, None])
    exact = (mass.exp() * (joint - mass)).sum(0)
    assert_within_standard_errors(elbo.value, exact, elbo.standard_error)
    enumerated = pv.objectives.EnumeratedELBO().differentiable_loss(vae.model, vae.guide, x)
    torch.testing.assert_close(-enumerated, exact.sum())
    assert posterior.max() < 0.999


@pytest.mark.parametrize("kind", ["bits", "classes"])
def test_straight_through_draws_are_hard_and_have_the_right_masses_and_the_soft_gradient(kind, float64):
    vae, codes = coded(kind, 0.7).double(), codes_of(kind).double()
    q = vae.encode(torch.randn(1, 4))
    z = q.rsample((40_000,))
    assert set(z.detach().unique().tolist()) == {0.0, 1.0}
    shares = (z.detach() == codes[:, None, None]).flatten(3).all(-1).double().mean((1, 2))
    exact = q.log_prob(codes[:, None]).exp()[:, 0]
    assert_within_standard_errors(shares, exact, (exact * (1 - exact) / 40_000).sqrt())

    logits = torch.tensor([0.3, -1.0, 0.5], requires_grad=True)
    if kind == "bits":
        hard = StraightThroughBernoulli(logits, 0.7)
        torch.manual_seed(suite_seed(5))
        (slope,) = torch.autograd.grad(hard.rsample().sum(), logits)
        torch.manual_seed(suite_seed(5))
        soft = ((logits + torch.rand(3).logit()) / 0.7).sigmoid()
        torch.testing.assert_close(slope, soft * (1 - soft) / 0.7)
    else:
        hard, weights = StraightThroughOneHot(logits, 0.7), torch.tensor([1.0, -2.0, 3.0])
        torch.manual_seed(suite_seed(5))
        (slope,) = torch.autograd.grad((weights * hard.rsample()).sum(), logits)
        torch.manual_seed(suite_seed(5))
        noise = -(-torch.rand(3).log()).log()
        (soft,) = torch.autograd.grad((weights * ((logits.log_softmax(0) + noise) / 0.7).softmax(0)).sum(), logits)
        torch.testing.assert_close(slope, soft)


@pytest.mark.parametrize("kind", CODES)
def test_codes_with_a_temperature_go_with_every_objective_or_are_refused(kind):
    """Bits and classes have the objectives by turns, but for two, of which one tells them apart."""
    for place, (name, objective) in enumerate(every_objective().items()):
        if name not in ("elbo_analytic_kl", "elbo_enumerated") and (place + ("classes" in kind)) % 2:
            continue
        vae, x = coded(kind, 0.7), torch.randn(5, 4)
        refused = {
            "elbo_analytic_kl": "objective elbo_analytic_kl needs" if kind != "classes" else None,
            "elbo_enumerated": "enumeration needs discrete latents" if "relaxed" in kind else None,
            "gdreg": "GDReG needs a latent of each datum that the guide draws with rsample and whose prior is",
            **dict.fromkeys(OF_MIXTURES, "needs a guide with one site that is a MixtureSameFamily, got none"),
        }.get(name)
        if refused:
            assert refused in refusal(check_objective, objective, vae.model, vae.guide, x)
            continue
        check_objective(objective, vae.model, vae.guide, x)
        objective.differentiable_loss(vae.model, vae.guide, x).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in vae.parameters()), name


@pytest.mark.parametrize(("hard", "relaxed"), [("bits", "relaxed bits"), ("classes", "relaxed classes")])
def test_relaxed_codes_at_a_low_temperature_agree_with_hard_codes_of_the_same_networks(hard, relaxed):
    codes, cold = coded(hard), coded(relaxed, 0.02)
    codes.load_state_dict(cold.state_dict())
    with torch.no_grad():
        x = codes.sample(6)
    torch.manual_seed(suite_seed(1))
    found = pv.log_marginal(cold.model, cold.guide, x, num_samples=8_000)
    assert_within_standard_errors(found.log_px, pv.enumerated_log_marginal(codes.model, x), found.standard_error + 0.01)
    warm = pv.log_marginal(*(getattr(coded(relaxed, 2.0), name) for name in ("model", "guide")), x, num_samples=8_000)
    assert (warm.log_px - found.log_px).abs().max() > 0.05  # a different model
    with torch.no_grad():
        assert cold.reconstruct(x).shape == cold.sample(6).shape == x.shape
        z = cold.encode(x).sample()
        code = cold.prior_family.decoded(z)
        torch.testing.assert_close(cold.decode(z).mean, cold.likelihood(cold.decoder(code), event_dim=1).mean)
        assert code.shape == codes.encode(x).sample().shape
        assert ((code >= 0) & (code <= 1)).all()
    wider = pv.log_marginal(cold.model, pv.proposals.widened(cold.guide, 1.0), x, num_samples=8_000)
    assert_within_standard_errors(
        wider.log_px, found.log_px, (wider.standard_error**2 + found.standard_error**2).sqrt()
    )


def test_a_vamp_prior_of_bits_is_enumerated_as_the_mixture_that_it_is():
    vae = pv.VAE(
        (4,), latent_dim=3, hidden=(5,), likelihood=pv.Gaussian(0.5), posterior="bernoulli",
        prior=priors.Vamp(torch.randn(4, 4)),
    )  # fmt: skip
    with torch.no_grad():
        x, codes = vae.sample(5), codes_of("bits")
        joint = vae.prior.log_prob(codes)[:, None] + vae.decode(codes[:, None]).log_prob(x)
    torch.testing.assert_close(pv.enumerated_log_marginal(vae.model, x), joint.logsumexp(0).double())


def test_codes_under_a_condition_are_enumerated_label_by_label():
    vae, codes, x = coded("bits", condition=pv.OneHot(3)), codes_of("bits"), torch.randn(6, 4)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    found = pv.enumerated_log_marginal(vae.model, x, y)
    elbo = -pv.objectives.EnumeratedELBO().differentiable_loss(vae.model, vae.guide, x, y)
    total = 0.0
    with torch.no_grad():
        for i in range(6):
            one = x[i : i + 1], y[i : i + 1]
            log_p = torch.stack([vae.decode(code[None], one[1]).log_prob(one[0])[0] for code in codes]) - 3 * math.log(
                2
            )
            log_q = vae.encode(*one).log_prob(codes)
            assert found[i].item() == pytest.approx(log_p.logsumexp(0).item(), abs=1e-5)
            total += (log_q.exp() * (log_p - log_q)).sum().item()
    assert elbo.item() == pytest.approx(total, abs=1e-4)
    assert (found - pv.enumerated_log_marginal(vae.model, x, y.roll(1))).abs().max() > 0.01  # y matters


def test_codes_without_a_temperature_need_a_prior_of_their_kind_and_no_closed_form():
    x = torch.randn(5, 4)
    said = refusal(pv.fit, coded("bits"), x, epochs=1, objective="elbo_analytic_kl")
    assert 'site "z" has no rsample: use elbo' in said
    for objective in ("elbo", "vimco", "dreg"):
        pv.fit(coded("bits"), x, epochs=1, objective=objective, num_particles=3)
    pv.fit(coded("classes", 0.5), x, epochs=1, objective="iwae", num_particles=3)
    narrow = {"latent_dim": 3, "posterior": posteriors.Bernoulli(3), "prior": priors.Bernoulli(1)}
    assert refusal(small_vae, (4,), **narrow) == "prior must have z of shape (3,), as the posterior has, got (1,)"
    vae = small_vae((4,), posterior=posteriors.Bernoulli(2), prior=priors.Standard(2))
    message = refusal(pv.fit, vae, x, epochs=1, objective="score_function")
    assert 'latent site "z" must be of one kind, got continuous in the model and discrete in the guide' in message
