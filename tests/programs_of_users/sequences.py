"""State-space models of sequences with ragged lengths: every time has sites of its own, masked after the end."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from programs_of_users.program import Program, TwoHeads, bits, log_normal, mlp, normals, source

LENGTHS = torch.tensor([4, 3, 3, 2])
STEPS, NOTES, LATENT, HIDDEN = 4, 3, 2, 5
DRIFT, MOVES, BLURS = 0.8, 0.6, 0.5  # of the linear-Gaussian model


def masks() -> Tensor:
    """Returns True where a sequence still goes on, `(num, steps)`."""
    return torch.arange(STEPS) < LENGTHS.unsqueeze(-1)


def reversed_in_time(sequences: Tensor) -> Tensor:
    """Turns each sequence round within its own length."""
    turned = sequences.clone()
    for row, length in enumerate(LENGTHS.tolist()):
        turned[row, :length] = sequences[row, :length].flip(0)
    return turned


class DeepMarkov(nn.Module):
    """Krishnan, Shalit and Sontag 2017: the guide reads the reversed sequences with a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.emitter, self.transition = mlp(LATENT, 6, NOTES), TwoHeads(LATENT, LATENT, 6)
        self.rnn = nn.RNN(NOTES, HIDDEN, batch_first=True)
        self.to_hidden, self.combiner = nn.Linear(LATENT, HIDDEN), TwoHeads(HIDDEN, LATENT, 6)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(LATENT)), nn.Parameter(torch.zeros(LATENT))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, HIDDEN))

    def model(self, sequences, turned, mask, lengths, annealing=1.0):
        pyro.module("dmm", self)
        z = self.z_0.expand(len(sequences), LATENT)
        with pyro.plate("z_minibatch", len(sequences)):
            for t in pyro.markov(range(sequences.size(1))):
                with poutine.scale(scale=annealing):
                    prior = dist.Normal(*self.transition(z)).mask(mask[:, t : t + 1]).to_event(1)
                    z = pyro.sample(f"z_{t}", prior)
                notes = dist.Bernoulli(logits=self.emitter(z)).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"x_{t}", notes, obs=sequences[:, t, :])

    def guide(self, sequences, turned, mask, lengths, annealing=1.0):
        pyro.module("dmm", self)
        hidden, _ = self.rnn(turned, self.h_0.expand(1, len(sequences), HIDDEN).contiguous())
        if isinstance(hidden, PackedSequence):
            hidden, _ = pad_packed_sequence(hidden, batch_first=True)
        hidden = reversed_in_time(hidden)
        z = self.z_q_0.expand(len(sequences), LATENT)
        with pyro.plate("z_minibatch", len(sequences)):
            for t in pyro.markov(range(sequences.size(1))):
                both = (self.to_hidden(z).tanh() + hidden[:, t, :]) / 2
                with poutine.scale(scale=annealing):
                    proposal = dist.Normal(*self.combiner(both)).mask(mask[:, t : t + 1]).to_event(1)
                    z = pyro.sample(f"z_{t}", proposal)


def deep_markov() -> Program:
    pair, sequences = DeepMarkov(), bits(source(5), len(LENGTHS), STEPS, NOTES)
    turned = pack_padded_sequence(reversed_in_time(sequences), LENGTHS, batch_first=True)
    args = (sequences, turned, masks(), LENGTHS)
    return Program(pair.model, pair.guide, args, len(LENGTHS))


class RecurrentLikelihood(nn.Module):
    """A sequence VAE (Bowman et al. 2016): one z per sequence starts a GRU that reads the sequence itself."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.writer = nn.GRU(NOTES, HIDDEN, batch_first=True), nn.GRU(NOTES, HIDDEN, batch_first=True)
        self.heads, self.start, self.notes = (
            TwoHeads(HIDDEN, LATENT),
            nn.Linear(LATENT, HIDDEN),
            nn.Linear(HIDDEN, NOTES),
        )

    def model(self, sequences, mask):
        pyro.module("recurrent", self)
        with pyro.plate("sequences", len(sequences)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            before = torch.cat([torch.zeros_like(sequences[:, :1]), sequences[:, :-1]], 1)
            hidden, _ = self.writer(before, self.start(z).unsqueeze(0))
            notes = dist.Bernoulli(logits=self.notes(hidden)).mask(mask.unsqueeze(-1)).to_event(2)
            pyro.sample("x", notes, obs=sequences)

    def guide(self, sequences, mask):
        pyro.module("recurrent", self)
        with pyro.plate("sequences", len(sequences)):
            _, last = self.reader(sequences)
            pyro.sample("z", dist.Normal(*self.heads(last.squeeze(0))).to_event(1))


def recurrent_vae() -> Program:
    pair, sequences = RecurrentLikelihood(), bits(source(6), len(LENGTHS), STEPS, NOTES)
    return Program(pair.model, pair.guide, (sequences, masks()), len(LENGTHS))


def linear_gaussian() -> Program:
    """A random walk seen through noise; its log p(x) is the Kalman filter's."""
    x, mask = normals(source(7), len(LENGTHS), STEPS), masks()

    def model(x, mask):
        drift = pyro.param("drift", torch.tensor(DRIFT))
        z = torch.zeros(len(x))
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z_{t}", dist.Normal(drift * z, MOVES))
                    pyro.sample(f"x_{t}", dist.Normal(z, BLURS), obs=x[:, t])

    def guide(x, mask):
        gain = pyro.param("gain", torch.tensor(0.55))
        scale = pyro.param("scale", torch.tensor(0.45), constraint=dist.constraints.positive)
        z = torch.zeros(len(x))
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z_{t}", dist.Normal((1 - gain) * DRIFT * z + gain * x[:, t], scale))

    return Program(model, guide, (x, mask), len(LENGTHS), log_px=lambda: kalman(x))


def kalman(x: Tensor) -> Tensor:
    """Returns log p of each sequence up to its own length, `(num,)`."""
    drift, totals = pyro.param("drift").detach().double(), []
    for row, length in zip(x.double(), LENGTHS.tolist(), strict=True):
        mean, variance, total = torch.zeros(()).double(), torch.zeros(()).double(), torch.zeros(()).double()
        for value in row[:length]:
            mean, variance = drift * mean, drift**2 * variance + MOVES**2
            seen = variance + BLURS**2
            total = total + log_normal(value - mean, seen.sqrt())
            mean, variance = mean + variance / seen * (value - mean), variance * BLURS**2 / seen
        totals.append(total)
    return torch.stack(totals)
