"""The floor of a training step: its matrix products alone, each by PyTorch's fastest float32 routine."""

import itertools
import math
from statistics import median

import torch
from cases import Case, Step, seconds_per_call


def floor(case: Case, device: torch.device) -> Step:
    """Returns the matrix products of a step alone.

    Each layer has one forwards, W x, and backwards one for W and, except in the encoder's first layer, one for x.
    """
    layers = []
    sizes = [math.prod(case.event_shape), *case.hidden, 2 * case.latent_dim]
    layers += [(case.batch_size, *pair, index > 0) for index, pair in enumerate(itertools.pairwise(sizes))]
    sizes = [case.latent_dim, *case.hidden[::-1], math.prod(case.event_shape)]
    layers += [(case.batch_size * case.num_particles, *pair, True) for pair in itertools.pairwise(sizes)]
    products = []
    for rows, inner, outer, needs_input in layers:
        products.append(fastest_product(rows, inner, outer, device))
        products.append(fastest_product(outer, rows, inner, device))
        if needs_input:
            products.append(fastest_product(rows, outer, inner, device))

    def step() -> None:
        for product in products:
            product()

    return step


def fastest_product(rows: int, inner: int, columns: int, device: torch.device) -> Step:
    """Returns left @ right by the fastest of PyTorch's float32 routines, its operands in that routine's layout."""
    left, right = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
    out, transposed = torch.empty(rows, columns, device=device), right.t().contiguous()
    left_transposed = left.t().contiguous()
    candidates = [
        lambda: torch.mm(left, right, out=out),
        lambda: torch.mm(left, transposed.t(), out=out),
        lambda: torch.mm(left_transposed.t(), right, out=out),
    ]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise
        candidates.append(lambda: linear(left, transposed, None, "none", [], ""))
        candidates.append(lambda: linear(left, right.t(), None, "none", [], ""))
    for candidate in candidates:
        candidate()
    timed = [median(seconds_per_call(candidate, 1, device) for _ in range(7)) for candidate in candidates]
    return candidates[timed.index(min(timed))]
