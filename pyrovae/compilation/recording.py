"""Records what a function does to tensors, as a graph of PyTorch's operations.

The recorder works below autograd and below Pyro's handlers. It sees what a model, a guide and a gradient do to tensors,
and nothing of how they were written. The function runs on fake tensors, so nothing is computed, no random number is
drawn and no buffer is moved. PyTorch's own `make_fx` makes the same graph in twice the time.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch import config
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_ALIASES = (aten.alias.default, aten.detach.default)
_CONSTANTS = (
    bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None),
)  # fmt: skip


class CannotTrace(Exception):
    """Says why a program is not a straight line of tensor operations."""


class Recording:
    """Holds what a function does on `args` and on the tensors outside that it reads, as a graph, and those tensors.

    The graph's inputs are the `args` and then the tensors outside. A 0-dim tensor that the function makes of a number
    is that number.
    """

    def __init__(self, function: Callable, args: Sequence[Tensor]) -> None:
        from torch.fx.experimental.symbolic_shapes import ShapeEnv  # half a second of imports

        with config.patch(fake_tensor_allow_unsafe_data_ptr_access=False):
            fake = FakeTensorMode(
                allow_fallback_kernels=True, allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True
            )
        inputs = [fake.from_tensor(arg) for arg in args]
        self._fakes = inputs
        # As they are now; one tensor may stand for two arguments.
        self._copies = {id(fake): _copy(fake).requires_grad_(fake.requires_grad) for fake in inputs}
        self._recorder = _Recorder(fake)
        self.graph, self.outside = self._recorder.graph, self._recorder.outside
        outputs = self._recorder.run(function, inputs)
        for node, number in self._recorder.numbers.items():
            node.args = ([], number)
        self._outputs = outputs
        self.graph.output(outputs)
        self.graph.lint()

    def is_of(self, function: Callable) -> bool:
        """Runs the function once more and returns whether it does the same again, with tensors of the same values."""
        again = _Checker(self._recorder, self._copies)
        try:
            outputs = again.run(function, [self._copies[id(fake)] for fake in self._fakes])
        except _OtherOperation:
            return False
        return again.ends_the_same and _are_same(outputs, self._outputs)


class _Recorder(TorchDispatchMode):
    """Writes each operation within it down as a node of a graph."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.graph = fx.Graph()
        self.outside: list[Tensor] = []
        self.numbers: dict[fx.Node, Any] = {}  # which are at hand when the run is over
        self.nodes: list[tuple[fx.Node, list]] = []  # with what each operation is called with
        self.outcomes: list[tuple[Any, Any]] = []  # of each operation, with None where it must be computed each time
        self._last_input: fx.Node | None = None
        # The tensors are kept, as an address may be used again.
        self._known: dict[int, tuple[fx.Node, Tensor]] = {}
        self._sizes: dict[Any, fx.Node] = {}

    def run(self, function: Callable, inputs: Sequence[Tensor]) -> Any:
        """Returns what the function returns, as nodes."""
        from torch.fx.experimental.proxy_tensor import disable_autocast_cache

        for place, tensor in enumerate(inputs):
            self._know(tensor, self._placeholder(f"input_{place}"))
        with self.fake, self, disable_autocast_cache():
            outputs = function(*inputs)
        with torch._C.DisableTorchFunction():  # these values are the function's own
            self.numbers = {node: tensor.item() for node, tensor in self.numbers.items()}
        return self._argument(outputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.prim.device.default:  # the most frequent of all
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        kwargs = kwargs or {}
        if any(kind not in (FakeTensor, Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # a class of its own says what it does
        if torch.Tag.inplace_view in func.tags:
            # The operation changes the shape of this name of the memory, and in a replay not of the others', which may
            # be a parameter's.
            node = self._call(aten.alias.default, (self._node_of(args[0]),))
            node.meta["val"] = args[0].detach()  # as it was
            self._known[id(args[0])] = node, args[0]
        outcome = self._outcome(func, args, kwargs)
        if func in _ALIASES:
            # Other names for the same memory. Inductor then sees that the two runs of a pair, which path derivatives
            # need, share their work.
            self._know(outcome, self._node_of(args[0]))
        elif func is aten.lift_fresh.default and not isinstance(args[0], FakeTensor):
            self._know(outcome, self._made_by_the_function(args[0]))
        elif func._schema.is_mutable or _has_tensors(outcome):
            node = self._call(func, self._argument(args), self._argument(kwargs))
            if isinstance(outcome, list | tuple):
                for place, part in enumerate(outcome):
                    if isinstance(part, Tensor):
                        self._know(part, self._call(operator.getitem, (node, place)))
            elif isinstance(outcome, Tensor):
                self._know(outcome, node)
        return outcome

    def _outcome(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func is not aten.lift_fresh.default:  # whose outcome knows the number that it is made of
            args = tuple(map(self._faked, args))
        if func._schema.is_mutable:  # which may lay its arguments out anew
            for tensor in (*args, *kwargs.values()):
                self._forget_layout(tensor)
        self.outcomes.append((func, None))  # also of one that fails, as the function may know what to do then
        outcome = func(*args, **kwargs)
        if _is_known_by_its_layout(func, outcome):
            self.outcomes[-1] = func, outcome
        return outcome

    def _forget_layout(self, tensor: object) -> None:
        for place, (func, outcome) in enumerate(self.outcomes):
            if outcome is tensor or (isinstance(outcome, list | tuple) and any(part is tensor for part in outcome)):
                self.outcomes[place] = func, None

    def _faked(self, value: Any) -> Any:
        """Returns the fake of a tensor outside, as torch keeps what it finds out about operations on fakes alone."""
        return self.fake.from_tensor(value) if type(value) in (Tensor, nn.Parameter) else value

    def _placeholder(self, name: str) -> fx.Node:
        with self.graph.inserting_after(self._last_input) if self._last_input else nullcontext():
            self._last_input = self.graph.placeholder(name)
        return self._last_input

    def _call(self, func: Any, args: tuple, kwargs: dict | None = None) -> fx.Node:
        node = self.graph.call_function(func, args, kwargs)
        self.nodes.append((node, [func, args, kwargs]))
        return node

    def _know(self, tensor: Tensor, node: fx.Node) -> None:
        self._known[id(tensor)] = node, tensor
        node.meta.setdefault("val", tensor)
        for dim, size in enumerate(tensor.shape):
            if isinstance(size, torch.SymInt) and size.node.expr not in self._sizes:
                self._sizes[size.node.expr] = self._call(aten.sym_size.int, (node, dim))

    def _node_of(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._known:
            if isinstance(tensor, FakeTensor):
                raise CannotTrace("it keeps a tensor of one run for the next")
            node = self._placeholder(f"outside_{len(self.outside)}")
            self.outside.append(tensor)
            self._know(tensor, node)
        return self._known[id(tensor)][0]

    def _made_by_the_function(self, tensor: Tensor) -> fx.Node:
        if tensor.dim() > 0:
            return self._call(aten.lift_fresh_copy.default, (self._node_of(tensor),))
        settings: dict[str, Any] = {"dtype": tensor.dtype, "device": tensor.device}
        node = self._call(aten.full.default, ([], 0), settings)
        self.numbers[node] = tensor
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
            raise CannotTrace("the value of a tensor is a size or an index")
        combine = operator.mul if expression.is_Mul else operator.add
        parts = map(self._size, expression.args)
        self._sizes[expression] = functools.reduce(lambda a, b: self._call(combine, (a, b)), parts)
        return self._sizes[expression]


class _OtherOperation(Exception):
    """Says that a second run does something else than the first."""


class _Checker(_Recorder):
    """Compares each operation within it with that of a first run, whose fake tensors need not be computed again."""

    def __init__(self, first: _Recorder, copies: dict[int, Tensor]) -> None:
        super().__init__(first.fake)
        self._first, self._copies = first, copies  # the inputs' by the id of the first run's
        self._differs = False
        self._inputs = iter(first.graph.find_nodes(op="placeholder"))
        self._next_node, self._next_outcome = iter(first.nodes), iter(first.outcomes)

    @property
    def ends_the_same(self) -> bool:
        """True if the first run did no more, and held the same values besides its operations."""
        more = (next(rest, None) for rest in (self._inputs, self._next_node, self._next_outcome))
        if (
            self._differs
            or any(found is not None for found in more)
            or not _are_same(self.numbers, self._first.numbers)
        ):
            return False
        with torch._C.DisableTorchFunction():
            return all(a is b or _are_equal(a, b) for a, b in zip(self._first.outside, self.outside, strict=True))

    def _outcome(self, func: Any, args: tuple, kwargs: dict) -> Any:
        first, outcome = next(self._next_outcome, (None, None))
        if func is not first:
            raise self._other_operation()
        if outcome is None:
            return super()._outcome(func, args, kwargs)
        if isinstance(outcome, Tensor):
            return _copy(outcome)
        copies = {id(part): _copy(part) for part in outcome}  # one tensor may be two parts
        return type(outcome)(copies[id(part)] for part in outcome)

    def _faked(self, value: Any) -> Any:
        fake = super()._faked(value)
        return self._copies.get(id(fake), fake)

    def _other_operation(self) -> _OtherOperation:
        self._differs = True  # even if the function catches it
        return _OtherOperation()

    def _placeholder(self, name: str) -> fx.Node:
        node = next(self._inputs, None)
        if node is None:
            raise self._other_operation()
        return node

    def _call(self, func: Any, args: tuple, kwargs: dict | None = None) -> fx.Node:
        node, called = next(self._next_node, (None, None))
        if node is None or not _are_same(called, [func, args, kwargs]):
            raise self._other_operation()
        return node


def _copy(tensor: Any) -> FakeTensor:
    """Returns another fake tensor of the same layout, for a second run."""
    with in_kernel_invocation_manager(tensor.fake_mode):
        layout = tensor.detach()
    return FakeTensor(tensor.fake_mode, layout, tensor.fake_device)


def _is_known_by_its_layout(func: Any, outcome: Any) -> bool:
    """Returns whether an operation makes tensors of which no more than the layout is known.

    It may write into its arguments, or make a constant, whose value a fake tensor knows.
    """
    parts = outcome if type(outcome) in (list, tuple) else (outcome,)
    are_fake = len(parts) > 0 and all(type(part) is FakeTensor and part.constant is None for part in parts)
    return are_fake and not func._schema.is_mutable


def _are_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_are_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_same(value, other[name]) for name, value in one.items())
    return str(one) == str(other) if isinstance(one, float | complex) else one == other  # nan is, and -0 is not 0


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_has_tensors, value)))
