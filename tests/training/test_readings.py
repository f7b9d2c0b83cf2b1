"""How an objective reads a pair holds for the steps, the validation and the error messages of its training."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Pair, refusal, suite_seed

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE
from pyrovae.programs import Reading, not_finite

pytestmark = pytest.mark.usefixtures("float64")
X = torch.zeros(1, dtype=torch.float64)
RATINGS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def factorisation(scale: float = 0.5) -> Pair:
    """Users and items, each with a latent, whose product is observed: either may be the data."""

    def plates(ratings):
        return pyro.plate("users", ratings.shape[0], dim=-2), pyro.plate("items", ratings.shape[1], dim=-1)

    def model(ratings):
        users, items = plates(ratings)
        with users:
            u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
        with items:
            v = pyro.sample("v", dist.Normal(torch.zeros(()), 1.0))
        with users, items:
            pyro.sample("ratings", dist.Normal(u * v, pyro.param("scale", torch.tensor(scale))), obs=ratings)

    def guide(ratings):
        users, items = plates(ratings)
        with users:
            pyro.sample("u", dist.Normal(pyro.param("slope", torch.tensor(0.4)) * ratings.mean(-1, True), 0.7))
        with items:
            pyro.sample("v", dist.Normal(pyro.param("other", torch.tensor(0.4)) * ratings.mean(-2, True), 0.7))

    return Pair(model, guide)


def history(pair: Pair, objective, **settings) -> pv.History:
    return pv.fit(pair, [RATINGS], epochs=1, objective=objective, seed=suite_seed(), progress=False, **settings)


def loss_of(pair: Pair, objective, seed: int) -> float:
    torch.manual_seed(seed)
    return objective.loss(pair.model, pair.guide, RATINGS)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("plate", "count"), [("users", 4), ("items", 3)])
def test_the_plate_that_is_said_counts(plate, count, compile, without_machine_code):
    pair, objective = factorisation(), IWAE(2, plate=plate)
    expected = loss_of(pair, objective, suite_seed()) / count
    assert history(pair, objective, compile=compile).loss == [pytest.approx(expected, abs=1e-10)]


@pytest.mark.parametrize(("plate", "count", "shared"), [("users", 4, "v"), ("items", 3, "u")])
def test_validation_is_per_datum_of_the_plate_that_is_said(plate, count, shared):
    """Without the densities of the other plate's latents, which are global, and over eight draws of them."""
    pair = factorisation()
    found = history(pair, ELBO(plate=plate), validation=[RATINGS], lr=1e-12)
    total = 0.0
    for seed in range(8):
        torch.manual_seed(seed)
        guide = pyro.poutine.trace(pair.guide).get_trace(RATINGS)
        model = pyro.poutine.trace(pyro.poutine.replay(pair.model, trace=guide)).get_trace(RATINGS)
        model.compute_log_prob()
        guide.compute_log_prob()
        own = "u" if shared == "v" else "v"
        local = (model.nodes["ratings"], model.nodes[own])
        total += sum(site["log_prob_sum"] for site in local) - guide.nodes[own]["log_prob_sum"]
    assert found.elbo == [pytest.approx(total.item() / (8 * count), abs=1e-8)]


def test_one_bound_for_all_data_is_in_nats_of_all_data():
    pair, objective = factorisation(), IWAE(3, joint=True)
    found = history(pair, objective, validation=[RATINGS], lr=1e-12)
    assert found.loss == [pytest.approx(loss_of(pair, objective, suite_seed()), abs=1e-8)]
    elbo = -sum(loss_of(pair, ELBO(joint=True), seed) for seed in range(8)) / 8
    assert found.elbo == [pytest.approx(elbo, abs=1e-8)]


def test_a_second_reading_is_asked_about():
    assert 'plate must say which is the data plate: observed sites lie in "users" and "items"' in refusal(
        history, factorisation(), ELBO()
    )


def test_a_site_that_is_not_finite_is_named_under_the_objectives_reading():
    with pytest.raises(FloatingPointError, match='log-density at site "ratings" of the model is not finite'):
        history(factorisation(1e-200), ELBO(plate="users"))


def test_a_site_that_is_not_finite_in_a_later_particle_is_named():
    """Particles run one after another; z is below 0 in the first, and above it in the second."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            pyro.sample("x", dist.Normal(torch.where(z > 0, torch.inf, z), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))

    def draws(seed):
        torch.manual_seed(seed)
        return [guide(X).item() for _ in range(2)]

    seed = next(seed for seed in range(100) if draws(seed)[0] < 0 < draws(seed)[1])
    found = []
    for vectorize in (False, True):
        torch.manual_seed(seed)
        reading = Reading(vectorize_particles=vectorize)
        found.append(not_finite(model, guide, X, num_particles=2, reading=reading))
    assert found == ['the log-density at site "x" of the model is not finite'] * 2
