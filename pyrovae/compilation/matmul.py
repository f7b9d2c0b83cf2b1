"""Rewrites the matrix products of a graph as they are fastest on a CPU (measured in docs/performance.md)."""

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from pyrovae.common import read_text

aten = torch.ops.aten
_ROW_MAJOR: dict[str, Argument] = {"memory_format": torch.contiguous_format}
_VIEWS = (aten.t.default, aten.view.default, aten._unsafe_view.default)

# A product with a dimension of at most MAX_LOOP_DIM, and of at most MAX_LOOP_WORK multiply-adds, costs less as a loop
# that is fused with its neighbours than as a call of a library. From MIN_ONEDNN_WORK multiply-adds oneDNN is faster
# than PyTorch's own choice: on AMD's processors, for which MKL has no code of its own, it takes half the time. On
# others (Intel's were measured) it gains a little, and not where it must copy the left factor.
MAX_LOOP_DIM, MAX_LOOP_WORK = 4, 2**18
MIN_ONEDNN_WORK = {"AMD": 1_500_000, "other": 4_000_000}


def rewrite_products(module: fx.GraphModule) -> None:
    """Rewrites the matrix products of `module` in place.

    - Where a product is multiplied by a number, its smaller factor is, which saves a pass through the product.
    - A bias is added apart from the product, so that the addition is fused with what comes next.
    - A thin product becomes a loop, which is fused, too.
    - A large product is computed by oneDNN, in strict float32, where that is faster.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is aten.mul.Tensor and isinstance(node.args[1], float):
            _scale_a_factor(graph, node)
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
                if 0 < min(rows, inner, columns) <= MAX_LOOP_DIM and work <= MAX_LOOP_WORK:
                    one, other = node.args
                    new = _as_loop(graph, one, other, rows, inner, columns)
                elif left.dtype is torch.float32 and _is_for_onednn(left, work):
                    new = _by_onednn(graph, *node.args)
                else:
                    continue
                if new.target is aten.t.default:  # whoever reads a product relies on the order of its memory
                    new = graph.call_function(aten.clone.default, (new,), _ROW_MAJOR)
            new.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.lint()
    module.recompile()


def _scale_a_factor(graph: fx.Graph, scaled: fx.Node) -> None:
    """Multiplies the smaller factor of a product by the number that the product, or a view of it, is multiplied by.

    That is how the gradients of a layer are divided by the number of data: the factor is computed anyway.
    """
    viewed, number = cast(tuple[fx.Node, float], scaled.args)
    product = viewed
    while product.target in _VIEWS and len(product.users) == 1:
        product = cast(fx.Node, product.args[0])
    if product.target is not aten.mm.default or len(product.users) != 1:
        return
    value = product.meta["val"]
    place = min((0, 1), key=lambda place: cast(fx.Node, product.args[place]).meta["val"].numel())
    factor = cast(fx.Node, product.args[place])
    keeps_digits = value.dtype in (torch.float32, torch.float64) and 0 < abs(number) <= 1  # no overflow is made or lost
    if keeps_digits and factor.meta["val"].numel() < value.numel():
        with graph.inserting_before(product):
            new = graph.call_function(aten.mul.Tensor, (factor, number))
        new.meta["val"] = factor.meta["val"]
        product.update_arg(place, new)
        scaled.replace_all_uses_with(viewed)
        graph.erase_node(scaled)


def _as_loop(graph: fx.Graph, left: fx.Node, right: fx.Node, rows: int, inner: int, columns: int) -> fx.Node:
    """Returns the product as multiplications and a sum, with a long and contiguous dimension innermost."""

    def call(target: Callable, *args: Argument) -> fx.Node:
        return graph.call_function(target, args)

    def turned(factor: fx.Node) -> fx.Node:
        new = call(aten.t.default, factor)
        if "val" in factor.meta:
            new.meta["val"] = factor.meta["val"].t()
        return new

    if rows < columns and rows <= inner:  # the transposed product has few columns
        return turned(_as_loop(graph, turned(right), turned(left), columns, inner, rows))
    left_strides, right_strides = left.meta["val"].stride(), right.meta["val"].stride()
    if inner <= min(rows, columns):
        if right_strides[1] != 1:
            right = _row_major(graph, right, (inner, columns))
        total: fx.Node | None = None
        for k in range(inner):
            column = call(aten.unsqueeze.default, call(aten.select.int, left, 1, k), 1)
            term = call(aten.mul.Tensor, column, call(aten.unsqueeze.default, call(aten.select.int, right, 0, k), 0))
            total = term if total is None else call(aten.add.Tensor, total, term)
        assert total is not None  # a product of no terms is not made a loop
        return total
    few = turned(right)
    if left_strides[0] == 1 != left_strides[1]:  # each column's sum adds up whole columns of the left factor
        terms = call(
            aten.mul.Tensor, call(aten.unsqueeze.default, turned(left), 0), call(aten.unsqueeze.default, few, 2)
        )
        return turned(call(aten.sum.dim_IntList, terms, [1]))
    if right_strides[0] != 1:
        few = _row_major(graph, few, (columns, inner))
    terms = call(aten.mul.Tensor, call(aten.unsqueeze.default, left, 1), call(aten.unsqueeze.default, few, 0))
    return call(aten.sum.dim_IntList, terms, [2])


def _row_major(graph: fx.Graph, factor: fx.Node, size: tuple[int, int]) -> fx.Node:
    """Returns the factor in row-major order, in memory of its own, which `as_strided` makes Inductor write."""
    clone = graph.call_function(aten.clone.default, (factor,), _ROW_MAJOR)
    return graph.call_function(aten.as_strided.default, (clone, list(size), [size[1], 1]))


def _by_onednn(graph: fx.Graph, left: fx.Node, right: fx.Node) -> fx.Node:
    """Returns the product as a call of oneDNN, transposed where that means fewer elements to copy.

    oneDNN needs a row-major copy of a left factor that is column-major, which Inductor makes as it computes the factor;
    a transposed product needs one of its right factor and one of the result.
    """
    matmul, turn = torch.ops.pyrovae.matmul.default, aten.t.default
    (rows, inner), columns = left.meta["val"].shape, right.meta["val"].shape[1]
    if not left.meta["val"].is_contiguous() and (inner + rows) * columns < rows * inner:
        first = _row_major(graph, graph.call_function(turn, (right,)), (columns, inner))
        return graph.call_function(turn, (graph.call_function(matmul, (first, graph.call_function(turn, (left,)))),))
    if not left.meta["val"].is_contiguous():
        left = _row_major(graph, left, (rows, inner))
    return graph.call_function(matmul, (left, right))


_library = torch.library.Library("pyrovae", "DEF")
_library.define("matmul(Tensor left, Tensor right) -> Tensor")
_library.impl(
    "matmul",
    lambda left, right: torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], ""),
    "CPU",
)
_library.impl("matmul", lambda left, right: left.new_empty(left.shape[0], right.shape[1]), "Meta")


def _is_for_onednn(left: Tensor, work: int) -> bool:
    """Returns whether oneDNN is there and is the faster one for a product of so much work."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    if _is_amd():
        return work >= MIN_ONEDNN_WORK["AMD"]
    return work >= MIN_ONEDNN_WORK["other"] and left.is_contiguous()


@functools.cache
def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in read_text(Path("/proc/cpuinfo"))
    except OSError:  # not Linux
        return "AMD" in platform.processor()
