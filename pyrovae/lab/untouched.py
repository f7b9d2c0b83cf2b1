"""Programs run, and everything that they can see left as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyrovae.common import CapturedState, all_generator_states, set_all_generator_states


@contextmanager
def untouched(*programs: Callable) -> Iterator[CapturedState]:
    """After the block all that the programs can see is as before it, and so are the param store and the generators.

    That is what a `CapturedState` finds, which the block is given: gradients, tensors that are not trained (buffers,
    those of closures and plain objects), modes, attributes. Parameters that are trained are not copied: the block must
    not step.
    """
    watch, store, states = CapturedState(programs), pyro.get_param_store(), all_generator_states()
    values = [(tensor, tensor.detach().clone()) for tensor in watch.tensors() if not is_lazy(tensor)]
    leaves = [*watch.parameters(), *watch.tensors()]  # which pyro.param may set to take a gradient
    leaves += [value.unconstrained() for value in dict(store.items()).values()]
    gradients = [(leaf, leaf.grad) for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None  # a gradient would be added to the one that is there, in place
    try:
        with store.scope(store.get_state()):
            yield watch
    finally:
        watch.restore()
        for leaf, gradient in gradients:
            leaf.grad = gradient
        with torch.no_grad():
            for tensor, value in values:
                if not _are_equal(tensor, value):  # what never moves (an expanded tensor, say) is not written
                    tensor.copy_(value)
        set_all_generator_states(states)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
