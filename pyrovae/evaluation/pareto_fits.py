"""Generalised Pareto distributions fitted to the tails of many data at once."""

import math

import torch
from torch import Tensor

PRIOR_DRAWS = 10.0  # with which k is pulled towards 1/2
NEGLIGIBLE = 1e-30  # a weight of a candidate, below which it is left out
NUMBERS_AT_ONCE = 2**18


def pareto_fits(exceedances: Tensor) -> tuple[Tensor, Tensor]:
    """Returns shape k and scale of the generalised Pareto distribution of each column, each `(data,)`.

    Each is the posterior mean of k / scale over a grid of M candidates under their profile likelihood, with a prior on
    k. It is what `pyro.ops.stats.fit_generalized_pareto` returns of one column, to the bit, and takes a fifth of the
    time where tails are short.

    Args:
        exceedances: positive amounts by which weights exceed a threshold, `(N, data)`, in float64.

    Source:
        Zhang and Stephens 2009; Vehtari et al. 2024, arXiv:1507.02646.
    """
    count = len(exceedances)
    size = max(1, NUMBERS_AT_ONCE // (_num_candidates(count) * count))
    fits = [_fits(part) for part in exceedances.T.contiguous().sort(-1).values.split(size)]
    shape, scale = (torch.cat(parts) for parts in zip(*fits, strict=True))
    return shape, scale


def _num_candidates(count: int) -> int:
    return 30 + int(math.sqrt(count))


def _fits(sorted_rows: Tensor) -> tuple[Tensor, Tensor]:
    count = sorted_rows.shape[1]
    number = _num_candidates(count)
    grid = 1.0 - math.sqrt(number) / (torch.arange(1, number + 1, dtype=torch.float64) - 0.5).sqrt()
    quartile, largest = sorted_rows[:, int(count / 4 - 0.5), None], sorted_rows[:, -1:]
    ratios = grid / (3.0 * quartile) + 1 / largest  # minus k / scale
    shapes = torch.log1p(-ratios.unsqueeze(-1) * sorted_rows.unsqueeze(1)).mean(-1)
    log_likelihoods = count * (torch.log(-ratios / shapes) - (shapes + 1.0))
    weights = 1.0 / torch.exp(log_likelihoods.unsqueeze(1) - log_likelihoods.unsqueeze(-1)).sum(-1)
    ratio = (ratios * (weights / weights.sum(-1, keepdim=True))).sum(-1)
    for row in (~(weights > NEGLIGIBLE).all(-1)).nonzero().flatten().tolist():  # sums of fewer terms round otherwise
        kept = weights[row] > NEGLIGIBLE
        ratio[row] = (ratios[row][kept] * (weights[row][kept] / weights[row][kept].sum())).sum()
    shape = torch.log1p(-ratio.unsqueeze(-1) * sorted_rows).mean(-1)
    scale = -shape / ratio
    return shape * count / (count + PRIOR_DRAWS) + 0.5 * PRIOR_DRAWS / (count + PRIOR_DRAWS), scale
