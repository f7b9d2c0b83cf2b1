"""Convolutional encoders and decoders: any leading dimensions, any size, and the same weights with particles."""

import itertools

import pyro
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_within_standard_errors, refusal
from pyro import poutine

import pyrovae as pv
from pyrovae.models.networks import halved_sizes
from pyrovae.programs import run_pair

# (event shape, channels): the tutorials' 28 -> 14 -> 7, odd sizes, colour and not square, a single halving
SHAPES = {
    "mnist": ((1, 28, 28), (3, 4)),
    "odd": ((1, 7, 7), (3, 4)),
    "colour, not square": ((3, 9, 14), (4, 5, 2)),
    "two by two": ((2, 2, 3), (3,)),
}


# The layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "times", "sizes"),
    [
        ((1, 28, 28), 2, [(28, 28), (14, 14), (7, 7)]),
        ((3, 9, 14), 3, [(9, 14), (4, 7), (2, 3), (1, 1)]),
        ((1, 1, 5), 0, [(1, 5)]),
    ],
)
def test_a_stride_of_2_halves_and_rounds_down(shape, times, sizes):
    assert halved_sizes(shape, times) == sizes


def test_the_encoder_of_mnist_is_1_32_64_channels_down_to_7_by_7():
    net = pv.ConvEncoder((1, 28, 28), (2, 32))
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert shapes == [(32, 1, 4, 4), (32,), (64, 32, 4, 4), (64,), (64, 64 * 7 * 7), (64,)]
    vae = pv.VAE((1, 28, 28), latent_dim=32, hidden=(32, 64), network="conv", likelihood=pv.Bernoulli())
    assert [tuple(p.shape) for p in vae.encoder.parameters()] == shapes
    assert vae.decoder.first_shape == (64, 7, 7)


def test_the_encoder_is_its_convolutions_in_turn_and_a_linear_layer():
    net = pv.ConvEncoder((2, 6, 5), (2, 3), hidden=(4, 3), activation="tanh", num_features=2).double()
    w1, b1, w2, b2, w3, b3 = net.parameters()
    x, features = torch.randn(5, 2, 6, 5, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    maps = F.conv2d(F.conv2d(x, w1, b1, 2, 1).tanh(), w2, b2, 2, 1).tanh()
    assert maps.shape == (5, 3, 1, 1)
    expected = F.linear(torch.cat((maps.flatten(1), features), 1), w3, b3).reshape(5, 2, 3)
    torch.testing.assert_close(net(x, features), expected, rtol=1e-12, atol=1e-12)


def test_the_decoder_is_the_mirror_with_a_linear_layer_first_and_a_bias_per_pixel():
    net = pv.ConvDecoder((3,), (2, 6, 5), hidden=(3, 4), activation="tanh", num_features=2).double()
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes.pop("output_bias") == (2, 6, 5)
    assert list(shapes.values()) == [(3, 5), (3,), (3, 4, 4, 4), (4,), (4, 2, 4, 4)]
    with torch.no_grad():
        net.output_bias.normal_()
    bias, w0, b0, w1, b1, w2 = net.parameters()
    z, features = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    maps = F.linear(torch.cat((z, features), 1), w0, b0).reshape(5, 3, 1, 1).tanh()
    maps = F.conv_transpose2d(maps, w1, b1, 2, 1, output_padding=(1, 0)).tanh()
    assert maps.shape == (5, 4, 3, 2)
    expected = F.conv_transpose2d(maps, w2, None, 2, 1, output_padding=(0, 1)) + bias
    torch.testing.assert_close(net(z, features), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [(8,), (3, 4), (300, 300), (5, 5, 5)])
def test_only_the_last_layer_of_a_decoder_has_no_bias_of_its_own(channels):
    layers = pv.ConvDecoder((2,), (3, 8, 8), channels).layers
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [layer.bias is None for layer in convolutions] == [False] * (len(channels) - 1) + [True]
    assert isinstance(layers[0], torch.nn.ReLU)
    assert isinstance(layers[-1], torch.nn.ConvTranspose2d)


def test_several_outputs_per_pixel_are_the_channels_of_one_convolution():
    """`HeteroscedasticGaussian` and `Categorical` need k outputs per pixel, along the first dimension."""
    many, one = pv.ConvDecoder((2,), (5, 3, 6, 6), (4,)).double(), pv.ConvDecoder((2,), (3, 6, 6), (4,)).double()
    one.input.load_state_dict(many.input.state_dict())
    z = torch.randn(7, 2, dtype=torch.float64)
    for k in range(5):
        with torch.no_grad():
            one.layers[-1].weight.copy_(many.layers[-1].weight[:, 3 * k : 3 * (k + 1)])
        torch.testing.assert_close(many(z)[:, k], one(z), rtol=1e-12, atol=1e-12)


# Leading dimensions and sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_shape", [(), (1,), (5,), (3, 5), (1, 5), (2, 3, 4)])
@pytest.mark.parametrize("name", SHAPES)
def test_any_leading_dimensions_give_what_one_datum_at_a_time_gives(name, batch_shape):
    shape, channels = SHAPES[name]
    encoder = pv.ConvEncoder(shape, (2, 3), channels, num_features=2).double()
    decoder = pv.ConvDecoder((3,), (4, *shape), channels[::-1], num_features=2).double()
    for net in (encoder, decoder):
        x = torch.randn(*batch_shape, *net.in_shape, dtype=torch.float64)
        features = torch.randn(*batch_shape, 2, dtype=torch.float64)
        outputs = net(x, features)
        assert outputs.shape == (*batch_shape, *net.out_shape)
        for index in itertools.product(*map(range, batch_shape)):
            torch.testing.assert_close(outputs[index], net(x[index], features[index]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", ["encoder", "decoder"])
def test_the_leading_dimensions_of_input_and_features_broadcast(make):
    if make == "encoder":
        net = pv.ConvEncoder((1, 6, 6), (2, 3), (4,), num_features=2).double()
    else:
        net = pv.ConvDecoder((3,), (1, 6, 6), (4,), num_features=2).double()
    x, features = torch.randn(5, *net.in_shape).double(), torch.randn(4, 1, 2).double()
    outputs = net(x, features)
    assert outputs.shape == (4, 5, *net.out_shape)
    for k in range(4):
        expected = net(x, features[k].expand(5, 2))
        torch.testing.assert_close(outputs[k], expected, rtol=1e-12, atol=1e-12)


def test_data_in_a_batch_do_not_touch_each_other():
    net = pv.ConvEncoder((1, 4, 4), (3,), (2,), activation="tanh").double()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    jacobian = torch.func.jacrev(net)(x).flatten(3)
    for i, j in itertools.product(range(3), range(3)):
        assert (jacobian[i, :, j] != 0).any() == (i == j)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 5), (28, 28), (8, 12), (13, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_vae_of_any_size_and_number_of_channels_takes_and_gives_images_of_it(height, width, channels):
    event_shape = (channels, height, width)
    hidden = (3, 4) if min(height, width) >= 4 else (3,)
    vae = pv.VAE(event_shape, latent_dim=2, hidden=hidden, network="conv", likelihood=pv.Bernoulli())
    x = (torch.rand(4, *event_shape) > 0.5).float()
    assert vae.encode(x).mean.shape == (4, 2)
    assert vae.reconstruct(x).shape == vae.sample(4).shape == (4, *event_shape)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    pv.fit(vae, x, epochs=3, lr=0.05)
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize(
    ("event_shape", "hidden", "message"),
    [
        ((1, 3, 28), (2, 2), "hidden must have at most 1 layers for images of 3 x 28, got 2"),
        ((1, 28, 3), (2, 2), "hidden must have at most 1 layers for images of 28 x 3, got 2"),
        ((1, 28, 28), (2,) * 5, "hidden must have at most 4 layers for images of 28 x 28, got 5"),
        ((1, 1, 1), (2,), "hidden must have at most 0 layers for images of 1 x 1, got 1"),
        ((784,), (2,), "convolutions take images (channels, height, width), got events of shape (784,)"),
        ((28, 28), (2,), "convolutions take images (channels, height, width), got events of shape (28, 28)"),
        ((1, 8, 8), (), "hidden must have at least one number of channels for a convolutional decoder, got none"),
        ((1, 8, 8), (2, 0), "hidden must be a whole number >= 1, got 0"),
        ((1, 8, 8), (2.5,), "hidden must be a whole number >= 1, got 2.5"),
    ],
)
def test_images_too_small_for_the_layers_and_bad_layers_are_refused(event_shape, hidden, message):
    settings = {"latent_dim": 2, "hidden": hidden, "network": "conv", "likelihood": pv.Bernoulli()}
    assert refusal(pv.VAE, event_shape, **settings) == message


def test_as_many_halvings_as_the_image_has_are_taken():
    vae = pv.VAE((1, 28, 28), latent_dim=2, hidden=(2, 2, 2, 2), network="conv", likelihood=pv.Bernoulli())
    assert vae.decoder.first_shape == (2, 1, 1)
    assert vae.sample(2).shape == (2, 1, 28, 28)


def test_unknown_networks_and_activations_are_refused():
    settings = {"latent_dim": 2, "hidden": (4,), "likelihood": pv.Bernoulli()}
    message = refusal(pv.VAE, (1, 8, 8), **settings, network="cnn")
    assert message == "network must be one of mlp, conv, resnet; got 'cnn'"
    message = refusal(pv.VAE, (1, 8, 8), **settings, network="conv", activation="sine")
    assert message.startswith("activation must be one of relu")


# The output bias ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_shape", [(2, 6, 7), (3, 2, 6, 7)])
def test_the_output_bias_of_a_decoder_is_one_per_pixel_and_shifts_each_by_itself(out_shape):
    net = pv.ConvDecoder((2,), out_shape, (4,)).double()
    bias, z = torch.randn(out_shape, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    before = net(z)
    net.set_output_bias(bias)
    torch.testing.assert_close(net(z), before + bias, rtol=1e-12, atol=1e-12)
    net(z).sum().backward()
    assert torch.equal(net.output_bias.grad, torch.full(out_shape, 5.0, dtype=torch.float64))


def test_the_output_bias_of_an_encoder_is_that_of_its_linear_layer():
    net = pv.ConvEncoder((1, 6, 6), (2, 3), (4,))
    bias, x = torch.randn(2, 3), torch.randn(5, 1, 6, 6)
    before = net(x)
    with torch.no_grad():
        before = before - net.output.bias.reshape(2, 3)
    net.set_output_bias(bias)
    torch.testing.assert_close(net(x), before + bias)


@pytest.mark.parametrize("shape", [(2,), (2, 1, 1), (1, 2, 6, 7), (2, 7, 6)])
def test_an_output_bias_of_another_shape_is_refused(shape):
    net = pv.ConvDecoder((2,), (2, 6, 7), (4,))
    message = refusal(net.set_output_bias, torch.zeros(shape))
    assert message == f"bias must have shape (2, 6, 7), got {shape}"


# Particles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [pv.Bernoulli(), pv.HeteroscedasticGaussian(0.1)], ids=["one output", "two"])
@pytest.mark.parametrize("condition", [(), pv.OneHot(3)], ids=["plain", "conditional"])
def test_the_log_weights_are_the_same_with_particles_vectorised_as_in_a_loop(condition, likelihood):
    vae = pv.VAE(
        (2, 6, 7), latent_dim=3, hidden=(4, 5), network="conv", likelihood=likelihood, condition=condition
    ).double()
    x = (torch.rand(4, 2, 6, 7, dtype=torch.float64) > 0.5).double()
    args = (x, torch.tensor([0, 2, 1, 1]))[: 1 + vae.num_conditions]
    pair = run_pair(vae.model, vae.guide, *args, num_particles=5)
    z, log_weights = pair.guide_sites["z"]["value"], pair.terms().log_weights
    assert z.shape == (5, 4, 3)
    assert log_weights.shape == (5, 4)
    parameters, gradients, one_by_one = list(vae.parameters()), [], []
    for k in range(5):
        model = poutine.trace(poutine.condition(vae.model, {"z": z[k]})).get_trace(*args)
        guide = poutine.trace(poutine.condition(vae.guide, {"z": z[k]})).get_trace(*args)
        model.compute_log_prob()
        guide.compute_log_prob()
        log_p = model.nodes["x"]["log_prob"] + model.nodes["z"]["log_prob"]
        log_q = guide.nodes["z"]["log_prob"]
        one_by_one.append(log_p - log_q)
    torch.testing.assert_close(log_weights, torch.stack(one_by_one), rtol=0, atol=1e-10)
    for total in (log_weights, torch.stack(one_by_one)):
        gradients.append(torch.autograd.grad(total.logsumexp(0).sum(), parameters, retain_graph=True))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


def test_log_marginal_of_a_conv_vae_does_not_depend_on_how_its_particles_are_chunked():
    vae = pv.VAE((1, 6, 6), latent_dim=2, hidden=(4,), network="conv", likelihood=pv.Bernoulli()).double()
    with torch.no_grad():
        for parameter in vae.parameters():  # so that the untrained guide covers the posterior
            parameter.mul_(0.4)
    x = (torch.rand(3, 1, 6, 6, dtype=torch.float64) > 0.5).double()
    truth, _ = pv.quadrature_log_marginal(vae.model, x, num_points=61)
    for chunk_size in (3 * 70, 3 * 1_000):
        found = pv.log_marginal(vae.model, vae.guide, x, num_samples=1_000, chunk_size=chunk_size)
        assert_within_standard_errors(found.log_px, truth, found.standard_error)


def test_a_plain_module_that_takes_only_one_leading_dimension_runs_for_one_particle_after_another():
    """Trap 9: torch's own layers fail on the particle dimension that `ConvEncoder` flattens; the warning says so."""
    decoder = torch.nn.Sequential(torch.nn.Unflatten(1, (2, 1, 1)), torch.nn.ConvTranspose2d(2, 1, 4))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", pyro.distributions.Normal(decoder(z), 1.0).to_event(3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))

    x = torch.randn(4, 1, 4, 4)
    assert poutine.trace(model).get_trace(x).nodes["z"]["value"].shape == (4, 2)
    with pytest.warns(UserWarning, match="particles run one after another"):
        pair = run_pair(model, guide, x, num_particles=3)
    images = torch.stack([decoder(z) for z in pair.draws()["z"]])
    expected = pyro.distributions.Normal(images, 1.0).log_prob(x).sum((-1, -2, -3))
    torch.testing.assert_close(pair.terms().log_likelihood, expected, rtol=1e-5, atol=1e-4)
