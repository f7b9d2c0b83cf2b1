"""log p(x) of each held-out datum under a trained pair, also where the data share latents."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae.common import evaluates, progress_bar, require, require_size
from pyrovae.evaluation.arguments import home_of
from pyrovae.evaluation.chunks import Data, Opened, check_chunk, opened
from pyrovae.evaluation.cuts import cut, why_not_cut
from pyrovae.evaluation.estimate import MarginalLikelihood
from pyrovae.evaluation.importance_sampling import of_own_weights, particles_of, result_of, statistics_of
from pyrovae.evaluation.subsamples import check_subsamples
from pyrovae.programs import Reading, gate, log_mean_exp, run_pair


class HeldOut(NamedTuple):
    """Holds the arguments of a pair with held-out data, and the number of the data."""

    args: tuple
    size: int


def held_out_of(
    model: Callable, guide: Callable, args: tuple, num_data: int | None = None, plate: str | None = None
) -> HeldOut:
    """Returns the held-out data in the arguments of a pair, or the first `num_data` of them.

    Raises `InputError` if the pair breaks the contract on them, if values are not finite, or if so few cannot be taken.
    """
    found = _opened(model, guide, args, plate)
    if num_data is None or num_data == found.data.size:
        return HeldOut(args, found.data.size)
    most = found.data.size
    require(num_data <= most, f"num_data must be <= {most}, the number of held-out data; got {num_data}")
    why = why_not_cut(model, guide, found, num_data)
    require(why is None, f"num_data must be {most}, as a part of the held-out data cannot be taken: {why}")
    return HeldOut(found.data.rows(0, num_data).args, num_data)


def at_most(model: Callable, guide: Callable, held_out: HeldOut, num_data: int, plate: str | None = None) -> HeldOut:
    """Returns the first `num_data` of the held-out data, or all of them where a part cannot be taken."""
    found = _opened(model, guide, held_out.args, plate)
    if num_data >= held_out.size or why_not_cut(model, guide, found, num_data) is not None:
        return held_out
    return HeldOut(found.data.rows(0, num_data).args, num_data)


@evaluates
def held_out_log_px(
    model: Callable,
    guide: Callable,
    *args: object,
    num_samples: int,
    plate: str | None = None,
    progress: bool | None = None,
) -> MarginalLikelihood:
    """Estimates log p(x) for each held-out datum, given what the guide has learnt of latents that the data share.

        log p(x_n | training data) ~ log 1/S sum_s 1/K sum_k w_nk(theta_s),    theta_s ~ q(theta)

    with w_nk(theta) = p(x_n, z_nk | theta) / q(z_nk | x_n, theta) at z_nk ~ q. The guide's q(theta) stands for the
    posterior of the shared latents theta given the training data. Without shared latents the estimates are those of
    `log_marginal`, whose verdict also says what would help a bad proposal.

    Args:
        model: The model of any pair that keeps the contract.
        guide: Its guide.
        *args: What model and guide take, the held-out data among them.
        num_samples: The number of draws of each z, S K of them; of theta, where it is all that the guide draws.
        plate: The name of the data plate, where the observed sites lie in plates that cross.
        progress: Shows a progress bar; by default on a terminal.

    Returns:
        The estimates with their errors, `(batch,)`, in nats; `monte_carlo_error` takes account of the draws of theta
        that data have in common.

    Raises:
        InputError: As `log_marginal` does.
    """
    require_size("num_samples", num_samples)
    found = _opened(model, guide, args, plate)
    layout = found.pair.layout
    if not layout.has_globals:
        check_subsamples("log_marginal", model, guide, found)
        return of_own_weights(model, guide, found, args, num_samples, progress=progress)
    num_particles = particles_of(num_samples) if layout.draws_locally else 1
    num_draws = num_samples // num_particles
    size = max(1, found.pairs_at_a_time // num_particles)
    chunks = list(cut(model, guide, found, size).in_chunks(size))
    parts = []
    with progress_bar(progress, len(chunks) * num_draws, "log p(x)", "draw") as bar:
        for chunk in chunks:
            check_chunk(model, guide, found, chunk, gate.Weights(in_runs=True))
            draws = []
            for index in range(num_draws):
                draws.append(_draw(model, guide, chunk, num_particles, found.reading, validated=index == 0))
                bar.update()
            parts.append(torch.stack(draws))
    # Nothing but more draws helps: a wider q(theta) is another posterior of what the data share.
    result = result_of(list(statistics_of(torch.cat(parts, 1).to(home_of(args)))), num_draws, None)
    return replace(result, error_of_mean=_error_of_mean(parts))


def _error_of_mean(parts: list[Tensor]) -> float:
    """Returns the standard error of the mean over the data, from log-weights `(draws, data)`.

    The data of each part have the draws of their shared latents in common.
    """
    num_draws, num_data = len(parts[0]), sum(part.shape[1] for part in parts)
    moved_by = torch.stack([(part.softmax(0) - 1 / num_draws).sum(1) for part in parts])
    unbiased = num_draws / (num_draws - 1) if num_draws > 1 else math.nan
    return (unbiased * moved_by.square().sum()).sqrt().item() / num_data


def _opened(model: Callable, guide: Callable, args: tuple, plate: str | None) -> Opened:
    found = opened(model, guide, args, reading=Reading(plate))
    check_subsamples("log p(x) of held-out data", model, guide, found, of_all=False)
    return found


@torch.no_grad()
def _draw(
    model: Callable, guide: Callable, data: Data, num_particles: int, reading: Reading, validated: bool
) -> Tensor:
    """Returns log 1/K sum_k w_nk at a new draw of the shared latents, `(data,)`, float64."""
    with pyro.validation_enabled(validated):
        pair = run_pair(model, guide, *data.args, num_particles=num_particles, reading=reading)
        return log_mean_exp(pair.terms().log_weights.double())
