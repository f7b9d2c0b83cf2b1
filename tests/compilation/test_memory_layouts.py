"""The memory layout of what a graph returns: fused optimisers go through it in the order of the memory."""

import pyro
import torch
from helpers import suite_seed
from torch import nn

import pyrovae as pv
from pyrovae.compilation.graph import Graph

SIDE, CHANNELS, BATCH = 8, 16, 16  # with fewer data the kernels are others


def test_results_have_the_layout_of_the_trace_whatever_the_kernels_return():
    weight = torch.randn(3, 4, 5, requires_grad=True)

    def gradient(x):
        return (weight * x).square().sum(), *torch.autograd.grad((weight * x).square().sum(), [weight]), None

    graph = Graph(gradient, [torch.tensor(2.0)], inductor=False)
    run = graph._run

    def laid_out_otherwise(*args):
        value, found, nothing = run(*args)
        return value, found.permute(2, 0, 1).contiguous().permute(1, 2, 0), nothing

    for number in (2.0, 3.0, 4.0):  # the kernels change with the second call, and change back with the third
        graph._run = laid_out_otherwise if number == 3.0 else run
        value, found, nothing = graph(torch.tensor(number))
        assert found.stride() == weight.stride()
        assert nothing is None
        torch.testing.assert_close(found, 2 * number**2 * weight.detach())
        torch.testing.assert_close(value, (number * weight.detach()).square().sum())


def test_an_expanded_result_is_taken_as_it_comes():
    """The gradient of a sum is one number in every place, which the clone of a CUDA graph's result is not."""
    weight = torch.randn(3, 4, requires_grad=True)
    graph = Graph(lambda x: (x, *torch.autograd.grad(weight.sum() * x, [weight])), [torch.tensor(2.0)], inductor=False)
    run = graph._run
    assert run(torch.tensor(2.0), *graph.outside)[1].stride() == (0, 0)
    graph._run = lambda *args: tuple(found.clone(memory_format=torch.contiguous_format) for found in run(*args))
    _, found = graph(torch.tensor(3.0))
    assert torch.equal(found, torch.full((3, 4), 3.0))


class Convolutions(nn.Module):
    """An encoder of every kind of convolution, in the layout that their kernels prefer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
            nn.Conv2d(CHANNELS, CHANNELS, 1),
            nn.SiLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2),
            nn.Flatten(),
            nn.Linear(CHANNELS * SIDE * SIDE, 2 * 2),
        )

    def forward(self, x):
        return self.layers(x.reshape(-1, 1, SIDE, SIDE).to(memory_format=torch.channels_last))


def build():
    """Every kind of convolution, and residual blocks in the decoder."""
    settings = {"latent_dim": 2, "hidden": (8,), "network": "resnet", "likelihood": pv.Gaussian(0.5)}
    return pv.VAE((1, SIDE, SIDE), encoder=Convolutions(), **settings)


def trained(kind, optimizer):
    """Returns the parameters before the first and after each step."""
    pyro.clear_param_store()
    torch.manual_seed(suite_seed(1))
    vae = build()
    batches = torch.randn(4, BATCH, 1, SIDE, SIDE)
    svi = kind(vae.model, vae.guide, optimizer(), pyro.infer.Trace_ELBO())
    found = [{name: p.detach().clone() for name, p in vae.named_parameters()}]
    for batch in batches:
        svi.step(batch)
        found.append({name: p.detach().clone() for name, p in vae.named_parameters()})
    return found, getattr(svi, "reason", None)


def test_a_compiled_step_moves_every_weight_as_svi_does():
    def sgd():  # whose steps are proportional to the gradient, where those of Adam are hardly more than its signs
        return pyro.optim.SGD({"lr": 1e-5})

    expected, _ = trained(pyro.infer.SVI, sgd)
    found, why_not = trained(pv.CompiledSVI, sgd)
    assert why_not is None
    for before, after, replayed_before, replayed in zip(expected, expected[1:], found, found[1:], strict=False):
        for name in before:
            moved, moved_too = after[name] - before[name], replayed[name] - replayed_before[name]
            floor = 1e-6 * before[name].norm() + 1e-9
            assert (moved - moved_too).norm() <= 1e-2 * moved.norm() + floor, name
