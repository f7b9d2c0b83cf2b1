"""What one draw adds to a bound: the signal by which a draw without a path gradient learns."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def learning_signal(bound: Callable[[Tensor], Tensor], log_weights: Tensor) -> Tensor:
    """Returns L - L_-k for each draw, `(num_particles, batch)`; with one draw L alone.

    L_-k is the bound with log w_k replaced by the mean of the others. It does not depend on draw k, so that
    L_-k d log q(z_k|x) has mean 0. Where another weight is 0, the mean of their logarithms is -inf.

    Args:
        bound: Returns the bound of each datum, `(batch,)`, from log-weights `(num_particles, batch)`.
        log_weights: The log-weights.
    """
    count = len(log_weights)
    if count == 1:
        return bound(log_weights).unsqueeze(0)
    is_zero = log_weights == -math.inf
    known = torch.where(is_zero, 0.0, log_weights)
    others = (known.sum(0) - known) / (count - 1)
    others = torch.where(is_zero.sum(0) > is_zero.long(), -math.inf, others)
    # Row k of the matrix has the weights with the k-th replaced.
    replaced = log_weights.expand(count, *log_weights.shape).clone()
    index = torch.arange(count)
    replaced[index, index] = others
    without = bound(replaced.movedim(1, 0))
    return bound(log_weights) - without
