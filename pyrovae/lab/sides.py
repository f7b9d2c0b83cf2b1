"""Whose gradient a parameter has, the model's or the guide's, by what depends on it and not by who registers it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.programs import pair_at, run_pair

SIDES = ("model", "guide", "shared")


@dataclass(frozen=True)
class Sides:
    """The parameters of a pair that are trained, by where their gradient comes from."""

    model: list[Tensor]
    """log p(x, z) at held z depends on them."""
    guide: list[Tensor]
    """The draws or log q(z|x) depend on them."""
    shared: list[Tensor]
    """Both do: an encoder that is in a Vamp prior, too, or weights that decoder and encoder tie."""
    unreached: tuple[str, ...]
    """The names of those that neither depends on, and which no gradient reaches."""


def sides_of(model: Callable, guide: Callable, args: tuple[Tensor, ...]) -> Sides:
    """Returns what autograd finds behind log p at held draws, and behind the draws and log q.

    A gradient that is zero counts as found.
    """
    with torch.enable_grad(), poutine.trace(param_only=True) as capture:
        drawn = run_pair(model, guide, *args)
        draws = {name: site["value"] for name, site in drawn.guide_sites.items()}
        held = pair_at(model, guide, {name: z.detach() for name, z in draws.items()}, *args).terms()
        log_p, log_q = held.log_likelihood + held.log_prior, drawn.terms().log_posterior
    named = {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}
    named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    parameters = list({id(parameter): parameter for parameter in named.values()}.values())
    of_model = _reached([log_p], parameters)
    of_guide = _reached([log_q, *draws.values()], parameters)
    sides = {
        "model": [p for p in parameters if id(p) in of_model - of_guide],
        "guide": [p for p in parameters if id(p) in of_guide - of_model],
        "shared": [p for p in parameters if id(p) in of_model & of_guide],
    }
    unreached = tuple(name for name, p in named.items() if id(p) not in of_model | of_guide)
    return Sides(**sides, unreached=unreached)


def _reached(outputs: list[Tensor], parameters: list[Tensor]) -> set[int]:
    outputs = [output for output in outputs if output.requires_grad]
    if not outputs or not parameters:
        return set()
    ones = [torch.ones_like(output) for output in outputs]
    found = torch.autograd.grad(outputs, parameters, ones, allow_unused=True)
    return {id(p) for p, gradient in zip(parameters, found, strict=True) if gradient is not None}
