"""Changes one value, anywhere in what a file of tensors and plain values holds, to one that is wrong in most places."""

import copy
import random
import signal
import warnings
from contextlib import contextmanager

import torch

SECONDS = 20  # after which a trial counts as one that never ends
LONGEST = 500  # characters of an error
REMOVED = object()


def sparse(*shape):
    return torch.ones(shape or (1,)).to_sparse()


def quantised(*shape):
    return torch.quantize_per_tensor(torch.ones(shape), 0.1, 0, torch.qint8)


def nested():
    return torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


WRONG = (
    lambda old: None,
    lambda old: True,
    lambda old: -1,
    lambda old: 1,
    lambda old: 2**70,
    lambda old: 10**5_000,
    lambda old: float("nan"),
    lambda old: float("inf"),
    lambda old: 0.5,
    lambda old: "x",
    lambda old: "x" * 10_000_000,
    lambda old: b"",
    lambda old: [],
    lambda old: {},
    lambda old: [old],
    lambda old: REMOVED,
    lambda old: torch.ones(3, 5),
    lambda old: torch.ones(()),
    lambda old: torch.ones(1).expand(2**40),
    lambda old: nested(),
)
WRONG_TENSORS = (
    lambda old: old.double() if old.dtype != torch.float64 else old.float(),
    lambda old: old.to(torch.int8),
    lambda old: old.to(torch.complex64),
    lambda old: old.to("meta"),
    lambda old: old.float().clone().requires_grad_(),
    lambda old: sparse(*old.shape),
    lambda old: quantised(*old.shape),
    lambda old: torch.full_like(old, torch.nan) if old.is_floating_point() else old + 300,
    lambda old: old.new_zeros((*old.shape, 1)),
    lambda old: old.flatten()[:0],
)
WRONG_DICTS = (
    lambda old: {**old, "more": 1},
    lambda old: {**old, 7: torch.ones(2).to("meta")},
    lambda old: {**old, "step": "x"},
    lambda old: list(old.values()),
    lambda old: {"x" * 10_000_000: 1},
    dict.fromkeys,
)


def place_in(content, rng):
    """Returns the keys that lead to a value, which is chosen so that each branch is as likely as its siblings."""
    path = []
    while isinstance(content, dict | list | tuple) and len(content) and (not path or rng.random() < 0.85):
        path.append(rng.choice(list(content) if isinstance(content, dict) else range(len(content))))
        content = content[path[-1]]
    return path


def at(content, path):
    for key in path:
        content = content[key]
    return content


def with_value(content, path, value):
    """Returns the content with another value in one place; all that leads there is copied."""
    if not path:
        return value
    found = list(content) if isinstance(content, tuple) else copy.copy(content)
    if value is REMOVED and len(path) == 1:
        del found[path[0]]
    else:
        found[path[0]] = with_value(content[path[0]], path[1:], value)
    return tuple(found) if isinstance(content, tuple) else found


def changed(content, seed):
    """Returns the content with one value changed, and what was done in words."""
    rng = random.Random(seed)
    path = place_in(content, rng)
    old = at(content, path)
    more = WRONG_TENSORS if isinstance(old, torch.Tensor) else WRONG_DICTS if isinstance(old, dict) else ()
    with warnings.catch_warnings(action="ignore"):  # quantised tensors are going
        value = rng.choice(rng.choice((WRONG, more or WRONG)))(old)
    words = "nothing" if value is REMOVED else type(value).__name__
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and value < 2**80):
        words = repr(value)
    return with_value(content, path, value), f"seed {seed}: {'.'.join(map(str, path))} becomes {words}"


@contextmanager
def an_end():
    """Fails if the block goes on for more than `SECONDS`."""

    def stop(*_):
        raise TimeoutError(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_one_line(error):
    assert "\n" not in str(error)
    assert len(str(error)) < LONGEST, str(error)[:LONGEST]
