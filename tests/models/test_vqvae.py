"""The VQ-VAE: its bound by hand, its straight-through gradient by hand, and its codes on real images."""

import math
from functools import partial

import pyro
import pytest
import torch
from helpers import parameters_of, refusal, suite_seed
from torch import nn

import pyrovae as pv
from pyrovae.models.code_distributions import NearestCode
from pyrovae.training.compiled_loss import CompiledLoss

SIZES = {"num_tokens": 3, "num_codes": 5, "code_dim": 2, "hidden": (7,)}


def small_vq(**settings) -> pv.VQVAE:
    torch.manual_seed(suite_seed(3))
    return pv.VQVAE((4,), **{**SIZES, "likelihood": pv.Gaussian(0.5), **settings})


def every_code(num_tokens: int, num_codes: int, **kwargs) -> torch.Tensor:
    """Returns all values that z can have, `(num_codes ** num_tokens, num_tokens, num_codes)`."""
    one_hots = torch.eye(num_codes, **kwargs)
    index = torch.cartesian_prod(*[torch.arange(num_codes)] * num_tokens)
    return one_hots[index]


# Densities and the bound ----------------------------------------------------------------------------------------------


def test_the_nearest_code_is_nearest_and_all_of_the_mass():
    encoded, codebook = torch.randn(6, 3, 2), torch.randn(5, 2)
    q = NearestCode(encoded, codebook)
    assert (q.batch_shape, q.event_shape, q.mean.shape) == ((6,), (3, 5), (6, 3, 5))
    distance = (encoded.unsqueeze(-2) - codebook).norm(dim=-1)
    assert torch.equal(q.rsample().argmax(-1), distance.argmin(-1))
    everything = every_code(3, 5).unsqueeze(1)
    densities = q.expand((125, 6)).log_prob(everything.expand(125, 6, 3, 5)).exp()
    torch.testing.assert_close(densities.sum(0), torch.ones(6))
    assert ((densities == 0) | (densities == 1)).all()
    draws = q.sample((2,))
    assert draws.shape == (2, 6, 3, 5)
    assert torch.equal(q.log_prob(draws), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="invalid values"):
        q.log_prob(torch.full((6, 3, 5), 0.2))


def test_the_prior_is_uniform_and_sums_to_one():
    prior = small_vq().prior
    densities = prior.log_prob(every_code(3, 5))
    torch.testing.assert_close(densities, torch.full((125,), -3 * math.log(5)))


def test_the_bound_is_the_likelihood_at_the_nearest_codes_minus_the_log_of_their_number():
    vae, x = small_vq().double().eval(), torch.randn(20, 4, dtype=torch.float64)
    vae.restart_unused(x)
    with torch.no_grad():
        tokens = vae.encoder(x)
        tokens = tokens / tokens.square().mean(-1, keepdim=True).sqrt()
        nearest = (tokens.unsqueeze(-2) - vae.codebook).norm(dim=-1).argmin(-1)
        loc = vae.decoder(vae.codebook[nearest])
        by_hand = pyro.distributions.Normal(loc, 0.5).log_prob(x).sum(-1) - 3 * math.log(5)
        exact = torch.stack([vae.decode(z).log_prob(x) for z in every_code(3, 5, dtype=x.dtype)])
        exact = exact.logsumexp(0) - 3 * math.log(5)  # log p(x), of all 125 codes
    weights = pv.log_weights(vae.model, vae.guide, x, num_particles=2).detach()
    torch.testing.assert_close(weights, by_hand.expand(2, -1))
    sampled = pv.log_marginal(vae.model, vae.guide, x, num_samples=7)
    torch.testing.assert_close(sampled.log_px, by_hand)
    assert sampled.standard_error.max() < 1e-6
    assert (by_hand <= exact + 1e-12).all()
    assert (exact - by_hand).mean() > 0.01  # a bound, and not log p(x)
    torch.testing.assert_close(vae.reconstruct(x), loc)


def test_in_training_the_factor_is_there_and_in_evaluation_it_is_not():
    vae, x = small_vq(commitment=0.3), torch.randn(6, 4)
    clean = pv.log_weights(vae.eval().model, vae.guide, x, num_particles=1).detach()
    trained = pv.log_weights(vae.train().model, vae.guide, x, num_particles=1).detach()
    with torch.no_grad():
        distance = (vae.encoded(x) - vae.encode(x).code @ vae.codebook).square().sum((-2, -1))
    assert distance.min() > 0.01
    torch.testing.assert_close(clean - trained, 1.3 * distance.unsqueeze(0))
    found = pv.log_marginal(
        vae.model, vae.guide, x, num_samples=5
    )  # in evaluation mode, although the VAE is in training mode
    torch.testing.assert_close(found.log_px, clean[0].double())
    assert vae.training


# Gradients ------------------------------------------------------------------------------------------------------------


def gradients_by_hand(vae: pv.VQVAE, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the gradients of the summed loss: the decoder's by autograd at the codes, the rest by their formulas."""
    encoded = vae.encoded(x)
    index = vae.encode(x).code.argmax(-1)
    codes = vae.codebook.detach()[index].requires_grad_()
    loc = vae.decoder(codes)
    log_px = -((x - loc) ** 2).sum() / (2 * 0.5**2)
    decoder = dict(vae.decoder.named_parameters())
    slopes = torch.autograd.grad(-log_px, [codes, *decoder.values()])
    codes = codes.detach()
    # d/d z_e: that of the decoder at the code, plus the commitment's; d/d e_c: 2 (e_c - z_e), summed over c's tokens.
    at_encoded = slopes[0] + 2 * vae.commitment * (encoded.detach() - codes)
    encoder = dict(vae.encoder.named_parameters())
    through = torch.autograd.grad(encoded, list(encoder.values()), at_encoded)
    codebook = torch.zeros_like(vae.codebook)
    codebook.index_add_(0, index.flatten(), 2 * (codes - encoded.detach()).flatten(0, 1))
    return {
        **{f"decoder.{name}": slope for name, slope in zip(decoder, slopes[1:], strict=True)},
        **{f"encoder.{name}": slope for name, slope in zip(encoder, through, strict=True)},
        "codebook": codebook,
    }


OBJECTIVES = ("elbo", "iwae", "dreg", "sticking_the_landing", "reweighted_wake_sleep", pyro.infer.Trace_ELBO())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_is_straight_through(objective):
    """All particles are alike, so this holds for every objective."""
    vae, x = small_vq(commitment=0.3).double().train(), torch.randn(12, 4, dtype=torch.float64)
    vae.restart_unused(x)
    expected = gradients_by_hand(vae, x)
    if isinstance(objective, str):
        objective = pv.objectives.from_name(objective, num_particles=2)
    objective.differentiable_loss(vae.model, vae.guide, x).backward()
    found = dict(vae.named_parameters())
    assert found.keys() == expected.keys()
    for name, slope in expected.items():
        assert slope.abs().max() > 1e-3, name
        torch.testing.assert_close(found[name].grad, slope, msg=name)


# Training -------------------------------------------------------------------------------------------------------------


def test_compiled_training_is_eager_training(monkeypatch):
    """Traces without compiling machine code: a replayed step must see codes that are restarted between epochs."""
    monkeypatch.setattr(pv.training.gradients, "CompiledLoss", partial(CompiledLoss, inductor=False))
    x, results = torch.randn(48, 4), []
    for compile in (False, True):
        vae = small_vq(num_codes=9)
        settings = {"epochs": 3, "batch_size": 16, "lr": 1e-2, "validation": x[:10], "seed": 0, "compile": compile}
        restarted = []
        history = pv.fit(vae, x, on_epoch=lambda _, v=vae, r=restarted: r.append(v.restart_unused(x[:5])), **settings)
        assert not vae.training
        assert max(restarted) > 0
        results.append((history.loss, history.elbo, parameters_of(vae)))
        assert history.kl == pytest.approx([3 * math.log(9)] * 3)
    assert results[0][:2] == results[1][:2]
    assert torch.equal(results[0][2], results[1][2])


def test_unused_codes_become_tokens_and_used_ones_stay():
    vae, x = small_vq(num_codes=40), torch.randn(30, 4)
    used = vae.encode(x).code.sum((0, 1)) > 0
    before = vae.codebook.detach().clone()
    assert vae.restart_unused(x) == 40 - int(used.sum()) > 0
    assert torch.equal(vae.codebook[used], before[used])
    tokens = vae.encoded(x).detach().flatten(0, 1)
    assert (vae.codebook[~used].unsqueeze(1) == tokens).all(-1).any(-1).all()
    assert vae.codebook_use(x).share > used.double().mean()  # not 1: a code may lose all of its tokens to the new ones


def test_codebook_use_is_the_share_and_the_exponential_of_the_entropy():
    vae = small_vq(num_tokens=1, num_codes=4).eval()
    vae.encoder = nn.Identity()
    vae.event_shape = (1, 2)
    with torch.no_grad():
        vae.codebook.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]))
    x = torch.tensor([[2.0, 2.0], [3.0, 3.0], [1.0, -1.0], [-2.0, 2.0]]).unsqueeze(1)
    use = vae.codebook_use(x)
    assert use.share == 0.75
    assert use.perplexity == pytest.approx(math.exp(1.5 * math.log(2)))  # the frequencies are 1/2, 1/4, 1/4
    assert vae.codebook_use(x[:2]) == (0.25, pytest.approx(1))


def test_real_digits_are_coded_by_many_codes(mnist_root):
    data = pv.load("mnist", data_root=mnist_root, num_train=1_500, num_validation=0, num_test=500)
    torch.manual_seed(suite_seed(0))
    sizes = {"num_tokens": 8, "num_codes": 32, "code_dim": 4, "hidden": (200,)}
    vae, start = pv.VQVAE(data.event_shape, **sizes, likelihood=pv.Bernoulli()), data.train_x[:500]
    vae.restart_unused(start)

    def restart(record):
        if record["epoch"] < 8:
            vae.restart_unused(start)

    pv.fit(vae, data, epochs=10, batch_size=50, lr=3e-3, schedule="cosine", seed=suite_seed(0), on_epoch=restart)
    with torch.no_grad():
        x = data.test_x
        bound = pv.log_weights(vae.model, vae.guide, x, num_particles=1).mean().item()
        error = (vae.reconstruct(x) - x).square().mean().item()
    mean_image = (data.train_mean - x).square().mean().item()
    assert bound > -170, bound  # the mean image alone gives -206
    assert error < 0.75 * mean_image, (error, mean_image)
    assert vae.codebook_use(x).perplexity > 16


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_images_particles_and_samples_have_their_shapes(network):
    sizes = {"num_tokens": 3, "num_codes": 5, "code_dim": 4, "hidden": (6,)}
    vae = pv.VQVAE((1, 4, 6), **sizes, likelihood=pv.Bernoulli(), network=network)
    x = vae.sample(7)
    assert x.shape == vae.sample(7, mean=True).shape == vae.reconstruct(x).shape == (7, 1, 4, 6)
    assert ((x == 0) | (x == 1)).all()
    pv.fit(vae, x, epochs=1)
    assert pv.log_weights(vae.model, vae.guide, x, num_particles=4).shape == (4, 7)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": 0}, "num_tokens must be a whole number >= 1, got 0"),
        ({"num_codes": 1}, "num_codes must be a whole number >= 2, got 1"),
        ({"code_dim": 2.0}, "code_dim must be a whole number >= 1, got 2.0"),
        ({"hidden": (0,)}, "hidden must be a whole number >= 1, got 0"),
        ({"commitment": 0}, "commitment must be a finite number > 0, got 0"),
        ({"likelihood": "bernoulli"}, "likelihood must be a pyrovae likelihood, got 'bernoulli'"),
        ({"network": "rnn"}, "network must be one of mlp, conv, resnet; got 'rnn'"),
        ({"activation": "sine"}, "activation must be one of relu, .+"),
    ],
)
def test_bad_sizes_are_refused(settings, message):
    assert message.removesuffix(".+") in refusal(small_vq, **settings)


def test_bad_data_are_refused():
    vae = small_vq(likelihood=pv.Bernoulli())
    before = parameters_of(vae)
    for x, message in (
        (torch.zeros(3, 5), "x must have shape (batch, 4), got (3, 5)"),
        (
            torch.full((3, 4), 2**24 + 1),
            "x must be of torch.float32, got torch.int64, whose 16777217 at index (0, 0) would lose digits in it",
        ),
        (torch.full((3, 4), math.nan), "x must be finite, got nan at index (0, 0)"),
        (torch.full((3, 4), 0.5), "x must be 0 or 1 under Bernoulli, got 0.5 at index (0, 0)"),
    ):
        assert message in refusal(pv.fit, vae, x, epochs=1)
    assert "x must have a token for each of" in refusal(small_vq(num_codes=50).restart_unused, torch.zeros(2, 4))
    said = refusal(pv.fit, vae, torch.zeros(3, 4), epochs=1, beta_schedule="linear")
    assert said == "beta_schedule needs a model with set_beta, as VAE has"
    assert torch.equal(parameters_of(vae), before)
