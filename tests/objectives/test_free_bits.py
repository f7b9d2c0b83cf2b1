"""Free bits: a floor under the analytic KL of each latent dimension, its loss and its gradient by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors, refusal, suite_seed
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import Adam

import pyrovae as pv
from pyrovae.objectives.registry import from_name

BATCH, LATENT = 6, 3
FLOORS = (1e-9, 0.1, 0.2, 1.0, 50.0)  # below every KL of `known_vae`, between them, and above all


def free_bits(floor):
    return from_name("elbo_analytic_kl", free_bits=floor)


def known_vae(**settings):
    """Returns the VAE and data that `FLOORS` are for: in float64, a linear encoder whose q(z|x) is known by hand."""
    torch.manual_seed(2)  # of every base seed
    defaults = {"latent_dim": LATENT, "hidden": (), "likelihood": pv.Gaussian(0.5)}
    vae = pv.VAE((4,), **{**defaults, **settings}).double()
    with torch.no_grad():  # so that each dimension has a KL of another size
        vae.encoder.output.weight[:LATENT].mul_(torch.tensor([[0.5], [1.5], [3.0]]))
    return vae, torch.randn(BATCH, 4, dtype=torch.float64)


def kl_by_hand(vae, x):
    """Returns KL_j(q(z_j|x_b) || N(0, 1)), `(batch, latent_dim)`."""
    net = vae.encoder.output
    loc, log_variance = (x @ net.weight.T + net.bias).reshape(len(x), 2, LATENT).unbind(1)
    return 0.5 * (log_variance.exp() + loc**2 - 1 - log_variance)


def loss_and_gradients(objective, vae, x, seed=7):
    vae.zero_grad()
    torch.manual_seed(suite_seed(seed))
    loss = objective.loss_and_grads(vae.model, vae.guide, x)
    return loss, [p.grad.clone() for p in vae.parameters()]


def minus_log_likelihood(vae, x, seed=7):
    """Returns -log p(x_b|z_b) at the draw that the seed gives, `(batch,)`."""
    torch.manual_seed(suite_seed(seed))
    z = poutine.trace(vae.guide).get_trace(x).nodes["z"]["value"]
    trace = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(x)
    trace.compute_log_prob()
    return -trace.nodes["x"]["log_prob"]


# The loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.25, 4.0])
@pytest.mark.parametrize("floor", FLOORS)
def test_the_loss_is_the_formula_with_beta_on_the_floor_too(floor, beta):
    vae, x = known_vae(beta=beta)
    means = kl_by_hand(vae, x).mean(0)
    expected = minus_log_likelihood(vae, x).sum() + beta * BATCH * means.clamp(min=floor).sum()
    torch.manual_seed(suite_seed(7))
    assert free_bits(floor).loss(vae.model, vae.guide, x) == pytest.approx(expected.item(), abs=1e-10)
    loss, gradients = loss_and_gradients(free_bits(floor), vae, x)
    assert loss == pytest.approx(expected.item(), abs=1e-10)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, list(vae.parameters())), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_the_floors_of_these_tests_hold_for_none_for_some_and_for_all_dimensions():
    means = kl_by_hand(*known_vae()).mean(0)
    assert [(means < floor).sum().item() for floor in FLOORS] == [0, 1, 2, 2, 3]


def test_the_floor_is_under_the_mean_over_the_minibatch_and_not_under_each_datum():
    """The data have KLs on both sides of the floor: the mean is above it, so that nothing is floored."""
    vae, _ = known_vae()
    with torch.no_grad():
        vae.encoder.output.weight.zero_()
        vae.encoder.output.bias.zero_()
        vae.encoder.output.weight[0, 0] = 1.0
    x = torch.zeros(2, 4, dtype=torch.float64)
    x[1, 0] = 2.0
    assert torch.equal(kl_by_hand(vae, x)[:, 0], torch.tensor([0.0, 2.0], dtype=torch.float64))
    expected = minus_log_likelihood(vae, x).sum() + 2 * (1.0 + 0.9 + 0.9)
    torch.manual_seed(suite_seed(7))
    assert free_bits(0.9).loss(vae.model, vae.guide, x) == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_it_is_pyros_analytic_elbo_where_the_floor_is_below_every_kl(beta):
    vae, x = known_vae(beta=beta, hidden=(5,))
    theirs = loss_and_gradients(TraceMeanField_ELBO(max_plate_nesting=1), vae, x)
    ours = loss_and_gradients(free_bits(1e-12), vae, x)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-10)
    for found, expected in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert loss_and_gradients(free_bits(5.0), vae, x)[0] > ours[0] + 1  # it is not that loss whatever the floor


def test_a_batch_of_one_datum_is_floored_as_any_other():
    vae, x = known_vae()
    expected = minus_log_likelihood(vae, x[:1]).sum() + kl_by_hand(vae, x[:1]).clamp(min=0.3).sum()
    torch.manual_seed(suite_seed(7))
    assert free_bits(0.3).loss(vae.model, vae.guide, x[:1]) == pytest.approx(expected.item(), abs=1e-10)


def test_where_the_floor_holds_the_loss_lies_above_minus_the_elbo():
    vae, x = known_vae()
    torch.manual_seed(suite_seed(7))
    elbo = -TraceMeanField_ELBO(max_plate_nesting=1).loss(vae.model, vae.guide, x)
    for floor in FLOORS:
        torch.manual_seed(suite_seed(7))
        assert free_bits(floor).loss(vae.model, vae.guide, x) >= -elbo - 1e-12


# The gradient -------------------------------------------------------------------------------------------------------


def test_the_kl_gives_a_floored_dimension_exactly_no_gradient():
    """The decoder does not look at z, so that only the KL reaches the encoder."""
    vae, x = known_vae()
    with torch.no_grad():
        vae.decoder.output.weight.zero_()
    means = kl_by_hand(vae, x).mean(0)
    floor = means.sort().values[1:].mean().item()  # between the second and the third
    _, gradients = loss_and_gradients(free_bits(floor), vae, x)
    outputs = gradients[0].reshape(2, LATENT, -1)
    assert outputs.shape[-1] == 4
    for j in range(LATENT):
        floored = means[j] < floor
        assert (outputs[:, j] == 0).all() == floored
        assert (outputs[:, j] != 0).all() != floored
    assert (means < floor).sum() == 2


def test_a_floored_dimension_still_learns_from_the_reconstruction():
    vae, x = known_vae()
    _, floored = loss_and_gradients(free_bits(100.0), vae, x)
    expected = torch.autograd.grad(minus_log_likelihood(vae, x).sum(), list(vae.parameters()))
    for found, wanted in zip(floored, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
        assert found.any()


def test_svi_and_the_module_of_the_loss_take_it():
    vae, x = known_vae()
    before = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(vae.model, vae.guide, Adam({"lr": 0.01}), free_bits(0.2))
    torch.manual_seed(suite_seed(7))
    assert svi.step(x) > 0
    assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    torch.manual_seed(suite_seed(7))
    loss = free_bits(0.2).differentiable_loss(vae.model, vae.guide, x)
    assert loss.requires_grad
    assert loss.shape == ()


# Training -----------------------------------------------------------------------------------------------------------


def test_a_step_of_fit_is_the_gradient_of_the_loss_per_datum():
    vae, x = known_vae()
    torch.manual_seed(suite_seed(5))
    order = torch.randperm(BATCH)
    loss = free_bits(0.2).differentiable_loss(vae.model, vae.guide, x[order]) / BATCH
    gradients = torch.autograd.grad(loss, list(vae.parameters()))
    before = [p.detach().clone() for p in vae.parameters()]
    settings = {"epochs": 1, "optimizer": torch.optim.SGD, "lr": 0.1, "seed": suite_seed(5)}
    history = pv.fit(vae, x, **settings, objective=free_bits(0.2))
    assert history.loss[0] == pytest.approx(loss.item(), abs=1e-10)
    for start, end, gradient in zip(before, vae.parameters(), gradients, strict=True):
        torch.testing.assert_close((start - end.detach()) / 0.1, gradient, rtol=0, atol=1e-9)


def test_a_floor_keeps_latents_in_use_that_would_collapse_without_it():
    """The data are pure noise that the decoder alone explains, so that the ELBO leaves the latents unused."""
    torch.manual_seed(suite_seed(0))
    x = torch.randn(400, 2)
    use = {}
    for floor in (1e-6, 0.5):
        torch.manual_seed(suite_seed(1))
        vae = pv.VAE((2,), latent_dim=2, hidden=(8,), likelihood=pv.Gaussian(1.0))
        pv.fit(vae, x, epochs=20, lr=0.03, batch_size=100, objective=free_bits(floor), seed=suite_seed(0))
        use[floor] = pv.diagnostics.latent_use(vae, x).kl
    assert use[1e-6].max() < 0.05
    assert use[0.5].min() > 0.35


def test_the_objective_has_no_noise_but_that_of_the_reconstruction():
    """The mean over draws is the closed form: E_q |x - Wz - b|^2 is a trace, and the floored KL has no noise."""
    vae, x = known_vae()
    q, decoder = vae.encode(x), vae.decoder.output
    mean = q.mean @ decoder.weight.T + decoder.bias
    squares = (x - mean).square().sum() + (q.variance @ decoder.weight.square().T).sum()
    reconstruction = squares / (2 * 0.25) + BATCH * 4 * (math.log(0.5) + 0.5 * math.log(2 * math.pi))
    expected = reconstruction + BATCH * kl_by_hand(vae, x).mean(0).clamp(min=0.2).sum()
    losses = torch.tensor([free_bits(0.2).loss(vae.model, vae.guide, x) for _ in range(300)], dtype=torch.float64)
    assert_within_standard_errors(losses.mean(), expected, losses.std() / math.sqrt(300))


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [0, 0.0, -0.1, math.nan, math.inf, True, "0.1"])
def test_a_floor_that_is_no_positive_number_is_refused(floor):
    assert refusal(free_bits, floor) == f"free_bits must be a finite number > 0, got {floor!r}"


@pytest.mark.parametrize("objective", ["elbo", "iwae", "renyi"])
def test_a_floor_under_any_other_objective_is_refused(objective):
    settings = {"num_particles": 2, "free_bits": 0.1, **({"alpha": 0.5} if objective == "renyi" else {})}
    vae, x = known_vae()
    message = refusal(pv.fit, vae, x, epochs=1, objective=objective, **settings)
    assert message.startswith("free_bits must ")
    assert objective in message


def test_a_floor_beside_an_objective_that_has_settings_of_its_own_is_refused():
    vae, x = known_vae()
    for objective in (TraceMeanField_ELBO(), free_bits(0.1)):
        message = refusal(pv.fit, vae, x, epochs=1, objective=objective, free_bits=0.2)
        assert message.startswith("free_bits must go with an objective's name")


def program(prior, posterior):
    """Returns a model and a guide with these distributions of z."""

    class Programs:
        @staticmethod
        def model(x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        @staticmethod
        def guide(x):
            loc = pyro.param("loc", torch.zeros(2))
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", posterior(loc))

    return Programs


STANDARD = dist.Normal(torch.zeros(2), 1.0).to_event(1)
CORRELATED = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))


def test_a_pair_of_plain_functions_is_floored_per_dimension_too():
    pair = program(STANDARD, lambda loc: dist.Normal(loc + torch.tensor([2.0, 0.0]), 1.0).to_event(1))
    x = torch.zeros(5, 2)
    torch.manual_seed(suite_seed(7))
    found = free_bits(0.3).loss(pair.model, pair.guide, x)
    torch.manual_seed(suite_seed(7))
    plain = TraceMeanField_ELBO(max_plate_nesting=1).loss(pair.model, pair.guide, x)
    assert found - plain == pytest.approx(5 * 0.3, abs=1e-5)  # KL 2 and 0 nats: the second alone is lifted


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [
        (STANDARD, lambda loc: dist.MultivariateNormal(loc, torch.eye(2))),
        (CORRELATED, lambda loc: dist.MultivariateNormal(loc, torch.eye(2))),
        (CORRELATED, lambda loc: dist.Normal(loc, 1.0).to_event(1)),
        (dist.StudentT(3.0).expand([2]).to_event(1), lambda loc: dist.Normal(loc, 1.0).to_event(1)),
    ],
    ids=["multivariate guide", "both multivariate", "multivariate prior", "no closed form"],
)
def test_latents_whose_dimensions_are_not_independent_or_have_no_closed_form_are_refused(prior, posterior):
    pair = program(prior, posterior)
    message = refusal(pv.fit, pair, torch.randn(8, 2), epochs=1, objective=free_bits(0.1))
    assert 'site "z"' in message
    assert "free_bits needs latents of independent dimensions" in message or "needs a closed-form KL" in message


def test_an_autoencoder_has_no_kl_to_floor():
    vae, x = known_vae(posterior="delta")
    message = refusal(pv.fit, vae, x, epochs=1, objective=free_bits(0.1))
    assert "\n" not in message
