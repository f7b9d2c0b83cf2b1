"""Matrix products that are rewritten for the CPU are as right as PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from pyrovae.compilation import matmul
from pyrovae.compilation.graph import Graph
from pyrovae.compilation.matmul import rewrite_products

# Rows, inner dimension and columns of each product. Together they reach a loop, oneDNN, and neither.
PRODUCTS = {
    "inner 1": (6, 1, 7),
    "inner 3": (40, 3, 25),
    "columns 2": (30, 50, 2),
    "column and row 1": (1, 50, 1),
    "rows 3": (3, 50, 40),
    "square": (20, 30, 25),
    "thin but large": (4, 400, 300),
    "large": (130, 160, 200),
    "large and tall": (600, 300, 30),
}
WITH_BIAS = ("inner 3", "square", "large")  # a loop, neither, and oneDNN


def turned(factor):
    """Returns the factor, column-major in memory."""
    return factor.t().contiguous().t()


@pytest.mark.parametrize("amd", [True, False])
def test_products_rewritten_for_the_cpu_are_right_to_float32(monkeypatch, amd):
    """One compilation has products of all shapes, with and without a bias, and of factors in every layout.

    Away from AMD only products of column-major factors are others.
    """
    monkeypatch.setattr(matmul, "_is_amd", lambda: amd)
    factors = {name: (torch.randn(r, i), torch.randn(i, c), torch.randn(c)) for name, (r, i, c) in PRODUCTS.items()}
    pairs = [(left, right) for left, right, _ in factors.values()]
    with_bias = WITH_BIAS if amd else ()
    names = [*with_bias, *PRODUCTS, *PRODUCTS] if amd else list(PRODUCTS)
    of_turned = [(turned(left), right) for left, right in pairs]

    def function(x):
        biased = [F.linear(left * x, right.t(), bias) for left, right, bias in map(factors.get, with_bias)]
        return (*biased, *((left * x) @ right for left, right in ((*pairs, *of_turned) if amd else of_turned)))

    one = torch.ones(())
    graph = Graph(function, [one])
    assert graph.inductor
    for number, (ours, torchs) in enumerate(zip(graph(one), function(one), strict=True)):
        assert ours.stride() == torchs.stride()  # a fused optimiser goes through gradients in the order of their memory
        left, right, bias = (factor.double() for factor in factors[names[number]])
        truth = left @ right + (bias if number < len(with_bias) else 0)
        size = (left.abs() @ right.abs()).norm()
        error, expected = ((result - truth).norm() / size for result in (ours, torchs))
        assert error <= 2 * expected + 1e-7, f"{names[number]}, {number}: {error:.3g} against torch's {expected:.3g}"


@pytest.mark.parametrize("amd", [True, False])
def test_the_sizes_tested_reach_every_way_of_a_product(monkeypatch, amd):
    """Some of the products above become loops, some calls of oneDNN, and some stay as they are."""
    monkeypatch.setattr(matmul, "_is_amd", lambda: amd)
    has_onednn = matmul._is_for_onednn(torch.randn(9, 9), 10**9)
    found = {}
    for name, (rows, inner, columns) in PRODUCTS.items():
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        graph = Graph(lambda a, b: (a @ b,), [left, right], inductor=False)
        module = graph._run
        rewrite_products(module)
        targets = {str(node.target) for node in module.graph.nodes if node.op == "call_function"}
        found[name] = (
            "mm" if "aten.mm.default" in targets else "onednn" if any("pyrovae" in t for t in targets) else "loop"
        )
        torch.testing.assert_close(module(left, right)[0], left @ right, rtol=1e-4, atol=1e-4)
    assert set(found.values()) == ({"mm", "loop", "onednn"} if has_onednn else {"mm", "loop"})
    assert found["thin but large"] == "mm"
    assert found["large"] == ("onednn" if has_onednn else "mm")
    left = turned(torch.randn(600, 300))
    graph = Graph(lambda a, b: (a @ b,), [left, torch.randn(300, 30)], inductor=False)
    rewrite_products(graph._run)
    by_onednn = any("pyrovae" in str(node.target) for node in graph._run.graph.nodes)
    assert by_onednn == (has_onednn and amd)  # on others the copy does not pay


def test_a_product_divided_by_a_number_has_its_smaller_factor_divided():
    """That is a gradient per datum. What would overflow, has other users or is smaller than its factors stays."""
    data, deltas = torch.randn(30, 200), torch.randn(30, 300)

    def function(x, delta):
        shared = delta.t() @ x
        weight_gradient = (delta.t() @ x).t() * (1 / 30)
        return weight_gradient, (x @ x.t()) * 0.5, (x.t() @ delta) * 2.0, shared * 0.5, shared

    module = Graph(function, [data, deltas], inductor=False)._run
    rewrite_products(module)
    scaled = [tuple(n.meta["val"].shape) for n in module.graph.nodes if n.target is torch.ops.aten.mul.Tensor]
    assert sorted(scaled) == [(30, 30), (30, 200), (200, 300), (300, 200)]
    for ours, torchs in zip(module(data, deltas), function(data, deltas), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)
        assert ours.stride() == torchs.stride()
