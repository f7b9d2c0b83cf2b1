"""Norms that are rewritten for the CPU are as right as PyTorch's own, and see what is not finite."""

import math

import torch
from torch import nn

from pyrovae.compilation.graph import Graph
from pyrovae.compilation.norms import rewrite_norms

VALUES = {
    "wide": torch.randn(300, 200),
    "column-major": torch.randn(200, 300).t(),
    "filters": torch.randn(16, 4, 8, 64),
    "small": torch.randn(20, 70),
    "vector": torch.randn(50_000),
    "thin": torch.randn(50_000, 2),
}


def norms(*values):
    return (*(value.norm() for value in values), nn.utils.get_total_norm(list(values)))


def test_norms_are_right_to_float32_and_see_one_number_that_is_not_finite():
    values = [VALUES[name].clone() for name in ("wide", "column-major", "vector")]
    graph = Graph(norms, values)
    assert graph.inductor
    for ours, truth in zip(graph(*values), norms(*(value.double() for value in values)), strict=True):
        torch.testing.assert_close(ours, truth.float(), rtol=1e-6, atol=0)
    for bad in (math.nan, math.inf, -math.inf):
        values[0][123, 45] = bad
        one, *others, total = graph(*values)
        assert not any(norm.isfinite() for norm in (one, total))
        assert all(norm.isfinite() for norm in others)


def test_the_norm_of_a_large_matrix_of_halves_does_not_overflow():
    value = torch.full((300, 200), 40.0, dtype=torch.float16)
    graph = Graph(lambda x: (x.norm(),), [value])
    assert graph.inductor
    torch.testing.assert_close(graph(value)[0], value.float().norm().half())


def test_only_large_matrices_are_rewritten():
    rewritten = {}
    for name, value in VALUES.items():
        module = Graph(lambda x: (x.norm(),), [value], inductor=False)._run
        rewrite_norms(module)
        rewritten[name] = all("vector_norm" not in str(node.target) for node in module.graph.nodes)
        torch.testing.assert_close(module(value)[0], value.double().norm().float(), rtol=1e-4, atol=0)  # torch's is so
    assert {name for name, is_so in rewritten.items() if is_so} == {"wide", "column-major", "filters"}
