"""A function of tensors as a straight line of tensor operations: traced once, rewritten for speed, compiled, replayed.

`make_fx` works below autograd and below Pyro's handlers, so that it sees what a model, a guide and a gradient do to
tensors and nothing of how they were written. It runs on fake tensors: nothing is computed, no random number drawn, no
buffer moved. Values are not there to be looked at, so control flow on them is refused and not frozen.
"""

import copy
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyro
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pyrovae.common import first_line, generator_states, set_generator_states, warn
from pyrovae.compilation.matmul import rewrite_products

aten = torch.ops.aten


class CannotTrace(Exception):
    """Why a program is no straight line of tensor operations."""


class Graph:
    """`function(*args)`, a tensor or a tuple of tensors and None, for tensors of the shapes and types of `args`.

    Tensors that the function reads from elsewhere (parameters, buffers, a closure's) are `outside`: they are read again
    at every call, so that what is written into them takes effect. Randomness comes from torch's generators in the order
    of the function itself, which with the same state of them draws the same numbers.

    The last `num_moved` of `args` may be written into (a module's buffers).

    `inductor` compiles the graph to machine code; without it, and where there is no C++ compiler, its operations run
    one by one as PyTorch has them, and give the function's own numbers to the bit.
    """

    def __init__(self, function: Callable, args: Sequence[Tensor], inductor: bool = True, num_moved: int = 0) -> None:
        module, self.outside = _trace(function, args)
        self.inductor = inductor
        self._run: Callable = module
        if inductor:
            try:
                self._run = _compile(copy.deepcopy(module), [*args, *self.outside])
                if args[0].is_cuda:
                    self._run = _captured(self._run, args, self.outside, num_moved)
            except Exception as error:  # Inductor has no error of its own: what it lacks may raise anything
                why = "no C++ compiler was found" if not _has_compiler() else first_line(error)
                warn(f"steps are replayed but not compiled to machine code: {why}")
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
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.data_ptr() if tensor.is_cuda else None


def _trace(function: Callable, args: Sequence[Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """The function as operations on `args` and on the tensors outside that it reads.

    Traced twice: what differs (Python's or NumPy's random numbers, a counter) would stand still in a replay.
    """
    traces = []
    for _ in range(2):
        try:
            with pyro.validation_enabled(False), torch.random.fork_rng(_cuda_devices(args)), _NoValues():
                traces.append(make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*args))
        except CannotTrace:
            raise
        except Exception as error:
            what = first_line(error)
            if any(sign in f"{type(error).__name__} {what}" for sign in ("DataDependent", "data-dependent", "u0")):
                what = "it looks at the value of a tensor"
            raise CannotTrace(f"{what}{_where(error)}") from error
    (module, outside), (again, outside_again) = map(_lift, traces)
    if any(isinstance(tensor, FakeTensor) for tensor in (*outside, *outside_again)):
        raise CannotTrace("it keeps a tensor of one run for the next")
    same = module.code == again.code and len(outside) == len(outside_again)
    if not same or not all(a is b or _are_equal(a, b) for a, b in zip(outside, outside_again, strict=True)):
        raise CannotTrace("it does other operations, or holds other constants, each time that it runs")
    return module, outside


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


class _NoValues(TorchFunctionMode):
    """Refuses to look at the value of any tensor: those that are not fake, parameters for one, have some."""

    names = frozenset((
        "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__",
        "is_nonzero", "equal", "allclose",
    ))  # fmt: skip

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        if getattr(func, "__name__", "") in self.names:
            raise CannotTrace(f"it looks at the value of a tensor{_here()}")
        return func(*args, **(kwargs or {}))


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


INDUCTOR = {
    "fallback_random": True,  # PyTorch's own random numbers
    # Else the splines of a flow become one kernel of 30,000 lines, which gcc takes minutes for, and which is slower.
    "realize_opcount_threshold": 16,
}


def _compile(module: fx.GraphModule, args: list[Tensor]) -> Callable:
    """By TorchInductor."""
    with _quiet("torch.utils.cpp_extension"):  # which says where it finds no CUDA
        from torch._inductor import compile as inductor  # seconds of imports

    if args[0].device.type == "cpu":
        rewrite_products(module)
    for node in module.graph.nodes:
        node.meta.clear()  # the trace's fake tensors are not Inductor's
    with torch.no_grad(), warnings.catch_warnings(), _quiet("torch.utils.cpp_extension"):
        warnings.simplefilter("ignore")
        compiled = inductor(module, args, options=INDUCTOR)
    return lambda *args: compiled(*args)


def _captured(run: Callable, args: Sequence[Tensor], outside: list[Tensor], num_moved: int) -> Callable:
    """`run` as one CUDA graph: a launch per call, whatever the number of its kernels."""
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
        for place, value in list(zip(inputs, values, strict=False))[len(inputs) - num_moved :]:
            value.copy_(place)
        return tuple(None if output is None else output.clone() for output in outputs)

    return replay


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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


def _here() -> str:
    """The line, not a library's, that is being run."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return "" if frame is None else f" ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"


def _where(error: Exception) -> str:
    """The last line on the way to the error that is not a library's."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(_LIBRARIES):
            place = f" ({Path(file).name}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


_LIBRARIES = ("<", __file__, *(str(Path(module.__file__).parent) for module in (torch, pyro)))
