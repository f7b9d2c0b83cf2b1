"""Residual networks of images: their blocks by hand, any leading dimensions and sizes, and every door."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import perturbed, small_vae
from torch.testing import assert_close

import pyrovae as pv
from pyrovae.models.networks.convolutional import ResidualBlock

SHAPES = {"square": ((3, 8, 8), (4, 5)), "odd": ((1, 7, 5), (3, 4)), "one halving": ((2, 2, 3), (3,))}


def test_a_block_is_x_plus_two_convolutions_and_starts_as_the_identity():
    block, x = ResidualBlock(3, "tanh").double(), torch.randn(5, 3, 4, 6, dtype=torch.float64)
    w1, b1, w2, b2 = block.parameters()
    expected = x + F.conv2d(F.conv2d(x.tanh(), w1, b1, padding=1).tanh(), w2, b2, padding=1)
    assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    for net in (pv.ResNetEncoder((3, 8, 8), (2, 2), (4, 5)), pv.ResNetDecoder((2,), (3, 8, 8), (5, 4))):
        blocks = [module for module in net.modules() if isinstance(module, ResidualBlock)]
        assert len(blocks) == 4
        for block in blocks:
            maps = torch.randn(2, block.first.in_channels, 3, 3)
            assert torch.equal(block(maps), maps)


def test_before_its_blocks_move_it_is_a_convolutional_network():
    for residual, plain, shapes in (
        (pv.ResNetEncoder, pv.ConvEncoder, ((3, 8, 8), (2, 2))),
        (pv.ResNetDecoder, pv.ConvDecoder, ((2,), (3, 8, 8))),
    ):
        ours, theirs = residual(*shapes, (4, 5), "silu"), plain(*shapes, (4, 5), "silu")
        in_blocks = {name for part, module in ours.named_modules() if isinstance(module, ResidualBlock)
                     for name in (f"{part}.{key}" for key, _ in module.named_parameters())}  # fmt: skip
        rest = [value for name, value in ours.state_dict().items() if name not in in_blocks]
        theirs.load_state_dict(dict(zip(theirs.state_dict(), rest, strict=True)))
        x = torch.randn(6, *shapes[0])
        assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", SHAPES)
def test_any_leading_dimensions_give_what_one_datum_at_a_time_gives(name):
    """No layer couples the data of a batch, or particles."""
    shape, channels = SHAPES[name]
    encoder = perturbed(pv.ResNetEncoder(shape, (2, 3), channels, num_features=2)).double()
    decoder = perturbed(pv.ResNetDecoder((3,), (4, *shape), channels[::-1], num_features=2)).double()
    for net in (encoder, decoder):
        x, features = torch.randn(2, 3, *net.in_shape).double(), torch.randn(3, 2).double()
        outputs = net(x, features)
        assert outputs.shape == (2, 3, *net.out_shape)
        for k in range(2):
            for n in range(3):
                assert_close(outputs[k, n], net(x[k, n], features[n]), rtol=1e-10, atol=1e-10)


def test_it_trains_with_particles_at_once_and_compiled(monkeypatch):
    graphs = partial(pv.training.gradients.CompiledLoss, inductor=False)
    monkeypatch.setattr(pv.training.gradients, "CompiledLoss", graphs)
    x, losses = (torch.rand(8, 3, 5, 4) * 255).round() / 255, []
    for compiled in (False, True):
        vae = small_vae((3, 5, 4), network="resnet", hidden=(4,), likelihood=pv.DiscretizedLogistic())
        before = {name: parameter.detach().clone() for name, parameter in vae.named_parameters()}
        settings = {"objective": pv.objectives.IWAE(3, vectorize_particles=True), "batch_size": 4, "progress": False}
        losses.append(pv.fit(vae, x, epochs=3, seed=0, compile=compiled, **settings).loss)
        assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert vae.sample(2).shape == (2, 3, 5, 4)
    assert pv.log_marginal(vae, x, num_samples=5).log_px.shape == (8,)


def test_several_outputs_a_pixel_are_taken():
    vae = small_vae((3, 5, 4), network="resnet", hidden=(4,), likelihood=pv.HeteroscedasticGaussian(0.1))
    assert vae.reconstruct(torch.rand(6, 3, 5, 4)).shape == (6, 3, 5, 4)


def test_a_run_and_a_vq_vae_take_it_by_name():
    config = pv.RunConfig(dataset="mnist", network="resnet")
    assert config.hidden == (32, 64)
    sizes = {"num_tokens": 2, "num_codes": 3, "code_dim": 2, "hidden": (3, 4)}
    vae = pv.VQVAE((3, 8, 8), **sizes, network="resnet", likelihood=pv.DiscretizedLogistic())
    assert type(vae.encoder) is pv.ResNetEncoder
    assert vae.sample(2).shape == (2, 3, 8, 8)
