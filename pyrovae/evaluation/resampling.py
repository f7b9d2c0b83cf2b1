"""Systematic resampling: draws of equal weight in place of weighted ones, and functions of them, some at a time."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pyrovae.common import local_seed
from pyrovae.evaluation.chunks import PAIRS_PER_CHUNK, Data
from pyrovae.evaluation.expectation import Site


def resampled(log_w: Tensor, num_samples: int) -> Tensor:
    """Returns which draws come in place of the weighted ones, `(num_samples, data)`, from log-weights `(S, data)`."""
    up_to = log_w.softmax(0).cumsum(0).T.contiguous()
    first = torch.rand(len(up_to), 1, dtype=torch.float64, device=log_w.device)
    points = (torch.arange(num_samples, dtype=torch.float64, device=log_w.device) + first) / num_samples
    index = torch.searchsorted(up_to, points * up_to[:, -1:]).clamp(max=len(log_w) - 1)
    order = torch.rand(index.shape, device=log_w.device).argsort(1)
    return index.gather(1, order).T


def resampled_in_groups(log_w: Tensor, num_samples: int, groups: int) -> Tensor:
    """Returns draws as `resampled` does, a row of groups after another: those of a group come from draws of its own.

    Draws are dealt out to the groups in turn, and each group has `num_samples`. A group without any weight takes part
    in those of all.
    """
    parts = []
    for group in range(groups):
        own = log_w[group::groups]
        index = resampled(own, num_samples) * groups + group
        parts.append(torch.where((own == -torch.inf).all(0), resampled(log_w, num_samples), index))
    return torch.cat(parts)


def in_blocks(
    runs: Iterable[tuple[Data, int, Site]],
    device: torch.device,
    function: Callable[..., Tensor],
    args: tuple[Tensor, ...],
    num: int,
) -> list[tuple[Tensor]]:
    """Returns a function of latents and the rows that go with them, `(num, data, ...)`, for each run of data.

    Args:
        runs: For each run its data, a seed and the latents, each `(num, data, ...)`.
        device: That of the model, where the function works.
        function: Is given latents, each `(draws, data, ...)`, and the rows of `args`, and returns `(draws, data, ...)`.
        args: x, and what the model takes besides, of all data.
        num: The number of draws for each datum.
    """
    parts = []
    for chunk, seed, draws in runs:
        rows = [value[chunk.start : chunk.stop].to(device) for value in args]
        size, found = max(1, PAIRS_PER_CHUNK // chunk.size), []
        with local_seed(seed):
            for first in range(0, num, size):
                found.append(function({name: site[first : first + size] for name, site in draws.items()}, *rows))
        parts.append((torch.cat(found),))
    return parts
