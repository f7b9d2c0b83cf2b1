"""Attend, infer, repeat: objects come one after another, and whether there is a next one is a latent bit."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, softplus

from programs_of_users.program import Program, TwoHeads, mlp, source

NUM, BATCH, STEPS, SIDE, WINDOW, WHAT, HIDDEN = 5, 3, 2, 6, 3, 2, 6


def _transform(where: Tensor, inverse: bool) -> Tensor:
    """Returns the affine matrices `(n, 2, 3)` of windows given by scale and position."""
    scale, shift = where[:, :1], where[:, 1:]
    if not inverse:
        scale, shift = 1 / scale, -shift / scale
    zeros = torch.zeros_like(scale)
    return torch.cat([scale, zeros, shift[:, :1], zeros, scale, shift[:, 1:]], 1).view(-1, 2, 3)


def _moved(pictures: Tensor, where: Tensor, inverse: bool, size: int) -> Tensor:
    grid = affine_grid(_transform(where, inverse), [len(where), 1, size, size], align_corners=False)
    return grid_sample(pictures, grid, align_corners=False)


class AIR(nn.Module):
    """Eslami et al. 2016. The size of a batch is written into the programs, and z_pres masks what is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTMCell(SIDE**2 + 3 + WHAT + 1, HIDDEN)
        self.predict, self.encode, self.decode = mlp(HIDDEN, 8, 7), TwoHeads(WINDOW**2, WHAT), mlp(WHAT, 8, WINDOW**2)
        self.baseline = nn.Sequential(mlp(SIDE**2, 8, 1), nn.Flatten(0))
        self.h_0, self.c_0 = nn.Parameter(torch.zeros(1, HIDDEN)), nn.Parameter(torch.zeros(1, HIDDEN))

    def model(self, data, batch_size):
        pyro.module("decode", self.decode)
        with pyro.plate("data", data.size(0)) as rows:
            batch = data[rows]
            n = batch.size(0)
            canvas, present = torch.zeros(n, SIDE, SIDE), torch.ones(n, 1)
            for t in range(STEPS):
                present = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.5 * present).to_event(1))
                prior = dist.Normal(torch.tensor([2.0, 0.0, 0.0]).expand(n, 3), torch.tensor([0.2, 0.5, 0.5]))
                where = pyro.sample(f"z_where_{t}", prior.mask(present).to_event(1))
                prior = dist.Normal(torch.zeros(n, WHAT), torch.ones(n, WHAT))
                what = pyro.sample(f"z_what_{t}", prior.mask(present).to_event(1))
                window = self.decode(what).sigmoid().view(n, 1, WINDOW, WINDOW)
                canvas = canvas + _moved(window, where, False, SIDE).view(n, SIDE, SIDE) * present.view(-1, 1, 1)
            likelihood = dist.Normal(canvas.view(n, -1), 0.3 * torch.ones(n, SIDE**2))
            pyro.sample("obs", likelihood.to_event(1), obs=batch.view(n, -1))

    def guide(self, data, batch_size):
        for name in ("rnn", "predict", "encode", "baseline"):
            pyro.module(name, getattr(self, name))
        h_0, c_0 = pyro.param("h_0", self.h_0), pyro.param("c_0", self.c_0)
        with pyro.plate("data", data.size(0), subsample_size=batch_size) as rows:
            batch = data[rows]
            n = batch.size(0)
            state = h_0.expand(n, -1), c_0.expand(n, -1)
            present, where, what = torch.ones(n, 1), torch.zeros(n, 3), torch.zeros(n, WHAT)
            for t in range(STEPS):
                state = self.rnn(torch.cat([batch.flatten(1), where, what, present], 1), state)
                found = self.predict(state[0])
                bit = dist.Bernoulli(found[:, :1].sigmoid() * present).to_event(1)
                baseline = {"nn_baseline": self.baseline, "nn_baseline_input": batch.flatten(1)}
                present = pyro.sample(f"z_pres_{t}", bit, infer={"baseline": baseline})
                proposal = dist.Normal(found[:, 1:4] + torch.tensor([2.0, 0.0, 0.0]), 0.3 * softplus(found[:, 4:]))
                where = pyro.sample(f"z_where_{t}", proposal.mask(present).to_event(1))
                seen = _moved(batch.unsqueeze(1), where, True, WINDOW).flatten(1)
                what = pyro.sample(f"z_what_{t}", dist.Normal(*self.encode(seen)).mask(present).to_event(1))


def _air(batch_size: int) -> Program:
    pair, data = AIR(), torch.rand(NUM, SIDE, SIDE, generator=source(8))
    model, guide = partial(pair.model, batch_size=batch_size), partial(pair.guide, batch_size=batch_size)
    return Program(model, guide, (data,), NUM, pyro_loss=TraceGraph_ELBO(), untrained=("baseline",))


def air() -> Program:
    return _air(NUM)


def air_in_batches() -> Program:
    return _air(BATCH)
