"""What `backward` does besides setting the parameters' gradients, and a replay would not."""

from collections.abc import Sequence

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pyrovae.compilation import CannotTrace

OF_AN_ARGUMENT = "an argument requires a gradient, which a replay would not compute"
HOOKED = "a parameter has a hook, which a replay would not call"


def has_hook(parameter: Tensor) -> bool:
    """Returns True if `backward` calls a function of the user's with the parameter's gradient."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def check_reach(surrogates: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    """Raises `CannotTrace` if `backward` of these adds to the gradient of a tensor that is none of the parameters.

    It may be of a network that the pair does not register, with an optimiser of its own. While a graph is traced, the
    tensors that the loss itself makes are fake ones.
    """
    known = set(map(id, parameters))
    for leaf in _leaves_of(surrogates):
        if id(leaf) not in known and not isinstance(leaf, FakeTensor):
            shape = tuple(leaf.shape)
            raise CannotTrace(f"a tensor of shape {shape} gets a gradient, and is no registered parameter")


def _leaves_of(surrogates: Sequence[Tensor]) -> list[Tensor]:
    leaves, seen, left = [], set(), [surrogate.grad_fn for surrogate in surrogates]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        left += [following for following, _ in node.next_functions]
    return leaves
