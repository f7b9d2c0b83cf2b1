"""Monotone rational-quadratic splines of one variable, and their inverse."""

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

MIN_BIN_SIZE = 1e-3  # of the width and the height of a bin, as a share of all bins
MIN_SLOPE = 1e-3  # at a knot


def rational_quadratic(x: Tensor, parameters: Tensor, bound: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Maps [-bound, bound] onto itself by an increasing spline; beyond, the map is the identity.

    Pyro's spline asserts that a discriminant is not negative, which rounding can make it. Its gradients are nan beyond
    the box, and it indexes by a mask, which a graph of fixed shapes cannot do.

    Args:
        x: The values, of any shape.
        parameters: Of C bins, `(..., 3 C - 1)`: the logits of their widths, the logits of their heights, and the slopes
            at the C - 1 inner knots before a softplus. The leading dimensions broadcast with those of `x`.
        bound: Half the side of the box.
        inverse: True applies the inverse map.

    Returns:
        The images of `x`, and the logarithms of the slopes there, both of the shape of `x`.

    Source:
        Durkan et al. 2019, arXiv:1906.04032, equation 4.
    """
    count = (parameters.shape[-1] + 1) // 3
    widths, heights, slopes = parameters.split((count, count, count - 1), -1)
    knots_x, knots_y = _knots(widths, bound), _knots(heights, bound)
    slopes = pad(MIN_SLOPE + softplus(slopes), (1, 1), value=1.0)
    inside = x.abs() < bound
    clamped = x.clamp(-bound, bound)
    knots = knots_y if inverse else knots_x
    bins = (clamped.unsqueeze(-1) >= knots[..., 1:-1]).sum(-1, keepdim=True)

    def at_both_ends(values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the values at the knots to the left and to the right of each bin."""
        values = values.expand(*bins.shape[:-1], -1)
        return values.gather(-1, bins).squeeze(-1), values.gather(-1, bins + 1).squeeze(-1)

    (left, right), (bottom, top), (first, last) = map(at_both_ends, (knots_x, knots_y, slopes))
    width, height = right - left, top - bottom
    mean = height / width
    bend = first + last - 2 * mean
    if inverse:
        above = clamped - bottom
        a, b, c = height * (mean - first) + above * bend, height * first - above * bend, -mean * above
        share = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        share = share.clamp(0, 1)  # beyond, where rounding can put it, a slope may have no logarithm
    else:
        share = (clamped - left) / width  # of the bin's width, theta in the paper
    product = share * (1 - share)
    if inverse:
        y = left + share * width
    else:
        y = bottom + height * (mean * share.square() + first * product) / (mean + bend * product)
    numerator = last * share.square() + 2 * mean * product + first * (1 - share).square()
    log_slope = 2 * mean.log() + numerator.log() - 2 * (mean + bend * product).log()
    log_slope = torch.where(inside, -log_slope if inverse else log_slope, 0.0)
    return torch.where(inside, y, x), log_slope


def parameter_of_slope_one() -> float:
    """Returns the parameter of a knot at which the slope is 1."""
    return torch.tensor(1 - MIN_SLOPE, dtype=torch.float64).expm1().log().item()


def _knots(logits: Tensor, bound: float) -> Tensor:
    shares = MIN_BIN_SIZE + (1 - MIN_BIN_SIZE * logits.shape[-1]) * logits.softmax(-1)
    inner = shares.cumsum(-1)[..., :-1]
    return bound * (2 * pad(pad(inner, (1, 0), value=0.0), (0, 1), value=1.0) - 1)
