"""Rewrites draws into new memory, so that machine code fills it in the order in which PyTorch's own kernels do.

A dropout draws into a tensor that is laid out as its argument is, say with two dimensions changed places after an
attention. Inductor takes contiguous memory in its stead: as many numbers are drawn, and they fall on other elements.
"""

import functools
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_DRAWS = (aten.bernoulli_.float, aten.uniform_.default, aten.exponential_.default)
_NEW = (aten.empty_like.default, aten.empty.memory_format, aten.empty_strided.default)


def rewrite_draws(module: fx.GraphModule) -> None:
    """Draws into contiguous memory, and then lays the numbers out as they were."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _DRAWS or node.args[0].target not in _NEW:
            continue
        if node.kwargs or any(isinstance(setting, fx.Node) for setting in node.args[1:]):
            continue
        new, value = node.args[0], node.args[0].meta["val"]
        places = sorted(range(value.dim()), key=lambda dim: -value.stride(dim))
        if value.is_contiguous() or not value.permute(places).is_contiguous():
            continue
        order = _order_of(node.target, node.args[1:])
        if order is None:
            continue
        if order == "index":
            places.sort()
        with graph.inserting_before(node):
            sizes = [value.shape[dim] for dim in places]
            memory = graph.call_function(
                aten.empty.memory_format, (sizes,), {"dtype": value.dtype, "device": value.device}
            )
            drawn = graph.call_function(node.target, (memory, *node.args[1:]), node.kwargs)
            laid_out = graph.call_function(
                aten.permute.default, (drawn, [places.index(dim) for dim in range(len(places))])
            )
        for old in (node, new):
            old.replace_all_uses_with(laid_out)
            graph.erase_node(old)
    graph.lint()
    module.recompile()


@functools.cache
def _order_of(draw: Any, settings: tuple) -> str | None:
    """Returns whether a draw into memory that is not contiguous goes by "memory" or by "index", or None if by neither.

    That depends on the processor: where MKL draws, it is by index.
    """
    generator = torch.Generator()

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        return draw(tensor, *settings, generator=generator.manual_seed(0))

    with torch.no_grad():
        found = drawn(torch.empty(7, 5).t())
        if torch.equal(found, drawn(torch.empty(7, 5)).t()):
            return "memory"
        return "index" if torch.equal(found, drawn(torch.empty(5, 7))) else None
