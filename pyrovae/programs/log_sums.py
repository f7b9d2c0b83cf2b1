"""Sums products over the states of discrete sites, in log space and exact to rounding.

Pyro's `contract_tensor_tree` orders the sums and products over plates, in a ring. Its own ring of logarithms is not
exact: it multiplies numbers that were each divided by a maximum of their own, so that log (e^0 e^-200 + e^-200 e^0) is
-inf in float32 and the gradient of log (e^0 e^-20 + e^-20 e^0) is 0.017 where it is 0.5. This one adds logarithms, and
takes the maximum of what it sums.
"""

import itertools
import math
from collections.abc import Iterable

import torch
from pyro.ops.packed import broadcast_all
from pyro.ops.rings import LogRing
from torch import Tensor


def log_sum_exp(log_terms: Tensor, dim: int) -> Tensor:
    """Returns log sum exp along a dimension. Where all terms are -inf so is the sum, with a gradient of 0."""
    largest = log_terms.detach().amax(dim, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0.0)
    total = (log_terms - largest).exp().sum(dim)
    is_zero = total == 0
    log_total = torch.where(is_zero, 1.0, total).log() + largest.squeeze(dim)
    return torch.where(is_zero, -math.inf, log_total)


class ExactLogRing(LogRing):
    """Sums products of packed tensors, whose `_pyro_dims` name their dimensions by one character each."""

    def sumproduct(self, terms: Iterable[Tensor], dims: Iterable[str]) -> Tensor:
        """Returns the sum over `dims` of the product of all terms, in log space.

        One dimension is summed at a time, next that whose product is the smallest. A Markov chain is so summed from its
        first state to its last, in time linear in its length.
        """
        left = dict(enumerate(terms))
        sizes = {d: size for term in left.values() for d, size in zip(_dims_of(term), term.shape, strict=True)}
        holders: dict[str, set[int]] = {dim: set() for dim in sorted(dims)}
        for number, term in left.items():
            for dim in holders.keys() & set(_dims_of(term)):
                holders[dim].add(number)

        def cost(dim: str) -> int:
            """Returns the number of elements in the product of all terms with a dimension."""
            return math.prod(sizes[d] for d in {d for number in holders[dim] for d in _dims_of(left[number])})

        costs = {dim: cost(dim) for dim in holders}
        for new in itertools.count(len(left)):
            if not costs:
                return _product(list(left.values()))
            dim = min(costs, key=costs.__getitem__)
            del costs[dim]
            numbers = holders.pop(dim)
            product = _product([left.pop(number) for number in sorted(numbers)])
            names = _dims_of(product)
            left[new] = _named(log_sum_exp(product, names.index(dim)), names.replace(dim, ""))
            for other in costs.keys() & set(names):
                holders[other] = holders[other] - numbers | {new}
                costs[other] = cost(other)
        raise AssertionError("the count has no end")


def _product(terms: list[Tensor]) -> Tensor:
    """Returns the sum of logarithms, with all dimensions that any of them has."""
    first, *others = broadcast_all(*terms)
    total = first
    for term in others:
        total = total + term
    return _named(total if others else first[...], _dims_of(first))


def _dims_of(term: Tensor) -> str:
    return term._pyro_dims  # type: ignore[attr-defined]


def _named(term: Tensor, dims: str) -> Tensor:
    term._pyro_dims = dims  # type: ignore[attr-defined]
    return term
