"""Steps of `fit` against closed forms and SVI, its random numbers, sources of data, and changes of objective."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import Pair, draw, linear_gaussian, parameters_of, ring, small_vae, suite_seed
from pyro.infer import SVI, Trace_ELBO
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv

SGD = torch.optim.SGD


# What a step computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_particles", [1, 4])
def test_a_step_is_svi_s_step_with_the_gradient_per_datum(num_particles):
    x = ring().train_x
    ours, theirs = small_vae(), small_vae()
    pv.fit(ours, x, epochs=1, batch_size=100, optimizer=SGD, lr=0.1, num_particles=num_particles, seed=suite_seed(5))
    elbo = Trace_ELBO(num_particles=num_particles, vectorize_particles=num_particles > 1, max_plate_nesting=1)
    svi = SVI(theirs.model, theirs.guide, pyro.optim.SGD({"lr": 0.1 / 100}), elbo)
    torch.manual_seed(suite_seed(5))
    order = torch.randperm(100)
    svi.step(x[order])
    torch.testing.assert_close(parameters_of(ours), parameters_of(theirs), atol=1e-6, rtol=0)


def test_on_one_batch_the_gradient_is_the_exact_elbos_in_closed_form():
    """The analytic-KL ELBO of a linear Gaussian pair with a vanishing guide is the closed form, up to the noise."""
    vae = linear_gaussian(0)
    with torch.no_grad():
        vae.guide_log_scale.fill_(-30.0)
    x = draw(vae, 10)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    gradients = torch.autograd.grad(vae.elbo(x).mean(), list(vae.parameters()))
    pv.fit(vae, x, epochs=1, batch_size=10, optimizer=SGD, lr=1e-3, objective="elbo_analytic_kl")
    for (name, after), gradient in zip(vae.named_parameters(), gradients, strict=True):
        torch.testing.assert_close((after.detach() - before[name]) / 1e-3, gradient, atol=1e-6, rtol=1e-6)


def test_the_loss_of_an_epoch_weighs_a_smaller_last_batch_by_its_size():
    vae = linear_gaussian(1)
    x = draw(vae, 10)
    # At the exact posterior every log-weight is log p(x), so that the loss is known whatever is drawn.
    pair = type("Pair", (), {"model": staticmethod(vae.model), "guide": staticmethod(vae.exact_guide)})
    history = pv.fit(pair, x, epochs=1, batch_size=4, lr=1e-300, optimizer=SGD, objective="elbo")
    assert history.loss[0] == pytest.approx(-vae.log_px(x).mean().item(), abs=1e-10)


def test_the_learning_rate_means_the_same_at_every_batch_size():
    vae = linear_gaussian(2)
    with torch.no_grad():
        vae.guide_log_scale.fill_(-30.0)
    x = draw(vae, 8)
    steps = []
    for repeats in (1, 16):
        twin = copy.deepcopy(vae)
        data = x.repeat(repeats, 1)
        pv.fit(twin, data, epochs=1, batch_size=len(data), optimizer=SGD, lr=0.01, objective="elbo_analytic_kl")
        steps.append(parameters_of(twin) - parameters_of(vae))
    torch.testing.assert_close(steps[0], steps[1], atol=1e-10, rtol=1e-8)


def test_gradients_are_clipped_to_the_norm_of_the_loss_per_datum():
    vae = small_vae()
    before = parameters_of(vae)
    pv.fit(vae, ring().train_x, epochs=1, batch_size=100, optimizer=SGD, lr=1.0, max_grad_norm=0.01)
    assert (parameters_of(vae) - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_an_iwae_step_is_the_gradient_of_the_bound_on_the_same_draws():
    vae = linear_gaussian(3)
    x = draw(vae, 6)
    torch.manual_seed(suite_seed(7))
    order = torch.randperm(6)
    bound = (pv.log_weights(vae.model, vae.guide, x[order], num_particles=5).logsumexp(0) - math.log(5)).mean()
    gradients = torch.autograd.grad(bound, list(vae.parameters()))
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    pv.fit(
        vae, x, epochs=1, batch_size=6, optimizer=SGD, lr=1e-2, objective="iwae", num_particles=5, seed=suite_seed(7)
    )
    for (name, after), gradient in zip(vae.named_parameters(), gradients, strict=True):
        torch.testing.assert_close((after.detach() - before[name]) / 1e-2, gradient, atol=1e-9, rtol=1e-9)


def test_training_a_linear_gaussian_vae_reaches_the_maximum_likelihood():
    """Probabilistic PCA: at the optimum the marginal's covariance is the sample's, but for its smallest eigenvalues."""
    truth = linear_gaussian(4, data_dim=3, latent_dim=1, scale=0.5)
    torch.manual_seed(suite_seed(1))
    x = draw(truth, 2_000)
    vae = pv.LinearGaussianVAE(torch.randn(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0)
    pv.fit(vae, x, epochs=80, batch_size=200, lr=0.03, schedule="cosine", seed=suite_seed(0))
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    noise = eigenvalues[:2].mean()
    best = -0.5 * (3 * math.log(2 * math.pi) + eigenvalues[2].log() + 2 * noise.log() + 3)
    assert vae.log_px(x).mean().item() == pytest.approx(best.item(), abs=2e-3)
    assert vae.log_px(x).mean() <= best + 1e-9
    assert vae.elbo(x).mean().item() == pytest.approx(best.item(), abs=4e-3)


# Seeds ---------------------------------------------------------------------------------------------------------------


def test_a_seed_fixes_the_run_and_leaves_the_callers_generator_alone():
    results = []
    for seed in (1, 1, 2):
        vae = small_vae()
        torch.manual_seed(suite_seed(99))
        state = torch.get_rng_state()
        history = pv.fit(vae, ring(), epochs=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append((parameters_of(vae), history.loss))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert not torch.equal(results[0][0], results[2][0])


def test_without_a_seed_the_callers_generator_is_used():
    states, params = [], []
    for start in (1, 1, 2):
        vae = small_vae()
        torch.manual_seed(suite_seed(start))
        pv.fit(vae, ring(), epochs=1)
        states.append(torch.get_rng_state())
        params.append(parameters_of(vae))
    assert torch.equal(params[0], params[1])
    assert not torch.equal(params[0], params[2])


def test_validation_leaves_the_training_as_it_is():
    one, other = small_vae(), small_vae()
    with_validation = pv.fit(one, ring(), epochs=2, seed=suite_seed(1))
    without = pv.fit(other, ring(num_validation=0), epochs=2, seed=suite_seed(1))
    assert torch.equal(parameters_of(one), parameters_of(other))
    assert with_validation.loss == without.loss
    assert without.elbo == without.kl == without.reconstruction == [None, None]


def test_a_parameter_drawn_at_its_first_use_follows_the_seed():
    starts = []
    for seed in (1, 1, 2):
        pyro.clear_param_store()

        def model(x):
            a = pyro.param("a", lambda: torch.randn(2))
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
                pyro.sample("x", dist.Normal(z + a, 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x), 2]).to_event(1))

        pv.fit(Pair(model, guide), torch.zeros(4, 2), epochs=1, lr=1e-30, seed=seed)
        starts.append(pyro.get_param_store()["a"].tolist())
    assert starts[0] == starts[1] != starts[2]


def test_the_param_store_is_not_cleared():
    pyro.param("mine", torch.tensor(1.0))
    pv.fit(small_vae(), ring(), epochs=1)
    assert pyro.get_param_store()["mine"].item() == 1.0


# Sources of data -----------------------------------------------------------------------------------------------------


def test_a_data_loader_is_trained_on_as_the_tensors_are():
    x = ring().train_x
    # A generator of its own: the loader draws a seed for its workers, here from no stream that training uses.
    loader = DataLoader(TensorDataset(x, torch.zeros(100)), batch_size=30, generator=torch.Generator())
    one, other = small_vae(), small_vae()
    pv.fit(one, loader, epochs=2, seed=suite_seed(1))

    class InOrder:
        def __iter__(self):
            return iter(x.split(30))

    pv.fit(other, InOrder(), epochs=2, seed=suite_seed(1))
    assert torch.equal(parameters_of(one), parameters_of(other))


def test_every_batch_of_an_iterable_is_seen_once_an_epoch():
    x, seen = ring().train_x, []

    class Watched:
        def __iter__(self):
            for batch in x.split(30):
                seen.append(len(batch))
                yield batch

    vae = small_vae()
    pv.fit(vae, Watched(), epochs=2)
    # One batch more at the start: the one that the pair is checked on.
    assert seen == [30] + [30, 30, 30, 10] * 2


def test_plain_functions_with_pyro_param_are_trained():
    def model(x):
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(loc + 0 * z, scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x), 2]).to_event(1))

    x = torch.randn(500, 2) * torch.tensor([0.5, 2.0]) + torch.tensor([1.0, -3.0])
    pair = type("Pair", (), {"model": staticmethod(model), "guide": staticmethod(guide)})
    pv.fit(pair, x, epochs=300, lr=0.1, batch_size=500, schedule="cosine")
    store = pyro.get_param_store()
    torch.testing.assert_close(store["loc"].detach(), x.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(store["scale"].detach(), x.std(0), atol=0.02, rtol=0)


def test_no_gradient_is_left_for_a_later_step_of_svi():
    vae = small_vae()
    pv.fit(vae, ring(), epochs=1)
    assert all(parameter.grad is None for parameter in vae.parameters())


# Several objectives ---------------------------------------------------------------------------------------------------


def losses_by_hand(vae, x, objectives, optimizer):
    """Takes one step an epoch on all of x, with the objective of each epoch; returns the losses per datum."""
    losses = []
    for objective in objectives:
        optimizer.zero_grad()
        loss = objective.differentiable_loss(vae.model, vae.guide, x) / len(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_an_objective_from_an_epoch_on_takes_over_there_with_the_optimiser_as_it_is():
    elbo, iwae = pv.objectives.ELBO(2), pv.objectives.IWAE(5)
    vae, other = small_vae(), small_vae()
    x = torch.randn(1, 2).expand(6, 2)  # in any order the same
    torch.manual_seed(suite_seed(0))
    settings = {"epochs": 5, "batch_size": 6, "progress": False, "optimizer": torch.optim.Adam, "lr": 0.01}
    history = pv.fit(vae, x, objective={4: elbo, 1: elbo, 3: iwae}, **settings)
    torch.manual_seed(suite_seed(0))
    expected = []
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    torch.randint(2**62, ())  # the seed of the check
    for objective in (elbo, elbo, iwae, elbo, elbo):
        torch.randperm(6)  # the order of the batches
        expected += losses_by_hand(other, x, [objective], optimizer)
    assert history.loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(parameters_of(vae), parameters_of(other))


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ({2: "elbo"}, {}, r"objective must have one from epoch 1 on, got \[2\]"),
        ({}, {}, r"objective must have one from epoch 1 on, got \[\]"),
        ({1: "elbo", 4: "iwae"}, {}, "an objective's first epoch must be <= epochs, 3; got 4"),
        ({1: "elbo", "2": "iwae"}, {}, "an objective's first epoch must be a whole number >= 1, got '2'"),
        ({1: "elbo", 2: "vae"}, {}, "objective must be one of elbo, "),
        ({1: "elbo", 2: "iwae"}, {"num_particles": 4}, "num_particles must go with the name of the one objective"),
    ],
)
def test_objectives_that_do_not_cover_the_training_are_refused(objective, settings, message):
    with pytest.raises(pv.InputError, match=message):
        pv.fit(small_vae(), torch.randn(6, 2), epochs=3, objective=objective, **settings)


def test_every_objective_is_checked_before_the_first_step():
    vae = small_vae(beta=2.0)
    before = parameters_of(vae)
    with pytest.raises(pv.InputError, match="ThermodynamicVO is not defined for a beta on the latents, got 2"):
        pv.fit(vae, torch.randn(6, 2), epochs=3, objective={1: "elbo", 3: pv.objectives.ThermodynamicVO(2)})
    assert torch.equal(parameters_of(vae), before)
