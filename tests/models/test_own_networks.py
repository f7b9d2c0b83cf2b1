"""Networks of the user's own: what the VAE gives them, what it takes from them, and what it refuses in one line."""

from functools import partial

import helpers
import pyro
import pytest
import torch
from helpers import parameters_of
from torch import nn
from torch.testing import assert_close

import pyrovae as pv

ENCODED, DATA = 4, 3  # outputs of an encoder for two latents; elements of a datum
SAYS_SO = "particles run one after another"


def vae_of(encoder, decoder, event_shape=(DATA,), **settings) -> pv.VAE:
    defaults = {"latent_dim": 2, "likelihood": pv.Gaussian(0.5)}
    return pv.VAE(event_shape, encoder=encoder, decoder=decoder, **{**defaults, **settings})


def normalised(num_in: int, num_out: int, dropout: float = 0.0) -> nn.Module:
    first = [nn.Linear(num_in, 8), nn.BatchNorm1d(8), nn.Tanh()]
    return nn.Sequential(*first, *([nn.Dropout(dropout)] if dropout else []), nn.Linear(8, num_out))


class Residual(nn.Module):
    def __init__(self, num_in: int, *out_shape: int) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(num_in, 8), nn.Sequential(nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8))
        self.last, self.out_shape = nn.Linear(8, torch.Size(out_shape).numel()), out_shape

    def forward(self, x):
        h = self.first(x)
        return self.last(h + self.block(h)).unflatten(-1, self.out_shape)


def convolutions(dims: int) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """An encoder and a decoder of events `(2, 4)`, `(2, 4, 4)` or `(2, 4, 4, 4)`, and the shape of an event."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    back = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
    encoder = nn.Sequential(conv(2, 3, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(ENCODED))
    decoder = nn.Sequential(nn.Linear(2, 3 * 2**dims), nn.Unflatten(1, (3, *[2] * dims)), back(3, 2, 2, stride=2))
    return encoder, decoder, (2, *[4] * dims)


NETWORKS = {
    "sequential": lambda: (nn.Linear(DATA, ENCODED), nn.Linear(2, DATA), (DATA,)),
    "residual": lambda: (Residual(DATA, 2, 2), Residual(2, DATA), (DATA,)),
    "BatchNorm": lambda: (normalised(DATA, ENCODED), normalised(2, DATA), (DATA,)),
    "BatchNorm and dropout": lambda: (normalised(DATA, ENCODED, 0.2), normalised(2, DATA, 0.2), (DATA,)),
    **{f"{dims}-D convolutions": partial(convolutions, dims) for dims in (1, 2, 3)},
}


# What they are given, and what is taken -------------------------------------------------------------------------------


def test_the_modules_are_the_users_own_and_stay_as_they_were():
    encoder, decoder = normalised(DATA, ENCODED, 0.5), normalised(2, DATA)
    encoder[1].eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    start = torch.get_rng_state()
    vae = vae_of(encoder, decoder)
    assert torch.equal(torch.get_rng_state(), start)
    assert vae.encoder is encoder
    assert vae.decoder is decoder
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert [module.training for module in encoder] == [True, False, True, True, True]
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    (-vae.encode(torch.ones(5, DATA)).log_prob(torch.ones(5, 2)).mean()).backward()
    moved = parameters_of(vae.encoder)
    optimizer.step()
    assert not torch.equal(parameters_of(vae.encoder), moved)


def test_flattened_outputs_are_loc_and_log_variance_in_turn():
    encoder, decoder, x = nn.Linear(DATA, ENCODED), nn.Linear(2, 6), torch.randn(5, DATA)
    vae = vae_of(encoder, decoder, likelihood=pv.HeteroscedasticGaussian(0.1))
    outputs, z = encoder(x), torch.randn(7, 5, 2)
    assert_close(vae.encode(x).mean, outputs[:, :2])
    assert_close(vae.encode(x).variance, outputs[:, 2:].exp())
    assert_close(vae.decode(z).mean, decoder(z)[..., :DATA])
    assert_close(vae.decode(z[0, 0]).mean, decoder(z[0, 0])[:DATA])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_particles_and_data_are_one_batch_to_a_convolution(dims):
    encoder, decoder, event_shape = convolutions(dims)
    vae = vae_of(encoder, decoder, event_shape).double()
    z = torch.randn(3, 5, 2, dtype=torch.float64)
    assert_close(vae.decode(z).mean, torch.stack([decoder(particle) for particle in z]), rtol=1e-12, atol=1e-12)


def test_features_of_conditions_are_the_second_argument():
    class Joined(nn.Module):
        def __init__(self, num_in, num_out):
            super().__init__()
            self.layer = nn.Linear(num_in + 3, num_out)

        def forward(self, x, features):
            assert x.dim() == features.dim() == 2
            return self.layer(torch.cat((x, features), -1))

    encoder, decoder, y = Joined(DATA, ENCODED), Joined(2, DATA), torch.tensor([0, 2, 1, 1])
    vae, x, z = vae_of(encoder, decoder, condition=pv.OneHot(3)), torch.randn(4, DATA), torch.randn(6, 4, 2)
    one_hot = torch.eye(3)[y]
    assert_close(vae.encode(x, y).mean, encoder(x, one_hot)[:, :2])
    assert_close(vae.decode(z, y).mean[5], decoder(z[5], one_hot))
    vae.double()
    assert pv.log_marginal(vae, x.double(), y, num_samples=10).log_px.dtype == torch.float64
    assert vae.sample(4, y).shape == (4, DATA)


def test_a_factory_is_called_as_the_built_in_networks_are():
    calls = []

    def make(in_shape, out_shape, **features):
        calls.append((in_shape, out_shape, features))
        return pv.MLP(in_shape, out_shape, (4,), **features)

    settings = {"posterior": pv.posteriors.FullCovariance(2), "likelihood": pv.HeteroscedasticGaussian(0.1)}
    vae_of(make, make, (1, 4), **settings)
    assert calls == [((1, 4), (3, 2), {}), ((2,), (2, 1, 4), {})]
    vae_of(make, make, (1, 4), condition=[pv.OneHot(3), pv.OneHot(2)])
    assert calls[2:] == [((1, 4), (2, 2), {"num_features": 5}), ((2,), (1, 4), {"num_features": 5})]
    vae = vae_of(pv.ConvEncoder, partial(pv.MLP, hidden=(5,)), (1, 8, 8))
    assert (type(vae.encoder), type(vae.decoder)) == (pv.ConvEncoder, pv.MLP)


def test_one_network_may_be_built_in():
    vae = pv.VAE((DATA,), latent_dim=2, hidden=(5,), encoder=nn.Linear(DATA, ENCODED), likelihood=pv.Gaussian(0.5))
    assert type(vae.decoder) is pv.MLP
    assert vae.reconstruct(torch.randn(4, DATA)).shape == (4, DATA)


def test_a_lazy_network_starts_from_the_callers_random_numbers():
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(helpers.suite_seed(seed))
        weights.append(vae_of(nn.LazyLinear(ENCODED), nn.Linear(2, DATA)).encoder.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# Training and measuring -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(f"ignore:{SAYS_SO}")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_goes_through_every_door(name):
    encoder, decoder, event_shape = NETWORKS[name]()
    vae, x = vae_of(encoder, decoder, event_shape), torch.randn(12, *event_shape)
    before = parameters_of(vae)
    settings = {"lr": 0.01, "progress": False, "compile": False}
    assert len(pv.fit(vae, x, epochs=1, batch_size=6, objective=pv.objectives.IWAE(3), **settings).loss) == 1
    assert not torch.equal(parameters_of(vae), before)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.objectives.DReG(2))
    assert svi.step(x) > 0
    assert pv.log_marginal(vae, x, num_samples=20).log_px.isfinite().all()
    pv.compare(vae, x, objectives=["iwae"], num_particles=[2], repeats=4, compile=False)
    assert vae.sample(3).shape == (3, *event_shape)


@pytest.mark.filterwarnings(f"ignore:{SAYS_SO}")
@pytest.mark.parametrize("name", ["residual", "BatchNorm and dropout"])
def test_compiled_steps_are_those_of_the_eager_program(name, monkeypatch):
    """In the numbers of batches normalised, too. A step that ran eagerly would warn."""
    graphs = partial(pv.training.gradients.CompiledLoss, inductor=False)
    monkeypatch.setattr(pv.training.gradients, "CompiledLoss", graphs)
    found = []
    for compiled in (False, True):
        torch.manual_seed(helpers.suite_seed())
        encoder, decoder, event_shape = NETWORKS[name]()
        vae, x = vae_of(encoder, decoder, event_shape), torch.randn(12, *event_shape)
        settings = {"objective": pv.objectives.IWAE(3), "compile": compiled, "batch_size": 6, "seed": 0}
        history = pv.fit(vae, x, epochs=2, progress=False, **settings)
        found.append((history.loss, [buffer.double() for buffer in vae.buffers()]))
    (eager, eager_buffers), (compiled, compiled_buffers) = found
    assert_close(eager, compiled, rtol=1e-5, atol=1e-5)
    assert_close(eager_buffers, compiled_buffers, rtol=1e-4, atol=1e-5)


def test_batch_normalisation_sees_one_particle_at_a_time():
    """Mixed, K particles of one datum each would be normalised together. Dropout must not hide it."""
    vae, x = vae_of(normalised(DATA, ENCODED), normalised(2, DATA, 0.2)), torch.randn(12, DATA)
    seen = []
    vae.decoder[1].register_forward_hook(lambda module, inputs, _: seen.append((module.training, len(inputs[0]))))
    with pytest.warns(UserWarning, match=f"{SAYS_SO}.*BatchNorm1d normalises over particles"):
        pv.fit(vae, x, epochs=2, batch_size=6, objective=pv.objectives.IWAE(4), compile=False, progress=False)
    assert {size for training, size in seen if training} == {6}
    assert vae.encoder[1].num_batches_tracked == vae.decoder[1].num_batches_tracked == 4  # once a step
    seen.clear()
    pv.log_marginal(vae, x, num_samples=50)
    assert (False, 50 * 12) in seen  # in evaluation it takes particles at once
    with pytest.raises(pv.InputError, match="must take 4 particles in a dimension left of the batch"):
        pv.objectives.IWAE(4, vectorize_particles=True).loss(vae.train().model, vae.guide, x)


def test_a_frozen_part_stays_frozen_and_a_vae_made_again_trains():
    """Under one name Pyro's store would give the second VAE the parameters of the first."""
    x, encoder = torch.randn(12, DATA), nn.Sequential(nn.Linear(DATA, 8), nn.Tanh(), nn.Linear(8, ENCODED))
    encoder[0].requires_grad_(False)
    kept = parameters_of(encoder[0])
    for _ in range(2):  # the same module in two VAEs is one module
        vae, before = vae_of(encoder, nn.Linear(2, DATA)), parameters_of(encoder[2])
        pv.fit(vae, x, epochs=2, lr=0.01, progress=False)
        assert not torch.equal(parameters_of(encoder[2]), before)
        assert torch.equal(parameters_of(encoder[0]), kept)
        assert not encoder[0].weight.requires_grad


def test_weights_that_are_not_contiguous_are_refused_as_the_store_would_copy_them():
    encoder, decoder, event_shape = convolutions(2)
    encoder[0] = nn.Conv2d(2, 3, 2, stride=2).to(memory_format=torch.channels_last)
    vae = vae_of(encoder, decoder, event_shape)
    message = helpers.refusal(pv.fit, vae, torch.randn(6, *event_shape), epochs=1, progress=False)
    assert "is not in Pyro's param store, which holds a copy of it, because it is not contiguous" in message


# Refusals -------------------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    def forward(self, x):
        return x[:, :2], x[:, :2]


class IsPositive(nn.Module):
    def forward(self, x):
        return x[:, [0, 0, 1, 1]] > 0


RIGHT = {"encoder": nn.Linear(DATA, ENCODED), "decoder": nn.Linear(2, DATA)}
REFUSED = {
    "outputs of an encoder": (
        {"encoder": nn.Linear(DATA, 2)},
        "encoder must return a tensor (batch, 2, 2) or (batch, 4), got (batch, 2)",
    ),
    "outputs of a decoder": (
        {"decoder": nn.Linear(2, 4)},
        "decoder must return a tensor (batch, 3), got (batch, 4)",
    ),
    "a batch that is lost": (
        {"encoder": nn.Sequential(nn.Linear(DATA, ENCODED), nn.Flatten(0))},
        "encoder must return a tensor (batch, 2, 2) or (batch, 4), got (12)",
    ),
    "inputs of a decoder": (
        {"decoder": nn.Linear(5, DATA)},
        "decoder must take z (batch, 2), and Linear raises RuntimeError: ",
    ),
    "two tensors": (
        {"encoder": Pair()},
        "encoder must return a tensor (batch, 2, 2) or (batch, 4), got a tuple; torch.stack((loc, log_variance), -2) "
        "makes one",
    ),
    "features": (
        {"condition": pv.OneHot(3)},
        "encoder must take x (batch, 3) and features (batch, 3), and Linear raises TypeError: Linear.forward() takes 2 "
        "positional arguments but 3 were given",
    ),
    "dtype": (
        {"encoder": nn.Linear(DATA, ENCODED).double()},
        "encoder must have parameters of torch.float32, the default, got torch.float64; convert the whole VAE when it "
        "is made",
    ),
    "whole numbers": (
        {"encoder": IsPositive()},
        "encoder must return a tensor (batch, 2, 2) or (batch, 4) of floating-point numbers, got torch.bool",
    ),
    "no module": ({"encoder": 3}, "encoder must be a module, or a function that makes one, got 3"),
    "a class without shapes": (
        {"decoder": Pair},
        "decoder must be a module, or make one from (in_shape, out_shape): ",
    ),
    "a function of tensors": (
        {"decoder": lambda z, features: z},
        "decoder must make a module, got tuple",
    ),
    "hidden": (
        {"hidden": (8,)},
        "hidden must be left out with an encoder and a decoder of your own, got (8,)",
    ),
    "network": (
        {"network": "conv"},
        "network must be left out with an encoder and a decoder of your own, got 'conv'",
    ),
    "no hidden": (
        {"encoder": None},
        "hidden must list the hidden units or channels of the mlp, got none",
    ),
    "data_mean without a bias": (
        {"data_mean": torch.zeros(DATA)},
        "data_mean needs a decoder with set_output_bias(bias), or output_bias of shape (3,); Linear has neither",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_said_in_one_line_when_the_vae_is_made(name):
    settings, message = REFUSED[name]
    found = helpers.refusal(partial(vae_of, **{**RIGHT, **settings}))
    assert found.startswith(message) if message.endswith(": ") else found == message


def test_a_decoder_starts_from_the_mean_by_its_output_bias_or_its_method():
    class Shifted(nn.Linear):
        def __init__(self):
            super().__init__(2, DATA, bias=False)
            self.output_bias = nn.Parameter(torch.zeros(1, DATA))

        def forward(self, z):
            return super().forward(z) + self.output_bias

    class ByMethod(nn.Linear):
        def set_output_bias(self, bias):
            nn.init.constant_(self.bias, 0).add_(bias)

    mean = torch.tensor([1.0, 2.0, 3.0])
    for decoder in (Shifted(), ByMethod(2, DATA)):
        vae = vae_of(nn.Linear(DATA, ENCODED), decoder, data_mean=mean)
        assert_close(vae.decode(torch.zeros(2)).mean, mean)


def test_a_likelihood_without_output_bias_says_so():
    class Laplace(pv.Likelihood):
        def forward(self, outputs, event_dim):
            return pyro.distributions.Laplace(outputs, 0.5).to_event(event_dim)

    settings = {"latent_dim": 2, "hidden": (8,), "likelihood": Laplace(), "data_mean": torch.zeros(DATA)}
    message = helpers.refusal(pv.VAE, (DATA,), **settings)
    assert message == "data_mean needs a likelihood with an output_bias, and Laplace has none"
