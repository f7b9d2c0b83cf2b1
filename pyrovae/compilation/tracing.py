"""Traces a function of tensors into a straight line of tensor operations.

The function runs on fake tensors, which have no values to look at: control flow on values is refused and not frozen.
"""

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import pyro
import torch
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from pyrovae.common import first_line
from pyrovae.compilation.recording import CannotTrace, Recording

LOOKS = "it looks at the value of a tensor"


def trace(function: Callable, args: Sequence[Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """Returns the function as operations on `args` and on the tensors outside that it reads, and those tensors.

    The function runs twice. What differs between the runs (Python's or NumPy's random numbers, a counter) would stand
    still in a replay, and is refused.

    Raises `CannotTrace` if the function is not a straight line of tensor operations.
    """
    try:
        with _without_values(), torch.random.fork_rng(_cuda_devices(args)):
            found = Recording(function, args)
            is_same = found.is_of(function)
    except CannotTrace:
        raise
    except Exception as error:
        what = first_line(error)
        if any(sign in f"{type(error).__name__} {what}" for sign in ("DataDependent", "data-dependent", "u0")):
            what = LOOKS
        raise CannotTrace(f"{what}{_line_of(error)}") from error
    if not is_same:
        raise CannotTrace("it does other operations, or holds other constants, each time that it runs")
    return fx.GraphModule({}, found.graph), found.outside


@contextmanager
def _without_values() -> Iterator[None]:
    """Within the block Pyro asks for no value: it checks none, and it counts through a plate that is a loop."""
    sample = _Subsample.sample
    indices: Any = IndepMessenger.indices

    def marked(fn: _Subsample, *args: Any, **kwargs: Any) -> Any:
        found: Any = sample(fn, *args, **kwargs)
        found._is_whole = fn.subsample_size is None or fn.subsample_size >= fn.size
        return found

    def counted(plate: Any) -> Any:
        found = indices.fget(plate)
        return range(plate.size) if plate._vectorized is False and getattr(found, "_is_whole", False) else found

    asked: dict[str, Any] = {name: lambda value: False for name in ("torch_isnan", "torch_isinf")}  # by `warn_if_nan`
    loops = patch.object(_Subsample, "sample", marked), patch.object(IndepMessenger, "indices", property(counted))
    with pyro.validation_enabled(False), patch.multiple(pyro.util, **asked), loops[0], loops[1], _NoValues():
        yield


@contextmanager
def _without_whole_layers() -> Iterator[None]:
    """Within the block an LSTM is the operations that it consists of.

    That of oneDNN is a single one, which keeps for its gradient what it needs only where autograd runs it. Run
    nothing else in the block: the gradient of a convolution, say, is laid out otherwise in it than in a replay.
    """
    is_enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(is_enabled)


class _NoValues(TorchFunctionMode):
    """Refuses to look at the value of any tensor. Tensors that are not fake, such as parameters, do have values."""

    names = frozenset((
        "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__",
        "is_nonzero", "equal", "allclose",
    ))  # fmt: skip

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> object:
        if getattr(func, "__name__", "") in self.names:
            if func is Tensor.__bool__ and _is_check(caller()):
                return True
            raise CannotTrace(f"{LOOKS}{line_being_run()}")
        with _without_whole_layers() if func is torch.lstm else nullcontext():
            return func(*args, **(kwargs or {}))


def caller() -> FrameType:
    """Returns the frame that called a function of torch, as seen from a `__torch_function__`."""
    frame = sys._getframe(1)
    while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_check(frame: FrameType) -> bool:
    """Returns True if a frame asks in a check that an eager run has passed: an `assert`, or a distribution's own."""
    if frame.f_code is _VALIDATES:
        return True
    return frame.f_lineno in _lines_of_asserts(frame.f_code)


@functools.lru_cache(maxsize=100)
def _lines_of_asserts(code: CodeType) -> frozenset[int]:
    try:
        lines, first = inspect.getsourcelines(code)
    except OSError:
        return frozenset()
    asserts = [node for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))) if isinstance(node, ast.Assert)]
    ranges = (range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in asserts)
    return frozenset(line + max(first, 1) - 1 for numbers in ranges for line in numbers)


# Errors ---------------------------------------------------------------------------------------------------------------


def _cuda_devices(args: Sequence[Tensor]) -> list[torch.device]:
    return list({arg.device for arg in args if arg.device.type == "cuda"})


def line_being_run() -> str:
    """Returns the line of the user's code that is being run, in brackets."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return "" if frame is None else f" ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"


def _line_of(error: Exception) -> str:
    """Returns the last line of the user's code on the way to the error, in brackets."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith(_LIBRARIES):
            place = f" ({Path(file).name}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


_VALIDATES = torch.distributions.distribution._all_true_or_runtime_assert.__code__
_LIBRARIES = (
    "<",
    __file__,
    *(str(Path(module.__path__[0])) for module in (torch, pyro)),
    str(Path(__file__).parents[1] / "training"),
)
