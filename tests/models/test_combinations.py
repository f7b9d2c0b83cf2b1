"""Every posterior with every prior: one log p(x) from every estimator, every objective, every likelihood."""

import itertools
import math

import pyro
import pytest
import torch
from helpers import (
    OF_MIXTURES,
    HalfPrior,
    assert_within_standard_errors,
    every_objective,
    perturbed,
    refusal,
    suite_seed,
)

import pyrovae as pv
from pyrovae.models import posteriors, priors
from pyrovae.objectives import check_objective
from pyrovae.programs import gate

OF_VECTORS = ("diagonal", "full_covariance", "flow", "autoregressive")


def combinations():
    dims, hidden = (2, 2), ((4,),)
    found = {f"{q}, {p}": (q, p) for q, p in itertools.product(OF_VECTORS, priors.PRIORS)}
    found["mixture, standard"] = ("mixture", "standard")
    bits = {"relaxed bits": (posteriors.RelaxedBernoulli(2, 0.7), priors.RelaxedBernoulli(2, 0.9))}
    return {**found, **bits, "layers": (posteriors.Layered(dims, hidden), priors.Layered(dims, hidden))}


def takes(name, place):
    """Says whether a combination has the `place`th of other parts, which each posterior and each prior has once.

    A combination of one of a kind has all.
    """
    q, _, p = name.partition(", ")
    return q not in OF_VECTORS or (OF_VECTORS.index(q) + list(priors.PRIORS).index(p) + place) % len(OF_VECTORS) == 0


def vae_of(name, likelihood=None, event_shape=(3,), num_conditions=0, seed=0):
    torch.manual_seed(suite_seed(seed))
    q, p = combinations()[name]
    if isinstance(q, str):
        flows = {"flow": "coupling", "autoregressive": "autoregressive"}
        sizes = (2, 2) if q == "mixture" else (2,)
        q = posteriors.Flow(2, 2, (8,), 3, flows[q]) if q in flows else posteriors.POSTERIORS[q](*sizes)
        settings = {"vamp": (torch.rand(4, *event_shape),), "flow": (2, 2, (8,))}
        p = priors.PRIORS[p](*settings.get(p, (2,)))
    likelihood = pv.Gaussian(0.6) if likelihood is None else likelihood
    condition = [pv.OneHot(3)] * num_conditions
    vae = pv.VAE(
        event_shape, latent_dim=2, hidden=(4,), activation="tanh", likelihood=likelihood, posterior=q, prior=p,
        condition=condition,
    )  # fmt: skip
    perturbed(vae.posterior_family, 1)
    if not isinstance(p, priors.Vamp):
        perturbed(vae.prior_family, 2)
    return vae


GRIDS = {"relaxed bits": (40.0, 401)}  # a logistic has long tails


@pytest.mark.parametrize(
    "name", [name for name in combinations() if name != "layers" and (takes(name, 0) or takes(name, 1))]
)
def test_importance_sampling_agrees_with_quadrature(name):
    """Compares draws and densities of posterior and prior with the density of the prior on a grid.

    Each posterior does with two priors, and each prior with two posteriors: they do not see each other.
    """
    vae = vae_of(name)
    with torch.no_grad():
        x = vae.sample(2)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", HalfPrior(vae.encode(x), vae.prior))

    sampled = pv.log_marginal(vae.model, guide, x, num_samples=10_000)
    limit, num_points = GRIDS.get(name, (9.0, 151))
    exact, error = pv.quadrature_log_marginal(vae.model, x, limit=limit, num_points=num_points)
    assert error.max() < 0.1  # a spline's density has kinks
    assert_within_standard_errors(sampled.log_px, exact, sampled.standard_error + error)
    assert sampled.standard_error.max() < 0.1
    own = pv.log_weights(vae.model, vae.guide, x, num_particles=2_000).logsumexp(0) - math.log(2_000)
    assert (own < exact + 1).all()  # E[w] = p(x): the mean exceeds e p(x) at most one time in three


# A start from the guide needs its density at every point; a start from the prior needs that of the prior.
@pytest.mark.parametrize(
    ("name", "start"),
    [("autoregressive, standard", "guide"), ("diagonal, mixture", "prior"),
     ("diagonal, vamp", "prior"), ("diagonal, flow", "prior"), ("layers", "guide"), ("relaxed bits", "prior")],
)  # fmt: skip
def test_annealing_agrees_with_quadrature(name, start):
    vae = vae_of(name)
    with torch.no_grad():
        x = vae.sample(2)
    if name == "layers":  # four latents
        found = pv.log_marginal(vae.model, vae.guide, x, num_samples=10_000)
        truth, error = found.log_px, found.standard_error
    else:
        limit, num_points = GRIDS.get(name, (9.0, 151))
        truth, error = pv.quadrature_log_marginal(vae.model, x, limit=limit, num_points=num_points)
    settings = {"num_distributions": 4, "num_chains": 200, "num_leapfrog": 1, "start": start}
    annealed = pv.annealed_log_marginal(vae.model, vae.guide, x, **settings)
    spread = (error**2 + annealed.standard_error**2).sqrt()
    assert_within_standard_errors(annealed.value, truth, spread + 0.01)
    assert annealed.standard_error.median() < 0.3


@pytest.mark.parametrize("name", combinations())
def test_every_part_goes_with_every_objective_and_condition_or_is_refused_by_name(name):
    if "vamp" in name:
        assert "needs a VAE without conditions" in refusal(vae_of, name, num_conditions=1)
    pairs = {
        num_conditions: (
            vae_of(name, num_conditions=num_conditions),
            (torch.randn(5, 3), *[torch.tensor([0, 1, 2, 0, 1])] * num_conditions),
        )
        for num_conditions in ((0,) if "vamp" in name else (0, 1))
    }
    turn = list(combinations()).index(name)
    for place, (objective_name, objective) in enumerate(every_objective().items()):
        # Part, objective and condition are covered in pairs.
        if not takes(name, place):
            continue
        vae, args = pairs[(place // len(OF_VECTORS) + turn) % len(pairs)]
        vae.zero_grad()
        refused = "objective elbo_analytic_kl needs" if name != "diagonal, standard" else None
        no_mixture = None if name.startswith("mixture") else "needs a guide with one site that is a MixtureSameFamily"
        has_no_path = name.startswith(("mixture", "relaxed")) or name.endswith(("mixture", "vamp"))
        refused = {
            "elbo_analytic_kl": refused,
            "elbo_enumerated": "enumeration needs discrete",
            "gdreg": "GDReG needs a latent of each datum that the guide draws with rsample" if has_no_path else None,
            **dict.fromkeys(OF_MIXTURES, no_mixture),
        }.get(objective_name)
        if refused:
            assert refused in refusal(check_objective, objective, vae.model, vae.guide, *args)
            continue
        check_objective(objective, vae.model, vae.guide, *args)
        loss = objective.differentiable_loss(vae.model, vae.guide, *args)
        loss.backward()
        assert loss.isfinite()
        for parameter_name, parameter in vae.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name


LIKELIHOODS = {
    "bernoulli": (pv.Bernoulli, lambda x: (x > 0.5).float()),
    "continuous bernoulli": (pv.ContinuousBernoulli, lambda x: x),
    "gaussian": (lambda: pv.Gaussian(0.5, learn_scale=True), lambda x: x),
    "predicted": (lambda: pv.HeteroscedasticGaussian(0.1), lambda x: x),
    "categorical": (pv.Categorical, lambda x: (255 * x).round() / 255),
    "logistic": (pv.DiscretizedLogistic, lambda x: (255 * x).round() / 255),
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_part_goes_with_every_likelihood(likelihood):
    make, data_of = LIKELIHOODS[likelihood]
    x = data_of(torch.rand(4, 3))
    place = list(LIKELIHOODS).index(likelihood)
    for name in (name for name in combinations() if takes(name, place)):
        vae = vae_of(name, make())
        vae.check_data(x)
        pair = gate.check(vae.model, vae.guide, None, x)
        assert pair.layout.is_vectorized
        pair.check_densities()
        loss = pv.objectives.IWAE(3).differentiable_loss(vae.model, vae.guide, x)
        loss.backward()
        grads = [parameter.grad for parameter in vae.parameters()]
        assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads), name
