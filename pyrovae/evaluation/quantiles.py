"""Quantiles from weighted draws, per datum, with their errors; the two ends mirror each other."""

import math

import torch
from torch import Tensor

from pyrovae.common import require
from pyrovae.evaluation.expectation import VALUES_AT_A_TIME

LEAST_BEYOND = 5  # effective draws beyond a quantile, of which fewer do not tell how far it may be off
BEYOND = f"fewer than {LEAST_BEYOND} effective draws lie beyond a quantile; take more draws"
ROUNDING = 1e-12  # of a sum of weights


def quantiles_of(levels: Tensor, log_w: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """Returns quantiles, errors, ESS and the effective number of draws beyond, each `(levels, data, *event)`.

    With draws in rising order and W_s their shares of the weights, each side of a quantile at level a holds

        below = sum of W_s^2 up to it,    above = sum of W_s^2 from it on,

    to which the draw (or the tied draws) in which the level falls adds in proportion to where it falls. The effective
    number of draws on the sides is a^2 / below and (1 - a)^2 / above. The variance of the probability to be below is

        e^2 = ((1 - a)^2 (below + l^2) + a^2 (above + h^2)) S / (S - 1)

    with the largest shares l and h on the two sides: as if each side had one more draw, since what is known of a side
    that few draws reach is what they happened to be. Levels a - e and a + e must lie within the middles of the
    outermost draws; the error is nan otherwise.

    Args:
        levels: `(levels,)`.
        log_w: Log-weights, `(S, data)`.
        values: `(S, data, *event)`.
    """
    count, num_data = log_w.shape
    share, values = log_w.softmax(0).double(), values.double()
    event = values.shape[2:]
    size = max(1, VALUES_AT_A_TIME // (count * max(1, event.numel())))
    parts = []
    for rows in torch.arange(num_data).split(size):
        at = slice(int(rows[0]), int(rows[-1]) + 1)
        parts.append(_quantiles(levels, share[:, at], values[:, at].flatten(2) if event else values[:, at, None]))
    return tuple(
        torch.cat(p, 1).unflatten(2, event) if event else torch.cat(p, 1)[..., 0] for p in zip(*parts, strict=True)
    )


def _quantiles(levels: Tensor, share: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    missing = values.isnan()
    require(bool((missing.any(0) == missing.all(0)).all()), "the latent is masked at some draws of a datum, not at all")
    values, order = values.movedim(0, -1).sort(-1)  # (data, values, draws)
    values, share = values.contiguous(), share.T.unsqueeze(1).expand_as(order).gather(-1, order)
    below, squares, count = share.cumsum(-1), share.square().cumsum(-1), values.shape[-1]
    level = levels.expand(*values.shape[:2], -1)  # (data, values, levels)

    def least(level: Tensor) -> Tensor:
        """Returns the index of the first draw with at least this much weight up to it."""
        return torch.searchsorted(below, (level - ROUNDING).contiguous()).clamp(max=count - 1)

    def most(level: Tensor) -> Tensor:
        """Returns the index of the last draw with at least 1 - level of the weight from it on: the mirrored one."""
        return torch.searchsorted(below, (level + ROUNDING).contiguous(), right=True).clamp(max=count - 1)

    def up_to(sums: Tensor, end: Tensor) -> Tensor:
        """Returns the sum over all draws before `end`."""
        return torch.where(end > 0, sums.gather(-1, (end - 1).clamp(min=0)), 0.0)

    low, high = (values.gather(-1, at(level)) for at in (least, most))
    start, end = torch.searchsorted(values, low), torch.searchsorted(values, high, right=True)  # with all ties
    before, squares_before = up_to(below, start), up_to(squares, start)
    part = ((level - before) / (up_to(below, end) - before)).clamp(0, 1)
    under = squares_before + part * (up_to(squares, end) - squares_before)
    over = squares[..., -1:] - under
    beyond = torch.minimum(level**2 / under, (1 - level) ** 2 / over)
    # The largest share on each side, and half of that of the outermost draws.
    largest = share.cummax(-1).values
    under = under + up_to(largest, end) ** 2
    bottom = up_to(largest, torch.searchsorted(values, values[..., :1].contiguous(), right=True)) / 2
    largest = share.flip(-1).cummax(-1).values
    over = over + up_to(largest, count - start) ** 2
    top = up_to(largest, count - torch.searchsorted(values, values[..., -1:].contiguous())) / 2
    variance = (under * (1 - level) ** 2 + over * level**2) * (count / (count - 1) if count > 1 else math.nan)
    lower, upper = level - variance.sqrt(), level + variance.sqrt()
    error = (values.gather(-1, most(upper)) - values.gather(-1, least(lower))) / 2
    error = torch.where((lower > bottom) & (upper < 1 - top), error, math.nan)
    value = (low + high) / 2
    found = value, error, level * (1 - level) / variance, beyond
    return tuple(torch.where(value.isnan(), math.nan, one).movedim(-1, 0) for one in found)
