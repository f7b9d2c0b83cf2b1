"""Trains model and guide each in its own way: whose parameters are whose, and settings that differ between the two."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.common import plain_number, require, require_number, shown
from pyrovae.data import Batch
from pyrovae.programs import ProgramPair, Reading, sides_of
from pyrovae.training.pair_modules import in_mode, modules_of

MODEL, GUIDE = "model", "guide"
TRAIN = ("both", MODEL, GUIDE)


@dataclass(frozen=True)
class TrainedSides:
    """Holds the parameters of a pair by their side.

    Attributes:
        model: The parameters that log p(x, z) at held z depends on.
        guide: The parameters that the draws of z or log q(z|x) depend on.
        fixed: The modules that run in the side which is not trained, and in no other.
    """

    model: list[Tensor]
    guide: list[Tensor]
    fixed: list[nn.Module]

    def of(self, side: str) -> list[Tensor]:
        """Returns the parameters of "model" or "guide"."""
        return self.model if side == MODEL else self.guide


def find_sides(
    vae: ProgramPair, parameters: Mapping[str, Tensor], batch: Batch, reading: Reading, train: str, setting: str
) -> TrainedSides:
    """Returns the sides of a pair, from runs of its programs on a batch in evaluation mode.

    A parameter that neither density depends on at this batch is of the program that registers it.

    Args:
        vae: the pair.
        parameters: its parameters by name.
        batch: the batch.
        reading: how the objective reads the pair.
        train: the side that is trained, or "both".
        setting: the setting that needs the sides, for messages.

    Raises:
        InputError: if a parameter is of both sides or of an unknown one, or a side that is trained has none.
    """
    modules = modules_of(vae)
    with in_mode(False, modules):
        found = sides_of(vae.model, vae.guide, batch, reading)
        runs = {MODEL: _run_of(vae.model, batch, modules), GUIDE: _run_of(vae.guide, batch, modules)}
    known = {side: {id(parameter) for parameter in getattr(found, side)} for side in (MODEL, GUIDE, "shared")}
    sides: dict[str, list[Tensor]] = {MODEL: [], GUIDE: []}
    rule = f"{setting} needs a model and a guide that share no parameter"
    for name, parameter in parameters.items():
        own = [side for side in (MODEL, GUIDE) if id(parameter) in known[side]]
        if not own:  # either both sides depend on it, or none
            require(id(parameter) not in known["shared"], f"{rule}, and they share {name}")
            own = [side for side, run in runs.items() if id(parameter) in run.registered]
            require(len(own) == 1, f"{rule}, and {name} is registered by both and used by none at the first batch")
        sides[own[0]].append(parameter)
    for side in (MODEL, GUIDE):
        rule = f"{setting} needs a {side} with a parameter, found none"
        require(len(sides[side]) > 0 or train not in ("both", side), rule)
    fixed = [] if train == "both" else runs[MODEL if train == GUIDE else GUIDE].called
    others = [] if train == "both" else runs[train].called
    return TrainedSides(sides[MODEL], sides[GUIDE], [one for one in fixed if not any(one is other for other in others)])


def check_by_side(name: str, value: object, needs_both: bool) -> None:
    """Raises `InputError` unless a setting is a number > 0, or a dict of such numbers by "model" and "guide"."""
    if not isinstance(value, Mapping):
        require_number(name, value, above=0)
        return
    given, known = set(value), {MODEL, GUIDE}
    fits = given == known if needs_both else given and given <= known
    require(bool(fits), f'{name} must have {"both" if needs_both else "one or both"} of "model" and "guide", got '
                        f"{shown(list(value))}")  # fmt: skip
    for side, number in value.items():
        require_number(f"{name} of the {side}", number, above=0)


def plain_by_side(value: Any) -> Any:
    """Returns a setting by side with numbers of Python, whatever the caller does with the dict later; else as it is."""
    return {side: plain_number(number) for side, number in value.items()} if isinstance(value, Mapping) else value


def described(value: object) -> object:
    """Returns a setting as a plain value that a checkpoint can hold."""
    if not isinstance(value, Mapping):
        return value
    return ", ".join(f"{side} {float(value[side])!r}" for side in (MODEL, GUIDE) if side in value)


class _Run(NamedTuple):
    """What a program has registered and called, the former as ids of parameters."""

    registered: set[int]
    called: list[nn.Module]


def _run_of(program: Callable, batch: Batch, modules: list[nn.Module]) -> _Run:
    called: dict[int, nn.Module] = {}

    def note(module: nn.Module, _: object) -> None:
        called[id(module)] = module

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        with torch.no_grad(), poutine.trace(param_only=True) as capture:
            program(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    sites = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
    return _Run({id(site["value"].unconstrained()) for site in sites}, list(called.values()))  # type: ignore[union-attr]
