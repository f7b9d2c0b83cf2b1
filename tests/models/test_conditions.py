"""Conditional VAEs: p(x|y) with labels, values, images and several conditions at once."""

import math

import pyro
import pytest
import torch
from helpers import (
    HalfPrior,
    assert_within_standard_errors,
    conditional_vae,
    suite_seed,
)
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

import pyrovae as pv
from pyrovae.models.conditions import Features

BATCH = 5


# Maps a name to a function that makes the conditions, and one that draws so many y.
CONDITIONS = {
    "label": (lambda: pv.OneHot(3), lambda n: (torch.randint(3, (n,)),)),
    "value": (lambda: pv.Embedding(), lambda n: (torch.randn(n, 1),)),
    "vector": (lambda: pv.Embedding((4,), hidden=(), num_features=3), lambda n: (torch.randn(n, 4),)),
    "image": (lambda: pv.Embedding((1, 4, 6), activation="tanh"), lambda n: (torch.randn(n, 1, 4, 6),)),
    "label and value": (
        lambda: (pv.OneHot(3), pv.Embedding()),
        lambda n: (torch.randint(3, (n,)), torch.randn(n, 1)),
    ),
    "three": (
        lambda: [pv.Embedding((2,)), pv.OneHot(4), pv.OneHot(2)],
        lambda n: (torch.randn(n, 2), torch.randint(4, (n,)), torch.randint(2, (n,))),
    ),
}


@pytest.fixture(params=CONDITIONS)
def case(request):
    """Returns a conditional VAE, x, and its y."""
    make, draw = CONDITIONS[request.param]
    return conditional_vae(make()), torch.randn(BATCH, 3), draw(BATCH)


def test_a_label_becomes_a_one_hot_vector():
    expected = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert torch.equal(pv.OneHot(4)(torch.tensor([2, 0, 3])), expected)


def test_an_embedding_is_the_1_16_16_network_of_the_tutorials_unless_told_otherwise():
    shapes = [tuple(p.shape) for p in pv.Embedding().parameters()]
    assert shapes == [(16, 1), (16,), (16, 16), (16,)]
    assert pv.Embedding()(torch.randn(7, 1)).shape == (7, 16)
    assert pv.Embedding((1, 2, 3), (5, 4), num_features=6)(torch.randn(7, 1, 2, 3)).shape == (7, 6)


def test_several_conditions_stand_side_by_side_in_their_order():
    one, other = pv.OneHot(3), pv.Embedding((2,))
    features = Features([one, other])
    label, value = torch.tensor([1, 2]), torch.randn(2, 2)
    assert features.num_features == 19
    assert torch.equal(features((label, value)), torch.cat((one(label), other(value)), 1))
    assert Features([])(()) is None


def test_encoder_and_decoder_join_the_features_to_their_input(case):
    vae, x, y = case
    z = torch.randn(BATCH, 2)
    plain = {"encoder": (vae.encoder, vae.encoder_features, x), "decoder": (vae.decoder, vae.decoder_features, z)}
    for net, features, given in plain.values():
        joined = torch.cat((given, features(y)), -1)
        expected = net.output(net.layers(joined)).reshape(BATCH, *net.out_shape)
        torch.testing.assert_close(net(given, features(y)), expected)
    loc, log_variance = vae.encoder(x, vae.encoder_features(y)).unbind(-2)
    torch.testing.assert_close(vae.encode(x, *y).mean, loc)
    torch.testing.assert_close(vae.encode(x, *y).variance, log_variance.exp())
    torch.testing.assert_close(vae.decode(z, *y).mean, vae.decoder(z, vae.decoder_features(y)))


def log_densities(vae, x, *y, z):
    """Returns log p(x|z, y) and log q(z|x, y) at `z`, each `(batch,)`."""
    nodes = []
    for program in (vae.model, vae.guide):
        trace = poutine.trace(poutine.condition(program, {"z": z})).get_trace(x, *y)
        trace.compute_log_prob()
        nodes.append(trace.nodes)
    return nodes[0]["x"]["log_prob"], nodes[1]["z"]["log_prob"]


def test_model_and_guide_depend_on_every_condition(case):
    vae, x, y = case
    z = torch.randn(BATCH, 2)
    before = log_densities(vae, x, *y, z=z)
    for i, value in enumerate(y):
        other = value.clone()
        other[2] = (value[2] + 1) % 2 if value.dtype == torch.long else value[2] + 1
        after = log_densities(vae, x, *(other if i == j else v for j, v in enumerate(y)), z=z)
        for old, new in zip(before, after, strict=True):
            assert (old != new).tolist() == [False, False, True, False, False]


def test_the_prior_does_not_depend_on_the_condition(case):
    vae, x, y = case
    z = torch.randn(BATCH, 2)
    trace = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(x, *y)
    trace.compute_log_prob()
    expected = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)


def test_encoder_and_decoder_have_conditions_with_parameters_of_their_own_and_all_of_them_train(case):
    vae, x, y = case
    pairs = list(zip(vae.encoder_features.parameters(), vae.decoder_features.parameters(), strict=True))
    for one, other in pairs:
        assert one.data_ptr() != other.data_ptr()
        assert not torch.equal(one, other)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi = SVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(3):
        svi.step(x, *y)
    still = [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert not still
    assert all("features.conditions" in n for n in before if n.startswith(("encoder_f", "decoder_f")))


def test_a_condition_given_to_two_vaes_is_not_shared_and_stays_as_it_is():
    embedding = pv.Embedding()
    kept = [p.detach().clone() for p in embedding.parameters()]
    vae = conditional_vae(embedding)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(torch.randn(4, 3), torch.randn(4, 1))
    assert all(torch.equal(a, b) for a, b in zip(kept, embedding.parameters(), strict=True))
    other = conditional_vae(embedding)
    assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in vae.parameters()}


def test_a_conditional_pair_gives_each_particle_the_weights_it_has_alone(case):
    vae, x, y = case
    vae, y = vae.double(), tuple(v.double() if v.is_floating_point() else v for v in y)
    pair = pv.programs.run_pair(vae.model, vae.guide, x.double(), *y, num_particles=4)
    terms, z = pair.terms(), pair.guide_sites["z"]["value"]
    for k in range(4):
        log_likelihood, log_posterior = log_densities(vae, x.double(), *y, z=z[k])
        torch.testing.assert_close(terms.log_likelihood[k], log_likelihood, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(terms.log_posterior[k], log_posterior, rtol=1e-12, atol=1e-12)


def test_without_a_condition_nothing_is_registered_for_it():
    vae = conditional_vae(())
    vae.model(torch.randn(2, 3))
    assert vae.num_conditions == 0
    assert not [name for name in pyro.get_param_store() if "features" in name]


def conditional_of_two_latents():
    """Returns a random VAE in float64 whose decoder depends strongly on y, with x and y."""
    vae = conditional_vae((pv.OneHot(3), pv.Embedding()), hidden=(6,), activation="tanh").double()
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2)
    y = torch.tensor([0, 1, 2, 0, 1, 2]), torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    return vae, torch.randn(6, 3, dtype=torch.float64), y


def test_log_marginal_is_log_p_of_x_given_y_by_quadrature():
    vae, x, y = conditional_of_two_latents()
    truth, error = pv.quadrature_log_marginal(vae.model, x, *y, num_points=201)
    assert error.max() < 1e-3

    def guide(x, *y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", HalfPrior(vae.encode(x, *y), vae.prior))

    found = pv.log_marginal(vae.model, guide, x, *y, num_samples=20_000)
    assert_within_standard_errors(found.log_px, truth, found.standard_error + error, note=f"ESS {found.ess.min():.0f}")
    # Other y give another number, many standard errors away: the claim above can fail.
    other, _ = pv.quadrature_log_marginal(vae.model, x, y[0].roll(1), y[1], num_points=201)
    assert ((other - truth).abs() > 20 * found.standard_error).any()


def test_log_p_of_x_given_y_by_quadrature_is_that_of_a_plain_vae_whose_first_bias_takes_up_y():
    """The features of one label are constant, so the bias of the first layer can take them up."""
    vae, x, _ = conditional_of_two_latents()
    vae = conditional_vae(pv.OneHot(3), activation="tanh").double()
    plain = conditional_vae((), activation="tanh").double()
    with torch.no_grad():
        for ours, theirs in zip(vae.decoder.parameters(), plain.decoder.parameters(), strict=True):
            theirs.copy_(ours[:, :2] if ours.shape != theirs.shape else ours)
        plain.decoder.layers[0].bias.add_(vae.decoder.layers[0].weight[:, 2 + 1])
    found, _ = pv.quadrature_log_marginal(vae.model, x, torch.ones(6, dtype=torch.long), num_points=101)
    expected, _ = pv.quadrature_log_marginal(plain.model, x, num_points=101)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_importance_bound_and_elbo_terms_take_the_condition_too():
    vae, x, y = conditional_of_two_latents()
    bound = pv.importance_bound(vae.model, vae.guide, x, *y, num_particles=1, num_repeats=2_000)
    terms = pv.diagnostics.elbo_terms(vae.model, vae.guide, x, *y, num_particles=2_000)
    assert_within_standard_errors(terms["elbo"], bound.value, math.sqrt(2) * bound.standard_error)
    q = vae.encode(x, *y)
    kl = 0.5 * (q.variance + q.mean**2 - 1 - q.variance.log())
    torch.testing.assert_close(pv.diagnostics.kl_per_dimension(vae, x, *y), kl.detach())
    torch.testing.assert_close(pv.diagnostics.latent_use(vae, x, *y).variance, q.mean.detach().var(0))


def test_samples_are_drawn_for_the_y_that_each_is_given():
    vae = conditional_vae(pv.OneHot(3), likelihood=pv.Gaussian(0.1))
    with torch.no_grad():
        vae.decoder.output.weight.zero_()
        vae.decoder.output.bias.zero_()
    y = torch.tensor([0, 1, 2]).repeat_interleave(2_000)

    def decoder(z, features):
        return 10 * features + 0 * z[..., :1]

    vae.decoder.forward = decoder
    means, draws = vae.sample(6_000, y, mean=True), vae.sample(6_000, y=y)
    assert torch.equal(means, 10 * torch.nn.functional.one_hot(y).float())
    noise = draws - means
    assert_within_standard_errors(noise.mean(0), 0.0, 0.1 / math.sqrt(6_000))
    assert_within_standard_errors(noise.square().mean(), 0.01, 0.01 * math.sqrt(2 / 18_000))


def test_samples_take_one_condition_as_a_tensor_and_several_as_a_sequence(case):
    vae, _, y = case
    states = []
    for given in (tuple(y), list(y), *((y[0],) if len(y) == 1 else ())):
        for mean in (False, True):
            torch.manual_seed(suite_seed(1))
            states.append(vae.sample(BATCH, given, mean=mean))
            assert states[-1].shape == (BATCH, 3)
            assert torch.equal(states[-1], states[int(mean)])
    torch.manual_seed(suite_seed(1))
    torch.testing.assert_close(states[1], vae.decode(vae.prior.sample((BATCH,)), *y).mean.detach())


def test_a_reconstruction_decodes_the_posterior_mean_under_the_same_y(case):
    vae, x, y = case
    loc = vae.encoder(x, vae.encoder_features(y))[:, 0]
    expected = vae.decoder(loc, vae.decoder_features(y)).detach()
    torch.testing.assert_close(vae.reconstruct(x, *y), expected)
