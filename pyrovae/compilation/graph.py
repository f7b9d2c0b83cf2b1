"""A function of tensors that is traced once, compiled to machine code and replayed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx
from torch._C._dynamo.guards import TensorGuards

from pyrovae.common import first_line, warn
from pyrovae.compilation.machine_code import capture_cuda_graph, compile_graph, cpp_compiler
from pyrovae.compilation.tracing import trace


class Graph:
    """Replays a function for tensors of the shapes and dtypes that it was traced with.

    The tensors that the function reads from elsewhere (parameters, buffers, those of a closure) are called `outside`.
    They are read again at every call, so that what is written into them takes effect. Random numbers come from torch's
    generators in the function's own order: from the same states, the graph and the function draw the same numbers.
    Results have the memory layout of the trace, whatever layout the kernels choose. The function may have chosen it: a
    fused optimiser goes through a parameter and its gradient in the order of their memory.

    Args:
        function: Takes tensors and returns a tensor, or a tuple of tensors and None.
        args: The tensors to trace it with.
        inductor: Whether the graph is compiled to machine code. If not, or if there is no C++ compiler, PyTorch runs
            its operations one by one, and the results are the function's own to the bit.
        num_moved: The number of `args`, counted from the last, that the function may write into (a module's buffers).

    Raises:
        CannotTrace: If the function is not a straight line of tensor operations.
    """

    def __init__(self, function: Callable, args: Sequence[Tensor], inductor: bool = True, num_moved: int = 0) -> None:
        module, self.outside = trace(function, args)
        self._strides = _strides_of_results(module)
        self.inductor = inductor
        self._run: Callable = module
        if inductor:
            try:
                self._run = compile_graph(module, [*args, *self.outside])
                # A number on the CPU is a constant of a CUDA graph, which would keep it.
                if all(tensor.is_cuda for tensor in (*args, *self.outside)):
                    self._run = capture_cuda_graph(self._run, args, self.outside, num_moved)
            except Exception as error:  # Inductor has no error class of its own, and what it lacks may raise anything
                why = "no C++ compiler was found" if cpp_compiler() is None else first_line(error)
                warn(f"steps are replayed but not compiled to machine code: {why}")
                self.inductor = False
        watched = [*self.outside, *args[len(args) - num_moved :]]
        self._layout, self._guards = _layouts(watched), _guards_of(watched)

    @torch.no_grad()
    def __call__(self, *args: Tensor) -> tuple[Tensor | None, ...]:
        found = self._run(*args, *self.outside)
        # Looked at each time: which kernel runs may change with a flag of torch, the number of threads, a fallback.
        otherwise = [place for place, strides in self._strides if found[place].stride() != strides]
        if not otherwise:
            return found
        results, wanted = list(found), dict(self._strides)
        for place in otherwise:
            results[place] = found[place].new_empty_strided(found[place].shape, wanted[place]).copy_(found[place])
        return tuple(results)

    def fits(self, moved: Sequence[Tensor] = ()) -> bool:
        """Returns whether the tensors outside, and the last `num_moved` arguments, have the layout of the trace."""
        watched = [*self.outside, *moved]
        if self._guards is not None and self._guards.check(*watched):
            return True
        fits = _layouts(watched) == self._layout
        if fits and self._guards is not None:  # torch's guards also look at the mode that torch is in
            self._guards = _guards_of(watched)
        return fits


def _strides_of_results(module: fx.GraphModule) -> list[tuple[int, tuple[int, ...]]]:
    """Returns the place of each result that is a tensor, and its strides in the trace. A single result has no place.

    An expanded result, which holds one number in several places, is left out: nothing can be written into it.
    """
    (results,) = next(node for node in module.graph.nodes if node.op == "output").args
    several = results if isinstance(results, tuple | list) else ()
    values = [result.meta.get("val") if isinstance(result, fx.Node) else None for result in several]
    return [
        (place, value.stride())
        for place, value in enumerate(values)
        if isinstance(value, Tensor)
        and value.layout == torch.strided
        and all(type(step) is int and step > 0 for step in value.stride())
    ]


def _guards_of(tensors: Sequence[Tensor]) -> TensorGuards | None:
    """Returns what compares `_layouts` in one call, as that is done at every step; None on a GPU."""
    are_distinct = len(set(map(id, tensors))) == len(tensors) > 0  # torch's guards refuse one tensor in two places
    is_possible = are_distinct and all(tensor.is_cpu for tensor in tensors)
    return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None) if is_possible else None


def _layouts(tensors: Sequence[Tensor]) -> tuple[list, ...]:
    # A CUDA graph reads the very memory that it was made with, so on a GPU the address counts, too.
    kinds = [(tensor.dtype, tensor.device, tensor.data_ptr() if tensor.is_cuda else None) for tensor in tensors]
    return kinds, list(map(Tensor.size, tensors)), list(map(Tensor.stride, tensors))
