"""Mixtures and hidden Markov models, whose discrete sites are summed out in the model."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value
from torch import Tensor
from torch.nn.functional import pad

from programs_of_users.hierarchies import positive
from programs_of_users.program import Program, bits, log_normal, normals, source

COMPONENTS, STATES, TONES = 2, 2, 3
LENGTHS = torch.tensor([4, 3, 2])
GLOBALS = ("weights", "scale", "locs")
START = {"weights": torch.tensor([0.5, 0.5]), "scale": torch.tensor(1.0), "locs": torch.tensor([-2.0, 2.0])}


def _points() -> Tensor:
    return torch.cat([-2.0 + normals(source(15), 3), 2.0 + normals(source(16), 3)])


def _mixture(data):
    weights = pyro.sample("weights", dist.Dirichlet(2.0 * torch.ones(COMPONENTS)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("components", COMPONENTS):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def _mixture_under(auto, **settings) -> Program:
    values = {name: value.clone() for name, value in START.items()}  # which the guide would train in place
    guide = auto(poutine.block(_mixture, expose=list(GLOBALS)), init_loc_fn=init_to_value(values=values), **settings)
    return Program(_mixture, guide, (_points(),), pyro_loss=TraceEnum_ELBO(max_plate_nesting=1))


def mixture_with_auto_delta() -> Program:
    """Pyro's tutorial: the parameters of the mixture at their maximum a posteriori."""
    return _mixture_under(AutoDelta)


def mixture_with_auto_normal() -> Program:
    return _mixture_under(AutoNormal, init_scale=0.2)


def nothing(*args):
    """A guide for a model whose latents are all summed out."""


def mixture_of_parameters() -> Program:
    """The parameters of the mixture are parameters: the assignments are all that is latent."""

    def model(data):
        locs, scale = pyro.param("locs", START["locs"].clone()), positive("scale", torch.tensor(1.0))
        weights = pyro.param("weights", START["weights"].clone(), constraint=dist.constraints.simplex)
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    data = _points()

    def log_px():
        locs, scale, weights = (pyro.param(name).detach().double() for name in ("locs", "scale", "weights"))
        return (weights.log() + log_normal(data.double().unsqueeze(-1) - locs, scale)).logsumexp(-1)

    return Program(model, nothing, (data,), len(data), pyro_loss=TraceEnum_ELBO(max_plate_nesting=1), log_px=log_px)


def stick_breaking_mixture() -> Program:
    """Pyro's Dirichlet-process mixture: the guide draws the assignments, too, with a parameter for each datum."""
    data, truncation = _points(), 3

    def model(data):
        with pyro.plate("sticks", truncation - 1):
            beta = pyro.sample("beta", dist.Beta(1.0, 1.0))
        with pyro.plate("components", truncation):
            mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        weights = pad(beta, (0, 1), value=1) * pad((1 - beta).cumprod(-1), (1, 0), value=1)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(mu[z], 1.0), obs=data)

    def guide(data):
        kappa = positive("kappa", torch.ones(truncation - 1))
        tau = pyro.param("tau", torch.tensor([-2.0, 0.0, 2.0]))
        phi = pyro.param("phi", torch.ones(len(data), truncation) / truncation, constraint=dist.constraints.simplex)
        with pyro.plate("sticks", truncation - 1):
            pyro.sample("beta", dist.Beta(torch.ones(truncation - 1), kappa))
        with pyro.plate("components", truncation):
            pyro.sample("mu", dist.Normal(tau, 0.5))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(phi))

    return Program(model, guide, (data,))


# Hidden Markov models -------------------------------------------------------------------------------------------------


def _tones() -> Tensor:
    return bits(source(17), len(LENGTHS), int(LENGTHS.max()), TONES)


def _sequences(sequences, lengths, probs_x, probs_y):
    tones = pyro.plate("tones", TONES, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2):
        x = 0
        for t in pyro.markov(range(sequences.shape[1])):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer={"enumerate": "parallel"})
                with tones:
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequences[:, t])


def hidden_markov() -> Program:
    """States of ragged sequences with several tones at a time; the probabilities are parameters."""
    data = _tones()

    def model(sequences, lengths):
        probs_x = pyro.param("probs_x", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=dist.constraints.simplex)
        start = torch.tensor([[0.2, 0.5, 0.7], [0.6, 0.3, 0.4]])
        probs_y = pyro.param("probs_y", start, constraint=dist.constraints.unit_interval)
        _sequences(sequences, lengths, probs_x, probs_y)

    loss = TraceEnum_ELBO(max_plate_nesting=2)
    return Program(model, nothing, (data, LENGTHS), len(data), pyro_loss=loss, log_px=lambda: _forward(data))


def _forward(data: Tensor) -> Tensor:
    """Returns log p of each sequence by the forward algorithm; every sequence comes from state 0."""
    probs_x, probs_y = (pyro.param(name).detach().double() for name in ("probs_x", "probs_y"))
    totals = []
    for sequence, length in zip(data.double(), LENGTHS.tolist(), strict=True):
        state = torch.tensor([1.0, 0.0], dtype=torch.float64)
        for tones in sequence[:length]:
            state = (state @ probs_x) * (probs_y**tones * (1 - probs_y) ** (1 - tones)).prod(-1)
        totals.append(state.sum().log())
    return torch.stack(totals)


def hidden_markov_with_priors() -> Program:
    """Pyro's example: priors on both tables of probabilities, and their maximum a posteriori."""

    def model(sequences, lengths):
        probs_x = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(STATES) + 1.1).to_event(1))
        probs_y = pyro.sample("probs_y", dist.Beta(1.1, 1.9).expand([STATES, TONES]).to_event(2))
        _sequences(sequences, lengths, probs_x, probs_y)

    guide = AutoDelta(poutine.block(model, expose_fn=lambda site: site["name"].startswith("probs_")))
    return Program(model, guide, (_tones(), LENGTHS), pyro_loss=TraceEnum_ELBO(max_plate_nesting=2))
