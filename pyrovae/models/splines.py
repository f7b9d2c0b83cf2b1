"""Monotone rational-quadratic splines of one variable, and their inverse."""

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

LEAST = 1e-3  # width and height of a bin, as a share of all; slope at a knot


def rational_quadratic(x: Tensor, parameters: Tensor, bound: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """An increasing map of [-bound, bound] onto itself, the identity beyond, and the log of its slope, as `x` in shape.

    Durkan et al. 2019, arXiv:1906.04032, equation 4. `parameters` `(..., 3 C - 1)` are of C bins the logits of their
    widths, of their heights, and the slopes at the C - 1 inner knots before a softplus.

    Pyro's spline asserts that a discriminant is not below 0, where rounding puts it, has gradients that are nan beyond
    the box, and indexes by a mask, which no graph of fixed shapes can.
    """
    count = (parameters.shape[-1] + 1) // 3
    widths, heights, slopes = parameters.split((count, count, count - 1), -1)
    at_x, at_y = _knots(widths, bound), _knots(heights, bound)
    slopes = pad(LEAST + softplus(slopes), (1, 1), value=1.0)
    inside = x.abs() < bound
    within = x.clamp(-bound, bound)
    known = at_y if inverse else at_x
    bins = (within.unsqueeze(-1) >= known[..., 1:-1]).sum(-1, keepdim=True)

    def around(values: Tensor) -> tuple[Tensor, Tensor]:
        """At the knots to the left and to the right of the bin."""
        values = values.expand(*bins.shape[:-1], -1)
        return values.gather(-1, bins).squeeze(-1), values.gather(-1, bins + 1).squeeze(-1)

    (left, right), (bottom, top), (first, last) = around(at_x), around(at_y), around(slopes)
    width, height = right - left, top - bottom
    mean = height / width
    bend = first + last - 2 * mean
    if inverse:
        above = within - bottom
        a, b, c = height * (mean - first) + above * bend, height * first - above * bend, -mean * above
        share = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        share = share.clamp(0, 1)  # rounding puts it beyond, where a slope has no logarithm
    else:
        share = (within - left) / width
    across = share * (1 - share)
    if inverse:
        y = left + share * width
    else:
        y = bottom + height * (mean * share.square() + first * across) / (mean + bend * across)
    numerator = last * share.square() + 2 * mean * across + first * (1 - share).square()
    log_slope = 2 * mean.log() + numerator.log() - 2 * (mean + bend * across).log()
    log_slope = torch.where(inside, -log_slope if inverse else log_slope, 0.0)
    return torch.where(inside, y, x), log_slope


def slope_one() -> float:
    """What the parameter of a knot's slope is where the slope is 1."""
    return torch.tensor(1 - LEAST, dtype=torch.float64).expm1().log().item()


def _knots(logits: Tensor, bound: float) -> Tensor:
    shares = LEAST + (1 - LEAST * logits.shape[-1]) * logits.softmax(-1)
    inner = shares.cumsum(-1)[..., :-1]
    return bound * (2 * pad(pad(inner, (1, 0), value=0.0), (0, 1), value=1.0) - 1)
