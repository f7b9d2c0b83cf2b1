"""Randomness that is local to a block: the caller's generators are as they were after it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def local_seed(seed: int | None) -> Iterator[None]:
    """Within the block torch's generators start from `seed`; with None they go on as they are, and stay advanced."""
    if seed is None:
        yield
        return
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, whose stream is not that of another purpose, another seed, or of `seed` itself."""
    return random.Random(f"pyrovae {seed} {purpose}").getrandbits(63)
