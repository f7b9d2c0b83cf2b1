"""What a step of an estimator costs: seconds, and the memory that autograd keeps."""

import time
import weakref
from collections.abc import Callable, Sequence

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.training import CompiledLoss

TIMED = 10


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def compiled_seconds(model: Callable, guide: Callable, args: tuple[Tensor, ...], objective: PyroELBO) -> float | None:
    """Returns the median time of a replayed step; None where it cannot be replayed."""
    if not hasattr(objective, "differentiable_loss"):
        return None
    loss = CompiledLoss(model, guide, objective)
    seconds = []
    for _ in range(TIMED + 1):
        started = clock(args[0].device)
        loss.loss_and_grads(*args)
        seconds.append(clock(args[0].device) - started)
    return None if loss.reason is not None else median(seconds[1:])


def saved_bytes(
    model: Callable, guide: Callable, args: tuple[Tensor, ...], objective: PyroELBO, parameters: Sequence[Tensor]
) -> int | None:
    """Returns the bytes of what autograd keeps for the backward pass, at most at one time, without `parameters`.

    Each storage counts once, and until it is let go: of an ELBO that differentiates particle by particle it is one
    particle's. None of an objective that runs its particles in chunks: it keeps none of them, and runs them again.
    """
    chunk_size = getattr(objective, "chunk_size", None)
    if chunk_size is not None and chunk_size < objective.num_draws:
        return None
    left_out = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    holders: dict[int, int] = {}
    now, most = 0, 0

    def pack(tensor: Tensor) -> _Kept:
        nonlocal now, most
        kept, storage = _Kept(tensor), tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in left_out:
            now += 0 if holders.get(place) else size
            most = max(most, now)
            holders[place] = holders.get(place, 0) + 1
            weakref.finalize(kept, let_go, place, size).atexit = False
        return kept

    def let_go(place: int, size: int) -> None:
        nonlocal now
        holders[place] -= 1
        now -= 0 if holders[place] else size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        objective.loss_and_grads(model, guide, *args)
    return most


class _Kept:
    """A tensor for as long as autograd keeps it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
