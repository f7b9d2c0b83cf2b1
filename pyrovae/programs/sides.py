"""Sorts parameters into those of the model and of the guide, by what depends on them and not by who registers them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.programs.layout import Reading
from pyrovae.programs.one_way_transforms import NoInverse
from pyrovae.programs.random_choices import restore_generators, saved_generators
from pyrovae.programs.reruns import pair_at
from pyrovae.programs.running import AS_IT_COMES, run_pair

SIDES = ("model", "guide", "shared")


@dataclass(frozen=True)
class Sides:
    """Holds the trained parameters of a pair by where their gradient comes from.

    Attributes:
        model: The parameters that log p(x, z) at held z depends on.
        guide: The parameters that the draws or log q(z|x) depend on.
        shared: The parameters that both depend on: an encoder that is also part of a Vamp prior, or weights that are
            tied between decoder and encoder.
        unreached: The names of the parameters that neither depends on, so that no gradient reaches them.
    """

    model: list[Tensor]
    guide: list[Tensor]
    shared: list[Tensor]
    unreached: tuple[str, ...]


def sides_of(model: Callable, guide: Callable, args: tuple, reading: Reading = AS_IT_COMES) -> Sides:
    """Returns the parameters that autograd finds behind log p at held draws, and behind the draws and log q.

    A parameter whose gradient is always zero counts as found.
    """
    with torch.enable_grad(), poutine.trace(param_only=True) as capture:
        start = saved_generators()
        drawn = run_pair(model, guide, *args, reading=reading)
        draws = drawn.draws()
        at = {name: z.detach() for name, z in draws.items()}
        held = pair_at(model, guide, at, *args, like=drawn)
        try:
            terms = held.terms()
        except NoInverse:  # under another dropout mask, a transform makes other draws of the same numbers
            restore_generators(start)
            held = pair_at(model, guide, at, *args, like=drawn, redraw=True)
            terms = held.terms()
        log_p = [terms.log_likelihood + terms.log_prior, held.global_terms(scaled=False)[0]]
        log_q = [drawn.terms().log_posterior, drawn.global_terms(scaled=False)[1]]
    found = {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}  # type: ignore[union-attr]
    named = {name: parameter for name, parameter in found.items() if parameter.requires_grad}
    parameters = list({id(parameter): parameter for parameter in named.values()}.values())
    of_model = _reached(log_p, parameters)
    of_guide = _reached([*log_q, *draws.values()], parameters)
    sides = {
        "model": [p for p in parameters if id(p) in of_model - of_guide],
        "guide": [p for p in parameters if id(p) in of_guide - of_model],
        "shared": [p for p in parameters if id(p) in of_model & of_guide],
    }
    unreached = tuple(name for name, p in named.items() if id(p) not in of_model | of_guide)
    return Sides(**sides, unreached=unreached)


def _reached(outputs: list[Tensor], parameters: list[Tensor]) -> set[int]:
    """Returns the ids of the parameters that some output depends on."""
    outputs = [output for output in outputs if output.requires_grad]
    if not outputs or not parameters:
        return set()
    ones = [torch.ones_like(output) for output in outputs]
    found = torch.autograd.grad(outputs, parameters, ones, allow_unused=True)
    return {id(p) for p, gradient in zip(parameters, found, strict=True) if gradient is not None}
