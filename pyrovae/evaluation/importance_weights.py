"""Statistics of the importance weights of each datum: log p(x), its error and its reliability, bounds from blocks."""

import math

import torch
from torch import Tensor

from pyrovae.common import InputError
from pyrovae.evaluation.pareto_fits import pareto_fits

MIN_TAIL = 5  # weights, of which fewer do not determine a Pareto distribution
NUM_GROUPS = 50
ROUNDING = 32  # units in the last place of a log-weight, which a sum of some hundred terms loses
SEEN_EQUAL = 8  # units in the last place, in which a thousand log-weights differ at the exact posterior
FLAT = 1.0  # nats: a tail of a k above 0.7 spreads over more
MOST_HIDDEN = 10.0  # nats, within which weights that look equal may be: an estimate that is off by more is not right


def log_mean(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (log 1/S sum_s w_s, its standard error by the delta method, ESS), each `(data,)`, for `(S, data)`."""
    count, log_sum = len(log_weights), log_weights.logsumexp(0)
    ess = (2 * log_sum - (2 * log_weights).logsumexp(0)).exp()
    if bool(ess.isnan().any()):
        index = int(ess.isnan().nonzero()[0])
        found = "one is not a number" if bool(log_weights[:, index].isnan().any()) else "all are zero"
        raise InputError(f"log p(x) must have an importance weight above zero at each datum, and at {index} {found}")
    # var(w) / (S mean(w)^2) with the unbiased variance = (S / ESS - 1) / (S - 1)
    error = ((count / ess - 1).clamp(min=0) / (count - 1)).sqrt() if count > 1 else torch.full_like(ess, math.nan)
    return log_sum - math.log(count), error, ess


def influences(log_weights: Tensor) -> Tensor:
    """Returns by how much each group of draws moves log 1/S sum_s w_s, to first order, `(groups, data)`."""
    return grouped(len(log_weights) * log_weights.softmax(0) - 1)


def grouped(deviations: Tensor) -> Tensor:
    """Returns 1/S times the sum of `deviations` over each of at most 50 groups of draws, `(groups, data)`.

    `deviations` are those of S draws from their mean, `(S, data)`. The G results sum to 0, and G/(G - 1) times the sum
    of their squares is the variance of the mean.
    """
    groups = deviations.tensor_split(min(NUM_GROUPS, len(deviations)))
    return torch.stack([group.sum(0) for group in groups]) / len(deviations)


def jackknifed(log_weights: Tensor) -> Tensor:
    """Returns the jackknife variational estimate of log p(x) of order 1, `(data,)`, for `(S, data)`.

        S L_S - (S - 1) mean_i L_{S-1} without draw i

    It lowers the bias of L_S from order 1/S to order 1/S^2, and is not a lower bound in expectation.

    Source:
        Nowozin 2018, ICLR.
    """
    count = len(log_weights)
    if count < 2:
        return torch.full_like(log_weights[0], math.nan)
    log_sum, largest = log_weights.logsumexp(0), log_weights.argmax(0)
    without = log_sum + torch.log1p(-(log_weights - log_sum).exp())
    # If one draw outweighs the others, their sum is lost in the difference.
    others = log_weights.scatter(0, largest[None], -math.inf).logsumexp(0)
    without = without.scatter(0, largest[None], others[None])
    return count * (log_sum - math.log(count)) - (count - 1) * (without.mean(0) - math.log(count - 1))


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (k, log of the mean of the smoothed weights), each `(data,)`, for log-weights `(S, data)`.

    The tail is the largest M = min(S / 5, 3 sqrt(S)) weights, M rounded up. A generalised Pareto distribution is fitted
    to the amounts by which they exceed the next weight; k is its shape. The tail is replaced by its quantiles at
    (m - 1/2) / M, capped at the largest weight. This lowers the variance, at the price of a bias downwards if k > 0.5.

    Nothing is replaced if k is
        -inf: the tail is equal but for rounding, as at the exact posterior, or at least five draws share the largest
            weight, as many do if the latents are codes;
        inf: fewer than five weights exceed the next one, or one outweighs all others;
        nan: M is below five, because there are 20 draws or fewer: too few to tell; or the log-weights are so large that
            rounding hides by how much those of the tail differ.

    Source:
        Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv:1507.02646.
    """
    count, log_sum, num_tail = len(log_weights), log_weights.logsumexp(0), tail_size(len(log_weights))
    if num_tail < MIN_TAIL:
        return torch.full_like(log_sum, math.nan), log_sum - math.log(count)
    top = log_weights.topk(num_tail + 1, dim=0).values.cpu()
    shape, changed = fitted_tail(top, log_weights.amin(0).cpu(), rounding_unit(top))
    # The sum of all weights, relative to the largest, with the tail replaced.
    total = (log_sum - top[0].to(log_sum)).exp() + changed.to(log_sum)
    smoothed = top[0].to(log_sum) + total.log() - math.log(count)
    return shape.to(log_sum.device), smoothed


def tail_size(count: int) -> int:
    """Returns M, the number of so many weights that are their tail; below `MIN_TAIL` it says nothing."""
    return math.ceil(min(0.2 * count, 3 * math.sqrt(count)))


def rounding_unit(log_weights: Tensor) -> Tensor:
    """Returns a unit in the last place of the largest log-weight of each datum, `(data,)`, for `(S, data)`."""
    return _eps(log_weights) * log_weights.amax(0).abs().clamp(min=1)


def smoothed_log_weights(log_weights: Tensor) -> Tensor:
    """Returns log-weights `(S, data)` with those of the tail replaced, whose mean is that of `pareto_smoothed`."""
    num_tail = tail_size(len(log_weights))
    if num_tail < MIN_TAIL:
        return log_weights
    top, index = log_weights.topk(num_tail + 1, dim=0)
    _, tails = _fits(top.cpu(), log_weights.amin(0).cpu(), rounding_unit(top).cpu())
    return log_weights.scatter(0, index[:-1], top[0] + tails.log().to(top))


def fitted_tail(top: Tensor, least: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Returns k, and by how much smoothing moves the sum of the weights relative to the largest, each `(data,)`.

    `top` are the M + 1 largest log-weights, in falling order, `(M + 1, data)`; `least` is the smallest of all, and
    `unit` what rounding may lose of one, both `(data,)`. See `pareto_smoothed`.
    """
    shapes, tails = _fits(top, least, unit)
    return shapes, tails.sum(0) - (top[:-1] - top[0]).exp().sum(0)


def _fits(top: Tensor, least: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Returns k of each datum, `(data,)`, and the smoothed tail relative to the largest weight, `(M, data)`."""
    num_tail = len(top) - 1
    # Relative to the largest weight: the tail itself, and the amounts by which it exceeds the next weight.
    relative = (top - top[0]).exp()
    excess = relative[:-1] - relative[-1]
    # Weights may be so large that what rounding loses is no longer a flat tail: then all of them must look equal.
    hidden, spread = unit * ROUNDING > FLAT, top[0] - least
    flat = torch.where(
        hidden, spread <= (SEEN_EQUAL * unit).clamp(max=MOST_HIDDEN), top[0] - top[-1] <= ROUNDING * unit
    )
    within = hidden & (top[0] - top[-1] <= ROUNDING * unit)
    # Ties, as codes have them, would make the fit divide 0 by 0.
    ties = excess[0] - excess[MIN_TAIL - 1] <= 1e-12
    # The fit needs this many exceedances that are distinct from 0; with fewer, one weight outweighs all others.
    num_distinct = (excess > 1e-15).sum(0)
    is_flat = flat | (ties & ~hidden)
    shapes = torch.full_like(unit, math.inf, dtype=torch.float64)
    shapes[within | ties] = math.nan
    shapes[is_flat] = -math.inf
    fitted = ~(is_flat | within | ties) & (num_distinct >= MIN_TAIL)
    tails, falling = relative[:-1].clone(), excess.nan_to_num(nan=0.0).sort(0, descending=True).values
    log_points = torch.log1p(-(1 - (torch.arange(num_tail, dtype=torch.float64) + 0.5) / num_tail))
    for number in num_distinct[fitted].unique().tolist():
        columns = (fitted & (num_distinct == number)).nonzero().flatten()
        shape, scale = pareto_fits(falling[:number, columns])
        quantiles = torch.expm1(-shape * log_points.unsqueeze(-1)) / shape
        quantiles = torch.where(shape.abs() < 1e-8, -log_points.unsqueeze(-1), quantiles)
        shapes[columns] = shape
        tails[:, columns] = (relative[-1, columns] + scale * quantiles).clamp(max=1.0)
    return shapes, tails


def _eps(log_weights: Tensor) -> float:
    """Returns the epsilon of the dtype that the pair computed in, which the dtype of the weights, float64, hides."""
    single = bool((log_weights == log_weights.float()).all())
    return torch.finfo(torch.float32 if single else log_weights.dtype).eps


def bound_sizes(num_samples: int) -> list[int]:
    """Returns 1, 5, 10, 50, 100, 500, ... up to `num_samples`: each divides the next."""
    sizes, factor = [1], 5
    while sizes[-1] * factor <= num_samples:
        sizes.append(sizes[-1] * factor)
        factor = 7 - factor
    return sizes


def bounds(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns L_K = E[log 1/K sum_k w_k] at each K of `bound_sizes`, and its standard error, each `(sizes, data)`.

    L_K is averaged over S / K disjoint blocks, which makes its variance S / K times smaller than that of the first K
    draws alone. The error is nan if there is one block.
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
