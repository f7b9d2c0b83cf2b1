"""Linear-Gaussian chains of different lengths in one batch, the same trimmed by hand, and their exact log p(x).

    z_0 ~ N(0, 1),  z_t ~ N(a z_t-1, Q),  x_t ~ N(z_t, R),    t < length

The guide is the exact posterior at the initial parameters, p(z_t|z_t-1, x_t ... x_length): every weight is p(x).
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from helpers import suite_seed
from pyro import poutine
from scalar_pairs import Pair, double
from torch import Tensor

A, Q, R = 0.8, 0.5, 0.3
LENGTHS = torch.tensor([4, 2, 1, 3, 4, 2])
STEPS = 4


def sequences(lengths: Tensor = LENGTHS) -> tuple[Tensor, Tensor]:
    """Returns padded data `(batch, STEPS)`, with large numbers after the ends, and the lengths `(batch,)`."""
    generator = torch.Generator().manual_seed(suite_seed(19))
    x = torch.randn(len(lengths), STEPS, generator=generator, dtype=torch.float64)
    return torch.where(torch.arange(STEPS) < lengths[:, None], x, 1e3), lengths


def log_px(x: Tensor, lengths: Tensor, a: Tensor | float = A) -> Tensor:
    """Returns the exact log p(x), `(batch,)`: the data are jointly normal."""
    a = torch.as_tensor(a, dtype=torch.float64)
    variances, covariance = [double(1.0)], torch.zeros(STEPS, STEPS, dtype=torch.float64)
    for _ in range(STEPS - 1):
        variances.append(a**2 * variances[-1] + Q)
    rows = [[variances[min(s, t)] * a ** abs(s - t) for s in range(STEPS)] for t in range(STEPS)]
    covariance = torch.stack([torch.stack(row) for row in rows]) + R * torch.eye(STEPS, dtype=torch.float64)
    found = []
    for one, length in zip(x, lengths.tolist(), strict=True):
        zeros = torch.zeros(length, dtype=torch.float64)
        found.append(dist.MultivariateNormal(zeros, covariance[:length, :length]).log_prob(one[:length]))
    return torch.stack(found)


# Ways to mask a site, each of which returns the distribution and the mask of a handler --------------------------------

Masked = tuple[dist.TorchDistribution, Tensor | bool]


def by_handler(fn: dist.Normal, mask: Tensor) -> Masked:
    return fn, mask


def by_distribution(fn: dist.Normal, mask: Tensor) -> Masked:
    return fn.mask(mask), True


def by_event(fn: dist.Normal, mask: Tensor) -> Masked:
    """Masks the elements of a vector, as in Pyro's deep Markov model."""
    return dist.Normal(fn.loc[..., None], fn.scale[..., None]).mask(mask[..., None]).to_event(1), True


def by_both(fn: dist.Normal, mask: Tensor) -> Masked:
    """Masks every second datum by a handler, and the others by the distribution."""
    is_even = torch.arange(len(mask)) % 2 == 0
    return fn.mask(mask | is_even), mask | ~is_even


MASKS = {"handler": by_handler, "distribution": by_distribution, "event": by_event, "both": by_both}


# The pair -------------------------------------------------------------------------------------------------------------


def chain(mask: Callable | None = by_handler, masks_data: bool = True, steps: int = STEPS) -> Pair:
    """Returns the pair for `(x, lengths)`; without `mask` all sequences have `steps` steps."""

    def sample(name: str, fn: dist.Normal, is_there: Tensor, obs: Tensor | None = None) -> Tensor:
        if mask is None or (obs is not None and not masks_data):
            return pyro.sample(name, fn, obs=obs)
        masked, outside = mask(fn, is_there)
        with poutine.mask(mask=outside):
            if masked.event_dim == 0:
                return pyro.sample(name, masked, obs=obs)
            return pyro.sample(name, masked, obs=None if obs is None else obs[:, None]).squeeze(-1)

    def model(x, lengths):
        a, z = pyro.param("a", double(A)), double(0.0)
        with pyro.plate("data", len(x), dim=-1):
            for t in range(steps):
                loc = (a * z).expand(torch.broadcast_shapes(z.shape, lengths.shape))
                z = sample(f"z_{t}", dist.Normal(loc, double(Q if t else 1.0) ** 0.5), t < lengths)
                sample(f"x_{t}", dist.Normal(z, double(R) ** 0.5), t < lengths, obs=x[:, t])

    def guide(x, lengths):
        shift, widening = pyro.param("shift", double(0.0)), pyro.param("widening", double(0.0))
        z = double(0.0)
        with pyro.plate("data", len(x), dim=-1):
            for t, (precision, total) in enumerate(_messages(x, lengths, steps)):
                variance = Q if t else 1.0
                scale = (1 / (precision + 1 / variance)) ** 0.5
                loc = scale**2 * (A * z / variance + total) + shift
                z = sample(f"z_{t}", dist.Normal(loc, scale * widening.exp()), t < lengths)

    return Pair(model, guide)


def _messages(x: Tensor, lengths: Tensor, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Returns precision and precision times mean of p(x_t ... x_length|z_t) as a function of z_t, for each t."""
    precision = total = torch.zeros(len(x), dtype=torch.float64)
    found = []
    for t in reversed(range(steps)):
        precision, total = A**2 * precision / (1 + Q * precision), A * total / (1 + Q * precision)
        precision, total = (torch.where(t < lengths, one, 0.0) for one in (precision + 1 / R, total + x[:, t] / R))
        found.append((precision, total))
    return found[::-1]


def trimmed(lengths: Tensor) -> list[tuple[Tensor, Pair]]:
    """Returns the rows of each length, and the pair without masks for them."""
    return [((lengths == one).nonzero().flatten(), chain(None, steps=one)) for one in lengths.unique().tolist()]
