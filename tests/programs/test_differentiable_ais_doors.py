"""Differentiable AIS through every door, under Pyro's losses and ours, and what is refused."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from annealed_pairs import linear
from helpers import draw, small_vae, suite_seed
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from scalar_pairs import Pair, double

import pyrovae as pv
from pyrovae.objectives import ELBO, IWAE

STANDARD = dist.Normal(double(0.0), 1.0)


def test_compiled_steps_are_those_of_svi_to_the_bit():
    losses, found = [], []
    start = linear(2)[2]
    x = draw(start.pair, 6)
    for kind in (SVI, pv.CompiledSVI):
        annealed = copy.deepcopy(start)
        svi = kind(
            annealed.model,
            annealed.guide,
            pyro.optim.Adam({"lr": 0.01}),
            loss=IWAE(4),
            **({} if kind is SVI else {"inductor": False}),
        )
        torch.manual_seed(suite_seed(2))
        losses.append([svi.step(x) for _ in range(5)])
        found.append(torch.nn.utils.parameters_to_vector(annealed.parameters()))
    assert svi.reason is None
    assert losses[0] == losses[1]
    assert torch.equal(*found)
    assert not any(torch.equal(p, q) for p, q in zip(start.parameters(), annealed.parameters(), strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ELBO(1), Trace_ELBO()),
        (IWAE(3), RenyiELBO(alpha=0, num_particles=3, max_plate_nesting=1, vectorize_particles=True)),
    ],
    ids=("elbo", "iwae"),
)
def test_it_goes_through_pyros_own_losses_on_the_same_noise(ours, theirs):
    _, x, annealed = linear(2)
    values = []
    for loss in (ours, theirs):
        torch.manual_seed(suite_seed(6))
        values.append(loss.loss(annealed.model, annealed.guide, x))
    assert values[0] == pytest.approx(values[1], rel=1e-10)


def test_fit_trains_a_vae_with_conditions_beta_and_its_checks():
    vae = small_vae(condition=pv.OneHot(2), beta=0.5)
    x, y = torch.randn(20, 2), torch.arange(20) % 2
    annealed = pv.DifferentiableAIS(vae, x, y, num_transitions=2)
    before = torch.nn.utils.parameters_to_vector(annealed.parameters()).detach().clone()
    history = pv.fit(annealed, (x.numpy(), y), epochs=2, beta_schedule="linear", validation=(x, y), compile=False)
    assert all(map(math.isfinite, (*history.loss, *history.elbo)))
    assert vae.beta.item() == 0.5
    after = torch.nn.utils.parameters_to_vector(annealed.parameters())
    assert not torch.equal(before, after)
    with pytest.raises(pv.InputError, match="x must have"):
        pv.fit(annealed, torch.randn(20, 3), epochs=1)


def test_compare_takes_it():
    _, x, annealed = linear(2)
    found = pv.compare(
        annealed.model, annealed.guide, x, objectives=("elbo", "iwae"), num_particles=(4,), repeats=4, compile=False
    )
    assert all(row.gap is not None for row in found.rows)


def test_a_race_puts_it_beside_the_pair():
    vae, x, _ = linear(1)
    makers = {
        "plain": lambda: copy.deepcopy(vae),
        "annealed": lambda: pv.DifferentiableAIS(copy.deepcopy(vae), x, num_transitions=2),
    }
    race = pv.race(makers, x, ["elbo"], seeds=(0,), epochs=1, held_out=x, num_samples=50, progress=False, compile=False)
    assert race.objectives == ["plain", "annealed"]


def test_a_copy_is_a_pair_of_its_own():
    _, x, annealed = linear(2)
    ELBO().loss_and_grads(annealed.model, annealed.guide, x)
    for other in (copy.deepcopy(annealed), pickle.loads(pickle.dumps(annealed))):
        svi = SVI(other.model, other.guide, pyro.optim.Adam({"lr": 0.1}), ELBO())
        svi.step(x)
        assert not torch.equal(other.increments, annealed.increments)
        assert not torch.equal(other.pair.weight, annealed.pair.weight)


def test_chunks_of_particles_have_the_gradient_of_finite_differences_on_the_same_noise():
    """The checkpoint of a chunk meets gradients that are taken inside of it."""
    _, x, annealed = linear(2)
    objective = IWAE(4, chunk_size=2)

    def loss() -> torch.Tensor:
        torch.manual_seed(suite_seed(7))
        return objective.differentiable_loss(annealed.model, annealed.guide, x)

    loss()
    loss().backward()
    for parameter in (annealed.increments, annealed.pair.weight, annealed.pair.guide_bias):
        values = []
        for move in (1e-5, -2e-5, 1e-5):
            with torch.no_grad():
                parameter[(0,) * parameter.dim()] += move
                values.append(loss().item())
        expected = (values[0] - values[1]) / 2e-5
        assert parameter.grad[(0,) * parameter.dim()].item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("objective", [ELBO(1), IWAE(2)], ids=str)
def test_running_statistics_move_once_a_step(objective):
    norm = torch.nn.BatchNorm1d(2, dtype=torch.float64)

    def model(x):
        pyro.module("norm", norm)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", STANDARD.expand([2]).to_event(1))
            h = norm(z.reshape(-1, 2)).reshape(z.shape)
            pyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", STANDARD.expand([2]).to_event(1))

    x = torch.ones(4, 2, dtype=torch.float64)
    annealed = pv.DifferentiableAIS(Pair(model, guide), x, num_transitions=3)
    for step in range(1, 3):
        objective.loss_and_grads(annealed.model, annealed.guide, x)
        assert norm.num_batches_tracked == step


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(pv.objectives.OBJECTIVES) - {"elbo", "iwae", "renyi", "miwae", "ciwae"}))
def test_objectives_that_hold_draws_are_refused_in_one_line(name):
    _, x, annealed = linear(2)
    objective = pv.objectives.from_name(name, **({} if name == "elbo_enumerated" else {"num_particles": 2}))
    with pytest.raises(pv.InputError) as caught:
        objective.loss(annealed.model, annealed.guide, x)
    assert len(str(caught.value).splitlines()) == 1


def with_latent(prior, q) -> Pair:
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(double(0.0), 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)

    return Pair(model, guide)


def shared(x):
    theta = pyro.sample("theta", STANDARD)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", STANDARD)
        pyro.sample("x", dist.Normal(theta + z, 1.0), obs=x[:, 0])


def shared_guide(x):
    pyro.sample("theta", STANDARD)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", STANDARD)


def summed(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Bernoulli(double(0.5)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", STANDARD)
        pyro.sample("x", dist.Normal(k + z, 1.0), obs=x[:, 0])


def below_another(observes: bool):
    def program(x):
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.LogNormal(double(0.0), 0.5))
            pyro.sample("z", dist.Uniform(torch.zeros_like(u), u))
            if observes:
                pyro.sample("x", STANDARD, obs=x[:, 0])

    return program


def autoguided() -> Pair:
    model = with_latent(STANDARD, STANDARD).model
    return Pair(
        model, pyro.infer.autoguide.AutoNormal(model, create_plates=lambda x: pyro.plate("data", len(x), dim=-1))
    )


BITS = dist.Bernoulli(double(0.5))
SIMPLEX = dist.Dirichlet(torch.ones(3, dtype=torch.float64))
REFUSED = {
    "discrete": (with_latent(BITS, BITS), 'the latent site "z" is discrete'),
    "point": (with_latent(STANDARD, dist.Delta(double(0.0))), 'the guide gives a point at site "z"'),
    "simplex": (with_latent(SIMPLEX, SIMPLEX), "other dimensions on the real line"),
    "supports": (
        with_latent(dist.Beta(double(2.0), 2.0), dist.LogNormal(double(-3.0), 0.1)),
        "one support in model and guide",
    ),
    "moving support": (Pair(below_another(True), below_another(False)), 'that of site "z" depends on other draws'),
    "global": (Pair(shared, shared_guide), 'the site "theta" lies outside the data plate'),
    "summed out": (Pair(summed, with_latent(STANDARD, STANDARD).guide), "sums out discrete sites"),
    "autoguide": (autoguided(), 'the auxiliary site "z_unconstrained"'),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_latents_that_do_not_move_are_refused_in_one_line(kind):
    pair, message = REFUSED[kind]
    with pytest.raises(pv.InputError, match=message) as caught:
        pv.DifferentiableAIS(pair, torch.ones(4, 1, dtype=torch.float64), num_transitions=2)
    assert len(str(caught.value).splitlines()) == 1
