"""Expectations by quadrature in float64: over a standard normal, over a Beta, and of the log of a mean of K weights."""

import functools
import math

import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import roots_jacobi
from torch import Tensor

STEP = 0.35  # of log t; the error of the trapezoidal rule is then of the order exp(-pi^2 / 0.35)


@functools.cache
def normal_grid(num: int = 321, most: float = 9.5) -> tuple[Tensor, Tensor]:
    """Returns equally spaced nodes, and weights for an expectation over N(0, 1): exact for any smooth integrand."""
    nodes = torch.linspace(-most, most, num, dtype=torch.float64)
    weights = (-nodes.square() / 2).exp()
    return nodes, weights / weights.sum()


@functools.cache
def hermite(num: int = 40) -> tuple[Tensor, Tensor]:
    """Returns Gauss-Hermite nodes and weights for an expectation over N(0, 1), for integrands near a polynomial."""
    nodes, weights = (torch.from_numpy(values) for values in hermegauss(num))
    return nodes, weights / weights.sum()


def beta_grid(a: float, b: float, num: int = 60) -> tuple[Tensor, Tensor]:
    """Returns Gauss-Jacobi nodes and weights for an expectation over Beta(a, b), for integrands near a polynomial."""
    nodes, weights = (torch.from_numpy(values) for values in roots_jacobi(num, b - 1, a - 1))
    return (1 + nodes) / 2, weights / weights.sum()


def logit_grid(a: float, b: float, step: float = 0.3) -> tuple[Tensor, Tensor]:
    """Returns the same for any integrand, logarithms of both ends too: nodes equally spaced on the scale of logits."""
    logits = torch.arange(-32 / a, 32 / b, step, dtype=torch.float64)
    weights = (a * torch.nn.functional.logsigmoid(logits) + b * torch.nn.functional.logsigmoid(-logits)).exp()
    return logits.sigmoid(), weights / weights.sum()


def log_mean_weight(log_w: Tensor, probability: Tensor, count: int) -> Tensor:
    """Returns E[log 1/K sum_k w_k] over independent draws of w, for any K at the price of one integral.

        E[log S] = int_0^inf (exp(-t) - E[exp(-t S)]) dt / t,    E[exp(-t S)] = E[exp(-t w / K)]^K

    Args:
        log_w: The log-weights at the nodes, `(nodes, ...)`.
        probability: The probability of each node, `(nodes,)`.
        count: K.

    Source: Frullani's integral, with log t as the variable.
    """
    if count == 1:
        return torch.tensordot(probability, log_w, 1)
    centre = log_w.detach().amax(0)
    relative = log_w - centre
    log_t = torch.arange(-40.0, 45.0 - relative.detach().min().item(), STEP, dtype=torch.float64)
    total = torch.zeros_like(centre)
    for part in log_t.split(64):
        t = part.exp().reshape(-1, *[1] * log_w.dim())
        transform = torch.einsum("tn...,n->t...", (-t / count * relative.exp()).exp(), probability)
        total = total + ((-t.squeeze(1)).exp() - transform**count).sum(0)
    return centre + STEP * total


def over_two(function, log_w: Tensor, probability: Tensor) -> Tensor:
    """Returns E[function(log_w of two independent draws)]; the function gets `(2, nodes, nodes, ...)`."""
    num = len(log_w)
    first = log_w.unsqueeze(1).expand(num, num, *log_w.shape[1:])
    values = function(torch.stack((first, first.transpose(0, 1))))
    return torch.einsum("ij...,i,j->...", values, probability, probability)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """Returns log 1/K sum_k w_k along the first dimension."""
    return log_w.logsumexp(0) - math.log(len(log_w))
