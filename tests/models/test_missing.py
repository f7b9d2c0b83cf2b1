"""Missing cells: log p(x_obs) is exact, nothing depends on what is missing, and gradients are finite."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from families import LIKELIHOODS, data_of, table, table_data, with_holes
from helpers import doubles, refusal, small_vae

import pyrovae as pv
from pyrovae.common import settings_as_flags

NAN = torch.nan


def masked_vae(event_shape=(3,), **settings) -> pv.VAE:
    return small_vae(event_shape, missing="mask", **settings)


def test_on_a_linear_gaussian_model_the_weights_at_the_exact_posterior_are_the_exact_marginal_of_the_observed_cells():
    vae = masked_vae((5,), hidden=(), likelihood=pv.Gaussian(0.7)).double()
    x = doubles(40, 5)
    x[torch.rand(40, 5) < 0.5] = NAN
    x[0], x[1] = NAN, 1.0  # a datum without a cell, and one with all
    weight, bias = vae.decoder.output.weight.detach(), vae.decoder.output.bias.detach()
    variance, seen = vae.likelihood.scale.item() ** 2, ~x.isnan()
    covariance = weight @ weight.T + variance * torch.eye(5, dtype=torch.float64)

    def exact(row, cells):
        return dist.MultivariateNormal(bias[cells], covariance[cells][:, cells]).log_prob(row[cells])

    zero = torch.zeros((), dtype=torch.float64)
    expected = torch.stack([exact(x[n], cells) if cells.any() else zero for n, cells in enumerate(seen)])

    def exact_guide(x):
        precision = torch.eye(2, dtype=torch.float64) + weight.T @ (seen[..., None] * weight) / variance
        slope = (torch.where(seen, x - bias, 0.0) @ weight) / variance
        loc = torch.linalg.solve(precision, slope)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))

    with torch.no_grad():
        weights = pv.log_weights(vae.model, exact_guide, x, num_particles=4)
    estimate = pv.log_marginal(vae.model, exact_guide, x, num_samples=20)
    torch.testing.assert_close(weights, expected.expand(4, 40), rtol=0, atol=1e-10)
    torch.testing.assert_close(estimate.log_px, expected, rtol=0, atol=1e-10)
    assert estimate.standard_error.max() < 1e-7


def test_the_marginal_is_the_sum_over_all_values_of_the_missing_cells():
    """By quadrature over z on both sides, for discrete cells of three families."""
    families = {"sex": pv.Bernoulli(), "town": pv.Categorical(3), "visits": pv.Poisson()}
    vae = masked_vae(likelihood=pv.Columns(families), activation="tanh").double()
    completions = torch.cartesian_prod(*(torch.arange(num, dtype=torch.float64) for num in (2, 3, 60)))
    given = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    holes = torch.tensor(list(itertools.product((False, True), repeat=3)))
    every, found = (
        pv.quadrature_log_marginal(vae.model, x, num_points=41)[0] for x in (completions, given.masked_fill(holes, NAN))
    )
    for one, missing in zip(found, holes, strict=True):
        fits = (missing | (completions == given)).all(-1)
        torch.testing.assert_close(one, every[fits].logsumexp(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_density_is_that_of_the_observed_cells_and_missing_cells_have_no_gradient(name):
    vae = masked_vae((2, 3), likelihood=LIKELIHOODS[name]()).double()
    whole = data_of(name, 6, 2, 3, dtype=torch.float64)
    x = with_holes(whole)
    seen = ~x.isnan()
    site = pyro.poutine.trace(vae.model).get_trace(x).nodes["x"]
    assert site["value"].isfinite().all()
    outputs = vae.decoder(doubles(4, 6, 2)).detach().requires_grad_()
    vae.decode = lambda z: vae.likelihood(outputs, 2)
    cells = vae.decode(None).base_dist.log_prob(whole)
    expected = torch.where(seen, cells, 0.0).sum((-2, -1))
    fn = pyro.poutine.trace(vae.model).get_trace(x).nodes["x"]["fn"]
    found = fn.log_prob(site["value"])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert (found[:, 0] == 0).all()  # a datum without cells
    (gradient,) = torch.autograd.grad(found.sum(), outputs)
    assert gradient.isfinite().all()
    own = gradient.unsqueeze(2) if gradient.dim() == 4 else gradient  # (particles, batch, outputs per cell, 2, 3)
    assert (own.movedim(2, 0)[:, :, ~seen] == 0).all()
    assert (own.movedim(2, 0)[:, :, seen] != 0).any()


def gradients(vae, x, objective) -> dict[str, torch.Tensor]:
    vae.zero_grad()
    torch.manual_seed(7)
    objective.differentiable_loss(vae.model, vae.guide, x).backward()
    return {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [*LIKELIHOODS, "table"])
def test_loss_and_gradient_are_finite_with_every_family(name):
    x = with_holes(table_data(6) if name == "table" else data_of(name, 6, 3))
    vae = masked_vae(x.shape[1:], likelihood=table() if name == "table" else LIKELIHOODS[name]())
    vae.check_data(x)
    for objective in (pv.objectives.DReG(3), *[pv.objectives.ELBO()] * (name == "table")):
        found = gradients(vae, x, objective)
        assert found.keys() == {key for key, _ in vae.named_parameters()}
        assert all(gradient.isfinite().all() for gradient in found.values())
    assert vae.reconstruct(x).isfinite().all()


def test_the_encoder_sees_zeros_and_the_mask_of_each_kind_of_column():
    families = {"visits": pv.Poisson(), "town": pv.Categorical(3), "income": pv.LogNormal(1.0), "age": pv.Gaussian(1.0)}
    vae, seen = masked_vae((4,), likelihood=pv.Columns(families)), []
    vae.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    vae.encode(torch.tensor([[3.0, 2.0, math.e, -0.5], [NAN, NAN, NAN, NAN]]))
    expected = [[math.log(4), 0, 0, 1, 1, -0.5, 1, 1, 1, 1], [0.0] * 10]
    torch.testing.assert_close(seen[0], torch.tensor(expected))


@pytest.mark.parametrize("likelihood", [pv.Bernoulli, lambda: pv.Categorical(2)])
def test_images_have_the_mask_as_channels_more(likelihood):
    x = with_holes(data_of("bernoulli", 4, 2, 8, 8))
    vae = masked_vae((2, 8, 8), network="conv", hidden=(3, 4), likelihood=likelihood())
    assert vae.encoder.in_shape == ((2 if likelihood is pv.Bernoulli else 4) + 2, 8, 8)
    pv.fit(vae, x, epochs=1)
    assert vae.reconstruct(x).shape == x.shape


def test_without_holes_the_model_is_that_of_a_plain_vae_of_the_same_decoder():
    vae, plain = masked_vae().double(), small_vae((3,)).double()
    plain.decoder.load_state_dict(vae.decoder.state_dict())
    x = doubles(5, 3)
    ours, theirs = (pv.quadrature_log_marginal(one.model, x, num_points=61)[0] for one in (vae, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.manual_seed(1)
    draws = vae.sample(4)
    torch.manual_seed(1)
    assert torch.equal(plain.sample(4), draws)


def test_a_state_and_a_copy_give_the_same_numbers():
    x = with_holes(table_data(6))
    vae, other = (masked_vae(x.shape[1:], likelihood=table(), seed=seed) for seed in (1, 2))
    pv.fit(vae, x, epochs=1)
    other.load_state_dict(vae.state_dict())
    for one in (other, copy.deepcopy(vae)):
        assert torch.equal(one.reconstruct(x), vae.reconstruct(x))
        assert one.missing == "mask"


def test_a_prior_of_pseudo_inputs_takes_a_masked_vae():
    x = with_holes(doubles(8, 3).float())
    message = refusal(pv.priors.Vamp, x)
    assert message == "pseudo_inputs must be finite, got nan at index (0, 0)"
    vae = masked_vae(prior=pv.priors.Vamp(torch.nan_to_num(x)))
    pv.fit(vae, x, epochs=1)
    assert vae.prior.sample().isfinite().all()


# Refusals -------------------------------------------------------------------------------------------------------------


def test_nan_is_refused_by_every_vae_but_one_that_takes_it():
    x = doubles(4, 3).float()
    x[1, 2] = NAN
    vae, masked = small_vae((3,)), masked_vae()
    message = "x must be finite, got nan at index (1, 2); if it is a missing cell, the VAE needs missing='mask'"
    for call in (vae.check_data, lambda x: pv.fit(vae, x, epochs=1), lambda x: pv.log_marginal(vae, x)):
        assert refusal(call, x) == message
    with settings_as_flags():
        assert refusal(vae.check_data, x) == message.replace("missing='mask'", "--missing mask")
    masked.check_data(x)
    x[0, 1] = math.inf
    for call in (masked.check_data, lambda x: pv.fit(masked, x, epochs=1), lambda x: pv.log_marginal(masked, x)):
        assert refusal(call, x) == "x must be finite, got inf at index (0, 1)"
    labelled = masked_vae(condition=pv.Embedding())
    found = refusal(labelled.check_data, x.nan_to_num(posinf=0), torch.full((4, 1), NAN))
    assert found == "y must be finite, got nan at index (0, 0)"


def test_what_cannot_leave_cells_out_is_refused():
    class Joint(pv.Likelihood):
        def forward(self, outputs, event_dim):
            return dist.MultivariateNormal(outputs, torch.eye(3))

    class Positive(pv.LogNormal):
        filler = 0.0

    class Gamma(pv.Likelihood):  # Pyro counts 0 to its support, where most have a density of 0 or infinity
        def forward(self, outputs, event_dim):
            return dist.Gamma(outputs.exp(), 1.0).to_event(event_dim)

    message = "Gamma.filler must have a finite log-density and gradient, got 0.0"
    assert refusal(masked_vae, likelihood=Gamma()) == message
    assert refusal(small_vae, missing="zero") == "missing must be None or \"mask\", got 'zero'"
    message = "missing needs a likelihood in which each cell has its own density given z, got Joint"
    assert refusal(masked_vae, likelihood=Joint()) == message
    assert refusal(masked_vae, likelihood=Positive(1.0)) == "Positive.filler must lie in the support of p(x|z), got 0.0"
    assert refusal(masked_vae, ()) == "missing needs an event_shape of at least one dimension, got ()"


def test_a_value_outside_the_support_is_still_refused_beside_missing_cells():
    vae = masked_vae(likelihood=pv.Columns({"a": pv.LogNormal(1.0), "b": pv.Poisson(), "c": pv.Beta()}))
    x = torch.tensor([[NAN, 2.0, 0.5], [1.0, NAN, NAN], [NAN, 0.5, NAN]])
    message = 'column "b": x must be a whole number >= 0 under Poisson, got 0.5 at index (2,)'
    assert refusal(vae.check_data, x) == message
    vae.check_data(x[:2])
