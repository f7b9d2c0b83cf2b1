"""Finds parameters that a step would never train, because Pyro's param store holds another tensor under their name.

That happens if a module is registered under a name that the store already has, from a notebook cell that was run
before or from a file. A program that computes with what `pyro.param` returns is as it should be.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.common import kept_generators, require
from pyrovae.programs.sites import sample_sites


def own_and_stored(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, Tensor, Tensor]]:
    """Returns name, own and stored tensor of each module's parameter for which the param store has another tensor."""
    found: list[tuple[str, Tensor, Tensor]] = []
    for message in messages:
        own = message["args"][1] if len(message["args"]) > 1 else None
        if isinstance(own, torch.nn.Parameter):
            stored = message["value"].unconstrained()
            if stored is not own:
                found.append((message["name"], own, stored))
    return found


def check_parameters(
    messages: Sequence[Mapping[str, Any]], model: Callable, guide: Callable, args: tuple, kwargs: dict
) -> None:
    """Raises `InputError` if a step would move the param store's tensor while the programs compute with another.

    `messages` are those of the parameters, from a run of the pair. It is run again only if the store has another
    tensor for one of them.
    """
    if own_and_stored(messages):
        _check_trained(model, guide, args, kwargs)


def _check_trained(model: Callable, guide: Callable, args: tuple, kwargs: dict) -> None:
    with torch.enable_grad(), kept_generators(), poutine.trace(param_only=True) as capture:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        messages = tuple(site for site in capture.trace.nodes.values() if site["type"] == "param")
        differing = own_and_stored(messages)
        if not differing:
            return
        total = torch.zeros(())
        for sites in map(sample_sites, (guide_trace, model_trace)):
            for site in sites.values():
                total = total + site["fn"].log_prob(site["value"]).sum()
                if site["value"].requires_grad:
                    total = total + site["value"].sum()
        owned = [own for _, own, _ in differing]
        gradients = torch.autograd.grad(total, owned, allow_unused=True) if total.requires_grad else [None] * len(owned)
    for (name, own, _), gradient in zip(differing, gradients, strict=True):
        require(gradient is None, not_in_store(name.replace("$$$", "."), own))


def not_in_store(name: str, parameter: Tensor) -> str:
    """Returns an error that says of a parameter that the param store gives its name to another tensor."""
    rule = f"parameter {name} is not in Pyro's param store, which holds"
    if not parameter.is_contiguous():
        return f"{rule} a copy of it, because it is not contiguous: make it a parameter after .contiguous()"
    return (
        f"{rule} another tensor of that name (of an earlier model, or from a file): call pyro.clear_param_store(), or "
        "give it another name"
    )
