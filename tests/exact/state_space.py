"""A linear-Gaussian state-space model of sequences of several lengths: its Kalman likelihood and smoothing guide.

    z_1 ~ N(0, START_SD)    z_t ~ N(STAY z_{t-1}, MOVE_SD)    x_t ~ N(z_t, NOISE_SD)

The sequences are padded to one length, `(num_sequences, T)`, and each step is a pair of sites "z_t" and "x_t".
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

START_SD, STAY, MOVE_SD, NOISE_SD = 1.3, 0.9, 0.5, 0.4
LENGTHS = (5, 2, 4, 1)


def sequences(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns padded sequences `(num_sequences, T)`, with nonsense after their ends, and their lengths."""
    generator, lengths = torch.Generator().manual_seed(seed), torch.tensor(LENGTHS)
    x = torch.randn(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64).cumsum(1)
    x[torch.arange(max(LENGTHS)) >= lengths[:, None]] = 50.0
    return x, lengths


# Programs -------------------------------------------------------------------------------------------------------------


def masked(x: Tensor, lengths: Tensor) -> None:
    """The model as it is written for a batch: what lies after a sequence's end is masked."""
    with pyro.plate("sequences", len(x), dim=-1):
        z = 0.0
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=lengths > t):
                z = pyro.sample(f"z_{t}", transition(z, t))
                pyro.sample(f"x_{t}", dist.Normal(z, NOISE_SD), obs=x[:, t])


def masked_and_read_at_its_end(x: Tensor, lengths: Tensor) -> None:
    """As `masked`, with a likelihood outside the mask that reads the last state, which most sequences do not have."""
    with pyro.plate("sequences", len(x), dim=-1):
        z = 0.0
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=lengths > t):
                z = pyro.sample(f"z_{t}", transition(z, t))
                pyro.sample(f"x_{t}", dist.Normal(z, NOISE_SD), obs=x[:, t])
        pyro.sample("end", dist.Normal(z, NOISE_SD), obs=x[:, 0])


def trimmed(x: Tensor, lengths: Tensor) -> None:
    """The model of a single sequence, `(1, T)`, without what lies after its end."""
    with pyro.plate("sequences", 1, dim=-1):
        z = 0.0
        for t in range(int(lengths)):
            z = pyro.sample(f"z_{t}", transition(z, t))
            pyro.sample(f"x_{t}", dist.Normal(z, NOISE_SD), obs=x[:, t])


class SmoothingGuide:
    """Draws z_t ~ p(z_t | z_{t-1}, x_t ... x_T), with standard deviations multiplied by `widen`."""

    def __init__(self, widen: float = 1.0) -> None:
        self.widen = widen

    def masked(self, x: Tensor, lengths: Tensor) -> None:
        pull, precision = to_come(x, lengths)
        with pyro.plate("sequences", len(x), dim=-1):
            z = 0.0
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=lengths > t):
                    z = pyro.sample(f"z_{t}", self.step(z, t, pull[t], precision[t]))

    def trimmed(self, x: Tensor, lengths: Tensor) -> None:
        pull, precision = to_come(x, lengths)
        with pyro.plate("sequences", 1, dim=-1):
            z = 0.0
            for t in range(int(lengths)):
                z = pyro.sample(f"z_{t}", self.step(z, t, pull[t], precision[t]))

    def step(self, z: Tensor | float, t: int, pull: Tensor, precision: Tensor) -> dist.Normal:
        prior = transition(z, t)
        total = prior.scale**-2 + precision
        return dist.Normal((prior.loc / prior.scale**2 + pull) / total, self.widen * total**-0.5)


def transition(z: Tensor | float, t: int) -> dist.Normal:
    sd = torch.tensor(START_SD if t == 0 else MOVE_SD, dtype=torch.float64)
    return dist.Normal(STAY * torch.as_tensor(z).double(), sd)


# Truths ---------------------------------------------------------------------------------------------------------------


def to_come(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Returns h and J, `(T, num_sequences)`: p(x_t ... x_T | z_t) is proportional to exp(h z_t - J z_t^2 / 2)."""
    pull, precision = torch.zeros(2, len(x), dtype=torch.float64)
    found = []
    for t in reversed(range(x.shape[1])):
        # Integrates z_{t+1} out, and adds x_t where there is one.
        shrink = 1 + MOVE_SD**2 * precision
        pull, precision = STAY * pull / shrink, STAY**2 * precision / shrink
        here = (lengths > t).double() / NOISE_SD**2
        pull, precision = pull + here * x[:, t], precision + here
        found.append((pull, precision))
    pulls, precisions = zip(*reversed(found), strict=True)
    return torch.stack(pulls), torch.stack(precisions)


def kalman(x: Tensor, length: int) -> Tensor:
    """Returns log p(x_1 ... x_T) of one sequence `(T,)`, by the Kalman filter."""
    mean, variance = torch.zeros((), dtype=torch.float64), torch.tensor(START_SD**2, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for t in range(length):
        if t > 0:
            mean, variance = STAY * mean, STAY**2 * variance + MOVE_SD**2
        innovation = variance + NOISE_SD**2
        total = total + dist.Normal(mean, innovation**0.5).log_prob(x[t])
        gain = variance / innovation
        mean, variance = mean + gain * (x[t] - mean), (1 - gain) * variance
    return total


def log_evidence(x: Tensor, lengths: Tensor) -> Tensor:
    """Returns log p(x_n) of each sequence, `(num_sequences,)`."""
    return torch.stack([kalman(row, int(length)) for row, length in zip(x, lengths, strict=True)])


def log_evidence_at_once(x: Tensor, length: int) -> Tensor:
    """Returns the same for one sequence as a density of `length` dimensions."""
    steps = torch.arange(length, dtype=torch.float64)
    variance = [START_SD**2]
    for _ in range(1, length):
        variance.append(STAY**2 * variance[-1] + MOVE_SD**2)
    earlier = torch.minimum(steps[:, None], steps).long()
    covariance = torch.tensor(variance, dtype=torch.float64)[earlier] * STAY ** (steps[:, None] - steps).abs()
    covariance = covariance + NOISE_SD**2 * torch.eye(length).double()
    return dist.MultivariateNormal(torch.zeros(length).double(), covariance).log_prob(x[:length])
