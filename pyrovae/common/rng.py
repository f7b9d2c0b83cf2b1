"""Seeds, and random numbers that are local to a block: afterwards the caller's generators are as they were before."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pyrovae.common.rules import Rule, dense, each, exactly, fields, items, like, nothing_or, number, refuse, whole

_WORDS = 624  # of the Mersenne Twister's state, in Python and in NumPy

_STATES = fields(
    {
        "torch": each(dense, at_least=1),
        "own": each(dense),
        "python": items(whole(), each(whole(0, 2**32 - 1)), nothing_or(number())),
        # NumPy takes any position, and reads its state's memory there.
        "numpy": items(
            exactly("MT19937"), like(torch.zeros(_WORDS, dtype=torch.int64)), whole(0, _WORDS), whole(0, 1), number()
        ),
    }
)


@contextmanager
def local_seed(seed: int | None) -> Iterator[None]:
    """Within the block torch's generators start from `seed`, and afterwards they are as they were before.

    With None they go on from where they are, and stay advanced.
    """
    if seed is None:
        yield
        return
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        seed_torch(seed)
        yield


def seed_torch(seed: int) -> None:
    """Seeds torch's generators as `torch.manual_seed` does, which without an accelerator takes a hundred times longer.

    It then formats the stack of its caller, for each kind of accelerator that torch knows.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(int(seed))  # of NumPy, for one


def derived_seed(seed: int, purpose: str) -> int:
    """Returns a seed for one purpose, whose stream is not that of another purpose, another seed, or `seed` itself."""
    return random.Random(f"pyrovae {seed} {purpose}").getrandbits(63)


def _num_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def generator_states() -> list[Tensor]:
    """Returns the states of torch's generators, on the CPU and on every GPU."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_generator_states(states: list[Tensor]) -> None:
    """Sets torch's generators to what `generator_states` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


def all_generator_states(generators: Sequence[torch.Generator] = ()) -> dict[str, Any]:
    """Returns the states of torch's, Python's and NumPy's generators and `generators`, as tensors and plain values."""
    name, keys, *rest = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())  # noqa: NPY002
    return {
        "torch": generator_states(),
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "own": [generator.get_state() for generator in generators],
    }


def set_all_generator_states(states: dict[str, Any], generators: Sequence[torch.Generator] = ()) -> None:
    """Sets all generators to what `all_generator_states` returned."""
    set_generator_states(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    for generator, state in zip(generators, states["own"], strict=True):
        generator.set_state(state)


def generator_states_for(generators: Sequence[torch.Generator] = ()) -> Rule:
    """Returns the rule of what `all_generator_states` returned, with these generators or on another machine.

    The states are given to other generators, to see whether they take them.
    """

    def rule(name: str, states: Any) -> None:
        _STATES(name, states)
        words = states["numpy"][1]
        if not bool(((words >= 0) & (words < 2**32)).all()):
            refuse(f"{name}.numpy[1]", "of whole numbers from 0 to 2^32 - 1", words)
        try:
            random.Random().setstate((states["python"][0], tuple(states["python"][1]), states["python"][2]))
        except (TypeError, ValueError, OverflowError):
            refuse(f"{name}.python", "a state of Python's generator", states["python"])
        here = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(_num_gpus()))]
        own = [generator.device for generator in generators]
        for kind, devices in (("torch", here), ("own", own)):
            if len(states[kind]) != len(devices):  # of another machine, or of other data
                devices = here[: kind == "torch"]
            for index, (device, state) in enumerate(zip(devices, states[kind], strict=False)):
                try:
                    torch.Generator(device).set_state(state)
                except (TypeError, RuntimeError):
                    refuse(f"{name}.{kind}[{index}]", f"a state of torch's generator on {device.type}", state)

    return rule


@contextmanager
def kept_generators(generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """After the block torch's, Python's and NumPy's generators, and `generators`, are as they were before it."""
    states = all_generator_states(generators)
    try:
        yield
    finally:
        set_all_generator_states(states, generators)


@contextmanager
def fixed_generators(seed: int, generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Within the block all generators start from `seed`; after it they are as they were before."""
    with kept_generators(generators):
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        for generator in generators:
            generator.manual_seed(seed)
        yield
