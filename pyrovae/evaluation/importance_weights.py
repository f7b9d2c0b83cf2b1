"""What the importance weights of each datum say: log p(x), how far off it may be, and the bounds along the way."""

import math

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyrovae.common import InputError

MIN_TAIL = 5
GROUPS = 50
ROUNDING = 32  # units in the last place of a log-weight: what a sum of some hundred terms loses


def log_mean(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log 1/S sum_s w_s, its standard error by the delta method, ESS), each `(data,)`, of `(S, data)`."""
    count, log_sum = len(log_weights), log_weights.logsumexp(0)
    ess = (2 * log_sum - (2 * log_weights).logsumexp(0)).exp()
    if bool(ess.isnan().any()):
        raise InputError("log p(x) does not exist: an importance weight is not a number, or all are zero")
    # var(w) / (S mean(w)^2) with the unbiased variance = (S / ESS - 1) / (S - 1)
    error = ((count / ess - 1).clamp(min=0) / (count - 1)).sqrt() if count > 1 else torch.full_like(ess, math.nan)
    return log_sum - math.log(count), error, ess


def influences(log_weights: Tensor) -> Tensor:
    """By how much each group of draws moves log 1/S sum_s w_s, to first order: `grouped`, of w_s / mean(w) - 1."""
    return grouped(len(log_weights) * log_weights.softmax(0) - 1)


def grouped(deviations: Tensor) -> Tensor:
    """1/S of the sum of the deviations of S draws from their mean, `(S, data)`, over each of 50 groups or fewer.

    `(groups, data)`: they sum to 0, and G/(G - 1) times the sum of the squares of G groups is the variance of the mean.
    """
    groups = deviations.tensor_split(min(GROUPS, len(deviations)))
    return torch.stack([group.sum(0) for group in groups]) / len(deviations)


def jackknifed(log_weights: Tensor) -> Tensor:
    """S L_S - (S - 1) mean_i L_{S-1} without draw i: the bias of L_S, of order 1/S, goes to one of order 1/S^2.

    The jackknife variational estimate of order 1 (Nowozin 2018, ICLR), `(data,)`; not a lower bound in expectation.
    """
    count = len(log_weights)
    if count < 2:
        return torch.full_like(log_weights[0], math.nan)
    log_sum, largest = log_weights.logsumexp(0), log_weights.argmax(0)
    without = log_sum + torch.log1p(-(log_weights - log_sum).exp())
    # Where one draw outweighs the others, their sum is lost in the difference.
    others = log_weights.scatter(0, largest[None], -math.inf).logsumexp(0)
    without = without.scatter(0, largest[None], others[None])
    return count * (log_sum - math.log(count)) - (count - 1) * (without.mean(0) - math.log(count - 1))


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """(k, log of the mean of the smoothed weights), each `(data,)`: Vehtari et al. 2024, arXiv:1507.02646.

    A generalised Pareto is fitted to what the largest M = min(S / 5, 3 sqrt(S)) weights, rounded up, exceed the next
    one by; k is its shape, and they are replaced by its quantiles at (m - 1/2) / M, at most the largest weight: less
    variance, for k > 0.5 at the price of a bias downwards. Nothing is replaced where k is -inf: the M weights are equal
    but for rounding, as all are at the exact posterior, or at least five draws share the largest, as many do where the
    latents are codes; where it is inf: fewer than five exceed the next one, or one outweighs all others; and where it
    is nan: M is below five, of 20 draws or fewer, which are too few to tell.
    """
    count = len(log_weights)
    num_tail = math.ceil(min(0.2 * count, 3 * math.sqrt(count)))
    log_sum = log_weights.logsumexp(0)
    if num_tail < MIN_TAIL:
        return torch.full_like(log_sum, math.nan), log_sum - math.log(count)
    top = log_weights.topk(num_tail + 1, dim=0).values.cpu()
    # Relative to the largest weight: the tail itself, and what it exceeds the next one by.
    relative = (top - top[0]).exp()
    excess = relative[:-1] - relative[-1]
    flat = ROUNDING * _eps(top) * top[0].abs().clamp(min=1)
    shapes, sums = [], []
    points = 1 - (torch.arange(num_tail, dtype=torch.float64) + 0.5) / num_tail
    for column, cut, tail, least in zip(excess.T, relative[-1], relative[:-1].T, flat, strict=True):
        if column[0] <= least or column[0] - column[MIN_TAIL - 1] <= 1e-12:  # of codes: there the fit divides 0 by 0
            shape, smooth = -math.inf, tail
        else:
            # As many exceedances as the fit needs to be distinct from 0: fewer, and one weight outweighs all others.
            distinct = column[column > 1e-15]
            if len(distinct) < MIN_TAIL:
                shape, smooth = math.inf, tail
            else:
                shape, scale = fit_generalized_pareto(distinct)
                quantiles = (
                    -torch.log1p(-points) if abs(shape) < 1e-8 else torch.expm1(-shape * torch.log1p(-points)) / shape
                )
                smooth = (cut + scale * quantiles).clamp(max=1.0)
        shapes.append(shape)
        sums.append(smooth.sum() - tail.sum())
    changed = torch.stack(sums).to(log_sum)
    # The sum of all weights, relative to the largest, with the tail's replaced.
    total = (log_sum - top[0].to(log_sum)).exp() + changed
    smoothed = top[0].to(log_sum) + total.log() - math.log(count)
    return torch.tensor(shapes, dtype=torch.float64, device=log_sum.device), smoothed


def _eps(log_weights: Tensor) -> float:
    """The rounding of the dtype in which the weights were computed: their sums are float64, whatever the pair is in."""
    single = bool((log_weights == log_weights.float()).all())
    return torch.finfo(torch.float32 if single else log_weights.dtype).eps


def bound_sizes(num_samples: int) -> list[int]:
    """1, 5, 10, 50, 100, 500, ... up to `num_samples`: each divides the next."""
    sizes, factor = [1], 5
    while sizes[-1] * factor <= num_samples:
        sizes.append(sizes[-1] * factor)
        factor = 7 - factor
    return sizes


def bounds(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """L_K = E[log 1/K sum_k w_k] at each K of `bound_sizes`, and standard errors: `(sizes, data)` each.

    Averaged over S / K disjoint blocks, which has a variance S / K times smaller than the first K draws alone. The
    error is nan where there is one block.
    """
    values, errors, sums, size = [], [], log_weights, 1
    for wanted in bound_sizes(len(log_weights)):
        ratio, size = wanted // size, wanted
        blocks = len(sums) // ratio
        sums = sums[: blocks * ratio].unflatten(0, (blocks, ratio)).logsumexp(1)
        of_blocks = sums - math.log(size)
        values.append(of_blocks.mean(0))
        deviation = of_blocks.std(0) if blocks > 1 else torch.full_like(values[-1], math.nan)
        errors.append(deviation / math.sqrt(blocks))
    return torch.stack(values), torch.stack(errors)
