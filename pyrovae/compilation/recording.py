"""Records what a function does to tensors, as a graph of PyTorch's operations.

The recorder works below autograd and below Pyro's handlers. It sees what a model, a guide and a gradient do to tensors,
and nothing of how they were written. The function runs on fake tensors, so nothing is computed, no random number is
drawn and no buffer is moved. PyTorch's own `make_fx` makes the same graph in twice the time.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch import config
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_ALIASES = (aten.alias.default, aten.detach.default)
_CONSTANTS = (
    bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None),
)  # fmt: skip


class CannotTrace(Exception):
    """Says why a program is not a straight line of tensor operations."""


def record(function: Callable, args: Sequence[Tensor]) -> tuple[fx.Graph, list[Tensor]]:
    """Returns what the function does on `args` and on the tensors outside that it reads, and those tensors.

    The graph's inputs are the `args` and then the tensors outside. A 0-dim tensor that the function makes of a number
    is that number.
    """
    from torch.fx.experimental.proxy_tensor import disable_autocast_cache
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # half a second of imports

    with config.patch(fake_tensor_allow_unsafe_data_ptr_access=False):
        fake = FakeTensorMode(
            allow_fallback_kernels=True, allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True
        )
    recorder = _Recorder()
    inputs = [recorder.add_input(f"input_{place}", fake.from_tensor(arg)) for place, arg in enumerate(args)]
    with fake, recorder, disable_autocast_cache():
        outputs = function(*inputs)
    return recorder.finished(outputs), recorder.outside


class _Recorder(TorchDispatchMode):
    """Writes each operation within it down as a node of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.outside: list[Tensor] = []
        self._last_input: fx.Node
        # The tensors are kept, as an address may be used again.
        self._known: dict[int, tuple[fx.Node, Tensor]] = {}
        self._sizes: dict[Any, fx.Node] = {}
        self._numbers: list[tuple[fx.Node, Tensor]] = []

    def add_input(self, name: str, tensor: Tensor) -> Tensor:
        node = self.graph.placeholder(name)
        self._last_input = node
        self._know(tensor, node)
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.prim.device.default:  # the most frequent of all
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        kwargs = kwargs or {}
        if any(kind not in (FakeTensor, Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # a class of its own says what it does
        if torch.Tag.inplace_view in func.tags:
            # The operation changes the shape of this name of the memory, and in a replay not of the others', which may
            # be a parameter's.
            node = self.graph.call_function(aten.alias.default, (self._node_of(args[0]),))
            node.meta["val"] = args[0].detach()  # as it was
            self._known[id(args[0])] = node, args[0]
        outcome = func(*args, **kwargs)
        if func in _ALIASES:
            # Other names for the same memory. Inductor then sees that the two runs of a pair, which path derivatives
            # need, share their work.
            self._know(outcome, self._node_of(args[0]))
        elif func is aten.lift_fresh.default and not isinstance(args[0], FakeTensor):
            self._know(outcome, self._made_by_the_function(args[0]))
        elif func._schema.is_mutable or _has_tensors(outcome):
            node = self.graph.call_function(func, self._argument(args), self._argument(kwargs))
            if isinstance(outcome, list | tuple):
                for place, part in enumerate(outcome):
                    if isinstance(part, Tensor):
                        self._know(part, self.graph.call_function(operator.getitem, (node, place)))
            elif isinstance(outcome, Tensor):
                self._know(outcome, node)
        return outcome

    def finished(self, outputs: Any) -> fx.Graph:
        with torch._C.DisableTorchFunction():  # these values are the function's own
            for node, tensor in self._numbers:
                node.args = ([], tensor.item())
        self.graph.output(self._argument(outputs))
        self.graph.lint()
        return self.graph

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        self._known[id(tensor)] = node, tensor
        node.meta.setdefault("val", tensor)
        for dim, size in enumerate(tensor.shape):
            if isinstance(size, torch.SymInt) and size.node.expr not in self._sizes:
                self._sizes[size.node.expr] = self.graph.call_function(aten.sym_size.int, (node, dim))

    def _node_of(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._known:
            if isinstance(tensor, FakeTensor):
                raise CannotTrace("it keeps a tensor of one run for the next")
            with self.graph.inserting_after(self._last_input):
                self._last_input = self.graph.placeholder(f"outside_{len(self.outside)}")
            self.outside.append(tensor)
            self._know(tensor, self._last_input)
        return self._known[id(tensor)][0]

    def _made_by_the_function(self, tensor: Tensor) -> fx.Node:
        if tensor.dim() > 0:
            return self.graph.call_function(aten.lift_fresh_copy.default, (self._node_of(tensor),))
        settings: dict[str, Any] = {"dtype": tensor.dtype, "device": tensor.device}
        node = self.graph.call_function(aten.full.default, ([], 0), settings)
        self._numbers.append((node, tensor))  # whose value is at hand when the trace is over
        return node

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, list | tuple):
            return type(value)(map(self._argument, value))
        if isinstance(value, dict):
            return {name: self._argument(part) for name, part in value.items()}
        if isinstance(value, torch.SymInt):
            return self._size(value.node.expr)
        if isinstance(value, _CONSTANTS):
            return value
        raise CannotTrace(f"it hands on a {type(value).__name__}")

    def _size(self, expression: Any) -> Any:
        """Returns a size that depends on values, such as the number of elements that a mask leaves."""
        if expression in self._sizes:
            return self._sizes[expression]
        if expression.is_Integer:
            return int(expression)
        if not (expression.is_Mul or expression.is_Add):
            raise CannotTrace(f"it computes the size {expression}, which depends on values")
        combine = operator.mul if expression.is_Mul else operator.add
        parts = map(self._size, expression.args)
        self._sizes[expression] = functools.reduce(lambda a, b: self.graph.call_function(combine, (a, b)), parts)
        return self._sizes[expression]


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_has_tensors, value)))
