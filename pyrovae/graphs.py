"""A function of tensors as a straight line of tensor operations: traced once, rewritten for speed, compiled, replayed.

`make_fx` works below autograd and below Pyro's handlers, so that it sees what a model, a guide and a gradient do to
tensors and nothing of how they were written. It runs on fake tensors: nothing is computed, no random number drawn, no
buffer moved. Values are not there to be looked at, so control flow on them is refused and not frozen.
"""

import copy
import logging
import math
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae.errors import first_line
from pyrovae.rng import generator_states, set_generator_states

aten = torch.ops.aten

# Below these, in multiply-adds, a product costs less as a loop fused with its neighbours than as a call of a library.
SKINNY, SKINNY_WORK = 4, 2**18
ONEDNN_WORK = 4_000_000


class CannotTrace(Exception):
    """Why a program is no straight line of tensor operations."""


class Graph:
    """`function(*args)`, a tensor or a tuple of tensors and None, for tensors of the shapes and types of `args`.

    Tensors that the function reads from elsewhere (parameters, buffers, a closure's) are `outside`: they are read again
    at every call, so that what is written into them takes effect. Randomness comes from torch's generators in the order
    of the function itself, which with the same state of them draws the same numbers.

    `inductor` compiles the graph to machine code; without it, and where there is no C++ compiler, its operations run
    one by one as PyTorch has them, and give the function's own numbers to the bit.
    """

    def __init__(self, function: Callable, args: Sequence[Tensor], inductor: bool = True) -> None:
        module, self.outside = _trace(function, args)
        self.inductor = inductor
        self._run: Callable = module
        if inductor:
            try:
                self._run = _compile(copy.deepcopy(module), [*args, *self.outside])
                if args[0].is_cuda:
                    self._run = _captured(self._run, args, self.outside)
            except Exception as error:  # Inductor has no error of its own: what it lacks may raise anything
                why = "no C++ compiler was found" if not _has_compiler() else first_line(error)
                warnings.warn(f"steps are replayed but not compiled to machine code: {why}", stacklevel=2)
                self.inductor = False
        self._layout = [_layout(tensor) for tensor in self.outside]

    @torch.no_grad()
    def __call__(self, *args: Tensor) -> tuple[Tensor | None, ...]:
        return self._run(*args, *self.outside)

    def fits(self) -> bool:
        """Whether the tensors outside are still laid out as the graph has them."""
        return all(_layout(tensor) == known for tensor, known in zip(self.outside, self._layout, strict=True))


def _layout(tensor: Tensor) -> tuple:
    # A CUDA graph reads the memory that it was made with.
    return tensor.dtype, tensor.device, tensor.shape, tensor.data_ptr() if tensor.is_cuda else None


def checked_graph(
    function: Callable, args: Sequence[Tensor], eager: Callable[[], tuple], inductor: bool = True
) -> tuple[tuple[Tensor | None, ...], Graph | None, str | None]:
    """What `eager()` gives, and the graph of `function(*args)`, the same program: `(outcome, graph, None)`.

    The graph has given the same outcome on the same random numbers, to rounding: the first tensor in norm, the others
    (gradients, of which many may be 0 but for rounding) in norm together. Where it has not, or the function cannot be
    traced: `(outcome, None, why)`. Generators, and buffers that the program moves, are left as `eager` leaves them.
    """
    start = generator_states()
    expected = eager()
    end = generator_states()
    try:
        graph = Graph(function, args, inductor)
    except CannotTrace as error:
        return expected, None, str(error)
    kept = [tensor.detach().clone() for tensor in graph.outside]
    set_generator_states(start)
    replayed = graph(*args)
    same_draws = all(torch.equal(a, b) for a, b in zip(generator_states(), end, strict=True))
    set_generator_states(end)
    with torch.no_grad():
        for tensor, value in zip(graph.outside, kept, strict=True):
            if not torch.equal(tensor, value):
                tensor.copy_(value)
    why = _difference(expected, replayed) if same_draws else "it draws other random numbers when it is replayed"
    return expected, None if why else graph, why


def _difference(expected: tuple[Tensor | None, ...], replayed: tuple[Tensor | None, ...]) -> str | None:
    """What differs beyond rounding, in words."""
    if [a is None for a in expected] != [b is None for b in replayed]:
        return "it gives gradients to other parameters when it is replayed"
    tolerance = 1e-3 if expected[0].dtype is torch.float32 else 1e-8
    size, off = _norms(expected[:1], replayed[:1])
    if not math.isfinite(size):
        return None  # the eager run itself went wrong, and the caller will say so
    if not off <= tolerance * (1 + size):
        return f"its value is off by {off:.3g} of {size:.3g} when it is replayed"
    norm, off = _norms(expected[1:], replayed[1:])
    if not off <= tolerance * (norm + 1e-3 * size):
        return f"its gradient is off by {off:.3g} of {norm:.3g} when it is replayed"
    return None


def _norms(expected: tuple[Tensor | None, ...], replayed: tuple[Tensor | None, ...]) -> tuple[float, float]:
    """The norm of all that was expected, and of its distance to what came."""
    pairs = [(a.double(), b.double()) for a, b in zip(expected, replayed, strict=True) if a is not None]
    norm = math.sqrt(sum(a.square().sum().item() for a, _ in pairs))
    return norm, math.sqrt(sum((a - b).square().sum().item() for a, b in pairs))


def _trace(function: Callable, args: Sequence[Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """The function as operations on `args` and on the tensors outside that it reads.

    Traced twice: what differs (Python's or NumPy's random numbers, a counter) would stand still in a replay.
    """
    traces = []
    for _ in range(2):
        try:
            with pyro.validation_enabled(False), torch.random.fork_rng(_cuda_devices(args)):
                traces.append(make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*args))
        except Exception as error:
            raise CannotTrace(f"{first_line(error)}{_where(error)}") from error
    (module, outside), (again, outside_again) = map(_lift, traces)
    same = module.code == again.code and len(outside) == len(outside_again)
    if not same or not all(a is b or torch.equal(a, b) for a, b in zip(outside, outside_again, strict=True)):
        raise CannotTrace("it does other operations, or holds other constants, each time that it runs")
    return module, outside


def _lift(module: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Tensors that the trace holds become inputs after its own, each once; 0-dim constants become numbers."""
    graph, lifted = module.graph, {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = getattr(module, node.target)
            made_here = all(user.target is aten.lift_fresh_copy.default for user in node.users)
            if made_here and value.dim() == 0:
                settings = {"dtype": value.dtype, "device": value.device}
                for user in list(node.users):
                    with graph.inserting_before(user):
                        user.replace_all_uses_with(graph.call_function(aten.full.default, ([], value.item()), settings))
                    graph.erase_node(user)
            else:
                if id(value) not in lifted:
                    with graph.inserting_after(last):
                        last = graph.placeholder(f"outside_{len(lifted)}")
                    last.meta["val"] = value
                    lifted[id(value)] = last, value
                node.replace_all_uses_with(lifted[id(value)][0])
            graph.erase_node(node)
        elif node.target in (aten.alias.default, aten.detach.default):
            # The same memory under another name. Without it the two runs of a pair that path derivatives need are seen
            # to share their work.
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.lint()
    clean = fx.GraphModule({}, graph)
    return clean, [value for _, value in lifted.values()]


# To machine code -----------------------------------------------------------------------------------------------------


def _compile(module: fx.GraphModule, args: list[Tensor]) -> Callable:
    """By TorchInductor, its random numbers PyTorch's own."""
    with _quiet("torch.utils.cpp_extension"):  # which says where it finds no CUDA
        from torch._inductor import compile as inductor  # seconds of imports

    if args[0].device.type == "cpu":
        _rewrite_products(module, args)
    for node in module.graph.nodes:
        node.meta.clear()  # the trace's fake tensors are not Inductor's
    with torch.no_grad(), warnings.catch_warnings(), _quiet("torch.utils.cpp_extension"):
        warnings.simplefilter("ignore")
        compiled = inductor(module, args, options={"fallback_random": True})
    return lambda *args: compiled(*args)


def _captured(run: Callable, args: Sequence[Tensor], outside: list[Tensor]) -> Callable:
    """`run` as one CUDA graph: a launch per call, whatever the number of its kernels; what it returns is overwritten by
    the next call. Where the graph draws other numbers than `run` from the same generators, `checked_graph` says so."""
    inputs, states = [arg.clone() for arg in args], generator_states()
    kept = [tensor.detach().clone() for tensor in outside]  # warming up moves buffers
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(side):
            for _ in range(3):
                run(*inputs, *outside)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run(*inputs, *outside)
        for tensor, value in zip(outside, kept, strict=True):
            tensor.copy_(value)
    set_generator_states(states)

    def replay(*values: Tensor) -> tuple[Tensor | None, ...]:
        for place, value in zip(inputs, values, strict=False):  # those outside stay where they are
            place.copy_(value)
        graph.replay()
        return outputs

    return replay


def _rewrite_products(module: fx.GraphModule, args: list[Tensor]) -> None:
    """Matrix products as is fastest on a CPU (see docs/performance.md): a bias apart, where it is fused with what comes
    next; thin ones as loops, which are fused too; large ones of a row-major left factor by oneDNN in strict float32."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is aten.addmm.default and not node.kwargs:
            bias, left, right = node.args
            with graph.inserting_before(node):
                product = graph.call_function(aten.mm.default, (left, right))
                total = graph.call_function(aten.add.Tensor, (product, bias))
            product.meta["val"] = total.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(total)
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target is aten.mm.default:
            left, right = (factor.meta["val"] for factor in node.args)
            (rows, inner), columns = left.shape, right.shape[1]
            work = rows * inner * columns
            with graph.inserting_before(node):
                if min(rows, inner, columns) <= SKINNY and work <= SKINNY_WORK:
                    new = _as_loop(graph, *node.args, rows, inner, columns)
                elif work >= ONEDNN_WORK and left.is_contiguous() and left.dtype is torch.float32 and _has_onednn():
                    new = graph.call_function(torch.ops.pyrovae.matmul.default, node.args)
                else:
                    continue
            new.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.lint()
    module.recompile()


def _as_loop(graph: fx.Graph, left: fx.Node, right: fx.Node, rows: int, inner: int, columns: int) -> fx.Node:
    """The product as multiplications and a sum, over the dimension that keeps the long one innermost."""

    def call(target: Callable, *args: object) -> fx.Node:
        return graph.call_function(target, args)

    if inner <= min(rows, columns):
        total = None
        for k in range(inner):
            column = call(aten.unsqueeze.default, call(aten.select.int, left, 1, k), 1)
            term = call(aten.mul.Tensor, column, call(aten.unsqueeze.default, call(aten.select.int, right, 0, k), 0))
            total = term if total is None else call(aten.add.Tensor, total, term)
        return total
    if columns <= rows:
        transposed = call(aten.unsqueeze.default, call(aten.t.default, right), 0)
        return call(aten.sum.dim_IntList, call(aten.mul.Tensor, call(aten.unsqueeze.default, left, 1), transposed), [2])
    terms = call(aten.mul.Tensor, call(aten.unsqueeze.default, left, 2), call(aten.unsqueeze.default, right, 0))
    return call(aten.sum.dim_IntList, terms, [1])


_library = torch.library.Library("pyrovae", "DEF")
_library.define("matmul(Tensor left, Tensor right) -> Tensor")
_library.impl(
    "matmul",
    lambda left, right: torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], ""),
    "CPU",
)
_library.impl("matmul", lambda left, right: left.new_empty(left.shape[0], right.shape[1]), "Meta")


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        subprocess.run([get_cpp_compiler(), "--version"], check=True, capture_output=True)
    except Exception:  # Inductor's own error where none is found; a compiler that does not start
        return False
    return True


# Errors --------------------------------------------------------------------------------------------------------------


def _cuda_devices(args: Sequence[Tensor]) -> list[torch.device]:
    return list({arg.device for arg in args if arg.device.type == "cuda"})


def _where(error: Exception) -> str:
    """The last line of the user's own code on the way to the error."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not any(part in file for part in ("/torch/", "/pyro/", "/pyrovae/pyrovae/", "<")):
            place = f" ({file.rsplit('/', 1)[-1]}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place
