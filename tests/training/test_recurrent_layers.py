"""Recurrent layers of torch under CompiledSVI, and a program whose graph fails though it runs itself."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyrovae as pv
from pyrovae.compilation.replay import Replay


class OfSeries(nn.Module):
    """z is one of each series of three vectors, which a recurrent network reads."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder, self.head = layer(3, 4, batch_first=True), nn.Linear(4, 2)
        self.decoder, self.lift = layer(2, 3, batch_first=True), nn.Linear(2, 6)

    def model(self, x):
        pyro.module("of_series", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(self.lift(z).reshape(-1, 3, 2))[0], 0.5).to_event(2), obs=x)

    def guide(self, x):
        pyro.module("of_series", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.head(self.encoder(x)[0][:, -1]), 1.0).to_event(1))


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_compiled_steps_are_svis(layer):
    x, losses = torch.randn(6, 3, 3), []
    for make in (SVI, lambda *args: pv.CompiledSVI(*args, inductor=False)):
        pyro.clear_param_store()
        torch.manual_seed(1)
        pair = OfSeries(layer)
        svi = make(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        losses.append([svi.step(x) for _ in range(3)])  # without a word that it runs eagerly
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert torch._C._get_mkldnn_enabled()


@torch.library.custom_op("pyrovae_tests::needs_autograd", mutates_args=())
def needs_autograd(x: torch.Tensor) -> torch.Tensor:
    if not torch.is_grad_enabled():
        raise RuntimeError("it keeps nothing for its gradient")
    return x * 2


needs_autograd.register_fake(torch.empty_like)


def test_a_program_whose_graph_fails_runs_eagerly_with_a_line_that_says_so():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + loc, needs_autograd(torch.ones(()))), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.1)), 1.0))

    x, losses = torch.randn(4), []
    for make in (SVI, lambda *args: pv.CompiledSVI(*args, inductor=False)):
        pyro.clear_param_store()
        torch.manual_seed(1)
        svi = make(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        says = pytest.warns(UserWarning, match="run eagerly.*its graph fails: .*keeps nothing for its gradient")
        with nullcontext() if make is SVI else says:
            losses.append([svi.step(x) for _ in range(3)])
    assert losses[1] == losses[0]


def test_a_graph_that_fails_when_it_is_compared_again_gives_way_to_the_program(monkeypatch):
    buffer = nn.BatchNorm1d(2)

    def program(x):
        return (buffer(x).sum(), x.sin())

    x = torch.randn(4, 2)
    replay = Replay(program, [x], lambda: program(x), [buffer], inductor=False, num_values=1)
    assert replay.why is None

    def fails(*args):
        buffer.running_mean.fill_(7.0)
        raise RuntimeError("no more")

    monkeypatch.setattr(replay, "_accepted", fails)
    mean = 0.9 * buffer.running_mean + 0.1 * x.mean(0)
    outcome, why = replay.compare(lambda: program(x), [x])
    assert why == "its graph fails: no more"
    assert torch.equal(outcome[1], x.sin())
    torch.testing.assert_close(buffer.running_mean, mean)  # as the program leaves it
