"""The cost of a step of an estimator: seconds, and the memory that autograd keeps."""

import time
import weakref
from collections.abc import Callable, Sequence
from typing import cast

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.objectives import Objective
from pyrovae.training import CompiledLoss

TIMED_STEPS = 10


def clock(device: torch.device) -> float:
    """Returns the time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median(values: Sequence[float]) -> float:
    """Returns the median; of an even number of values the upper of the middle two."""
    return sorted(values)[len(values) // 2]


def compiled_seconds(
    model: Callable, guide: Callable, args: tuple, objective: PyroELBO, device: torch.device
) -> float | None:
    """Returns the median time of a replayed step in seconds; None if the step cannot be replayed."""
    loss = CompiledLoss(model, guide, objective)
    seconds = []
    for _ in range(TIMED_STEPS + 1):
        started = clock(device)
        loss.loss_and_grads(*args)
        seconds.append(clock(device) - started)
    return None if loss.reason is not None else median(seconds[1:])


def saved_bytes(
    model: Callable, guide: Callable, args: tuple, objective: PyroELBO, parameters: Sequence[Tensor]
) -> int | None:
    """Returns the most bytes that autograd keeps at any one time for the backward pass, not counting `parameters`.

    Each storage counts once, from when it is saved until it is freed. An ELBO that differentiates particle by particle
    therefore counts one particle. An objective that runs its particles in chunks gives None: it saves none of them, and
    runs them again.
    """
    chunk_size = getattr(objective, "chunk_size", None)
    if chunk_size is not None and chunk_size < cast(Objective, objective).num_draws:
        return None
    excluded = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    num_holders: dict[int, int] = {}
    held, most_held = 0, 0

    def pack(tensor: Tensor) -> _SavedTensor:
        nonlocal held, most_held
        saved, storage = _SavedTensor(tensor), tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in excluded:
            held += 0 if num_holders.get(address) else size
            most_held = max(most_held, held)
            num_holders[address] = num_holders.get(address, 0) + 1
            weakref.finalize(saved, release, address, size).atexit = False
        return saved

    def release(address: int, size: int) -> None:
        nonlocal held
        num_holders[address] -= 1
        held -= 0 if num_holders[address] else size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        objective.loss_and_grads(model, guide, *args)  # type: ignore[attr-defined]
    return most_held


class _SavedTensor:
    """Holds a tensor for as long as autograd keeps it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
