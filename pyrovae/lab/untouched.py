"""Runs programs and leaves everything that they can see as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyrovae.common import CapturedState, all_generator_states, set_all_generator_states


@contextmanager
def untouched(*programs: Callable) -> Iterator[CapturedState]:
    """Restores after the block all that the programs can see, the param store and the random number generators.

    The programs can see what a `CapturedState` finds, which the block receives: gradients, tensors that are not trained
    (buffers, tensors of closures and plain objects), modes and attributes. Trained parameters are not copied, so the
    block must not step.
    """
    watch, store, states = CapturedState(programs), pyro.get_param_store(), all_generator_states()
    values = [(tensor, tensor.detach().clone()) for tensor in watch.tensors() if not is_lazy(tensor)]
    leaves = [*watch.parameters(), *watch.tensors()]  # pyro.param may switch on their gradients
    leaves += [value.unconstrained() for value in dict(store.items()).values()]  # type: ignore[attr-defined]
    gradients = [(leaf, leaf.grad) for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None  # otherwise the backward pass would add to the caller's gradient in place
    try:
        with store.scope(store.get_state()):
            yield watch
    finally:
        watch.restore()
        for leaf, gradient in gradients:
            leaf.grad = gradient
        with torch.no_grad():
            for tensor, value in values:
                if not _are_equal(tensor, value):  # one that never moves may not be writable, such as an expanded one
                    tensor.copy_(value)
        set_all_generator_states(states)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
