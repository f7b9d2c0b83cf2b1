"""Sums in log space, against numbers that are known."""

import math

import pytest
import torch
from pyro.ops.einsum.torch_log import einsum
from torch import Tensor

from pyrovae.programs import log_sums
from pyrovae.programs.log_sums import ExactLogRing, log_sum_exp


def named(values: Tensor, dims: str) -> Tensor:
    values = values[...]
    values._pyro_dims = dims
    return values


def opposed(depth: float) -> Tensor:
    """Returns the logarithms of two factors that are each small where the other is large."""
    return torch.tensor([[0.0, -depth], [-depth, 0.0]], requires_grad=True)


@pytest.mark.parametrize("depth", [1.0, 20.0, 200.0, 1e6])
def test_products_of_opposed_factors_are_exact_in_float32(depth):
    factors = opposed(depth)
    total = ExactLogRing().sumproduct([named(factor, "a") for factor in factors], {"a"})
    assert total.item() == pytest.approx(math.log(2) - depth, rel=1e-6)
    (gradient,) = torch.autograd.grad(total, factors)
    assert torch.allclose(gradient, torch.tensor(0.5))


def test_that_is_why_pyros_own_ring_is_not_used():
    factors = opposed(20.0)
    total = einsum("a,a->", *factors)
    assert (torch.autograd.grad(total, factors)[0] < 0.02).all()
    assert einsum("a,a->", *opposed(200.0)) == -math.inf


def test_states_of_probability_0_have_no_part_in_value_or_gradient():
    logs = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]], requires_grad=True)
    value = log_sum_exp(logs, 1)
    assert value.tolist() == [0.0, -math.inf]
    (gradient,) = torch.autograd.grad(value, logs, torch.ones(2))
    assert gradient.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_chain_is_summed_from_its_start_without_a_product_of_three_states(monkeypatch):
    size, length = 3, 100
    names = [chr(0x100 + step) for step in range(length)]
    matrices = torch.randn(length - 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    terms = [named(matrix, a + b) for matrix, a, b in zip(matrices, names, names[1:], strict=False)]
    dims = []

    def watched(log_terms, dim):
        dims.append(log_terms.dim())
        return log_sum_exp(log_terms, dim)

    monkeypatch.setattr(log_sums, "log_sum_exp", watched)
    total = ExactLogRing().sumproduct(terms, set(names))
    expected = torch.zeros(size, dtype=torch.float64)
    for matrix in matrices:
        expected = (expected[:, None] + matrix).logsumexp(0)
    assert torch.allclose(total, expected.logsumexp(0), atol=1e-12)
    assert len(dims) == length
    assert max(dims) == 2
