"""Makes torch's optimiser and learning-rate schedule from the caller's, and checks them before a step is taken."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyrovae.common import InputError, first_line, require, require_choice, shown, warn
from pyrovae.training.sides import GUIDE, MODEL, TrainedSides, check_by_side

LEARNING_RATE_SCHEDULES = ("constant", "cosine")
ADAM = partial(torch.optim.Adam, fused=True)
DEFAULT_LR = 1e-3
_UNUSABLE = (TypeError, ValueError, AttributeError, KeyError, AssertionError)
Made = TypeVar("Made")


def check_optimizer(optimizer: object, lr: float | Mapping[str, float] | None) -> None:
    """Raises `InputError` if `make_optimizer` could not use them, as far as can be told without parameters."""
    if lr is not None:
        check_by_side("lr", lr, needs_both=True)
    if isinstance(optimizer, PyroOptim):
        name = getattr(optimizer.pt_optim_constructor, "__name__", type(optimizer).__name__)
        scheduled = isinstance(optimizer, PyroLRScheduler)
        require(not scheduled, f"optimizer must not be one of Pyro's schedulers: say schedule beside optimizer {name}")
        require(type(optimizer) is PyroOptim, f"optimizer must be a plain one of Pyro, got {type(optimizer).__name__}")
        rule = f"optimizer {name} must have no clip_args, which clip parameter by parameter: say max_grad_norm"
        require(not optimizer.pt_clip_args, rule)
        if isinstance(optimizer.pt_optim_args, dict):
            _check_said_once(name, optimizer.pt_optim_args, lr)
        else:
            rule = f"lr must not be given by side beside optimizer {name}, whose arguments are a function of names"
            require(not isinstance(lr, Mapping), rule)
        return
    if isinstance(optimizer, partial):
        _check_said_once(getattr(optimizer.func, "__name__", "given"), optimizer.keywords, lr)
    made = isinstance(optimizer, torch.optim.Optimizer)
    rule = "optimizer must be a function of parameters and lr, as torch.optim.Adam is, or one of pyro.optim"
    require(callable(optimizer) and not made, f"{rule}, got {type(optimizer).__name__ if made else shown(optimizer)}")


def make_optimizer(
    optimizer: Callable[..., torch.optim.Optimizer] | PyroOptim,
    parameters: list[Tensor],
    lr: float | Mapping[str, float] | None,
    sides: TrainedSides | None = None,
) -> torch.optim.Optimizer:
    """Returns torch's optimiser of all `parameters`.

    Pyro makes an optimiser for each parameter. Here one optimiser of the same kind holds them all, which takes the same
    steps, because the steps of the parameters do not depend on each other. Where its arguments are a function of the
    parameter's name, those with equal arguments are a group.

    Args:
        optimizer: a function of parameters and lr, as `torch.optim.Adam` is, or an optimiser of `pyro.optim`.
        parameters: the tensors to train.
        lr: the learning rate, or those of model and guide by these names; None is the one that `optimizer` brings, else
            0.001.
        sides: says which parameters are the model's; needed for learning rates by side.

    Raises:
        InputError: if the result is no optimiser that takes steps by itself.
    """
    check_optimizer(optimizer, lr)
    groups: list[Tensor] | list[dict[str, Any]] = parameters
    by_side = isinstance(lr, Mapping)
    if isinstance(lr, Mapping):
        assert sides is not None  # who gives rates by side has found them
        groups, lr = _groups_by_side(sides, parameters, lr), lr[MODEL]
    if isinstance(optimizer, PyroOptim):
        constructor = cast(Callable[..., torch.optim.Optimizer], optimizer.pt_optim_constructor)
        arguments = optimizer.pt_optim_args
        if isinstance(arguments, dict):
            optimizer = partial(constructor, **arguments)
        else:
            groups, optimizer = _groups_by_name(optimizer, parameters, lr), constructor
        rate = {} if lr is None else {"lr": lr}
    elif isinstance(optimizer, partial) and "lr" in optimizer.keywords:
        rate = {}
    else:
        rate = {"lr": DEFAULT_LR if lr is None else lr}
    made = _call_given("optimizer", "parameters and lr", optimizer, groups, **rate)
    kind = type(made).__name__
    rule = "optimizer must make a torch.optim.Optimizer of parameters and lr"
    require(isinstance(made, torch.optim.Optimizer), f"{rule}, got {shown(made)}")
    require(not _needs_arguments(made.step), f"optimizer must step without a closure, and {kind} does not")
    require(
        all("lr" in group for group in made.param_groups),
        f"optimizer must have a learning rate lr, and {kind} has none",
    )
    rule = f"optimizer must keep the groups of lr by side, {len(groups)}, and {kind} has {len(made.param_groups)}"
    require(not by_side or len(made.param_groups) == len(groups), rule)
    state = _call_given("optimizer", "parameters and lr", made.state_dict)
    require(isinstance(state, dict), f"optimizer must have a dict as its state_dict(), got {shown(state)}")
    held = {id(parameter) for group in made.param_groups for parameter in group["params"]}
    rule = "optimizer must step the parameters that it is given"
    require(any(id(parameter) in held for parameter in parameters), f"{rule}, and {kind} holds others")
    return made


def unusual_settings(optimizer: torch.optim.Optimizer) -> str:
    """Returns the plain settings that differ from the defaults of this kind of optimiser.

    Defaults are left out, because another version of torch may have others.
    """
    defaults = {name: p.default for name, p in inspect.signature(type(optimizer)).parameters.items()}
    plain = (bool, int, float, str, tuple, type(None))
    given = {name: value for name, value in optimizer.defaults.items() if isinstance(value, plain) and name != "lr"}
    return str({name: value for name, value in given.items() if name in defaults and defaults[name] != value})


def make_schedule(
    schedule: str | Callable[[torch.optim.Optimizer], Any], optimizer: torch.optim.Optimizer, epochs: int
):
    """Returns a scheduler whose `step()`, after each epoch, sets the optimiser's learning rate."""
    if schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    if schedule == "constant":  # leaves an optimiser's own decay as it is
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    given = cast(Callable[[torch.optim.Optimizer], Any], schedule)  # `check_schedule` refuses other names
    made = _call_given("schedule", "an optimiser", given, optimizer)
    needed = ("step", "state_dict", "load_state_dict")
    rule = "schedule must make one of torch.optim.lr_scheduler of an optimiser"
    fits = all(callable(getattr(made, name, None)) for name in needed) and not isinstance(made, torch.optim.Optimizer)
    require(fits, f"{rule}, got {shown(made)}")
    own = getattr(made, "optimizer", optimizer)
    require(own is optimizer, f"schedule must be of the optimiser that it is given, and {type(made).__name__} is not")
    metric = _needs_arguments(made.step) and not isinstance(made, ReduceLROnPlateau)
    rule = "schedule must be stepped without a metric, or be a ReduceLROnPlateau"
    require(not metric, f"{rule}, and {type(made).__name__} is neither")
    state = _call_given("schedule", "an optimiser", made.state_dict)
    require(isinstance(state, dict), f"schedule must have a dict as its state_dict(), got {shown(state)}")
    return made


def step_schedule(scheduler: Any, record: Mapping[str, float | None]) -> None:
    """Steps the schedule after the epoch of this record; a `ReduceLROnPlateau` is given what its mode asks for.

    That is the validation ELBO where it maximises and minus that where it minimises; without validation data, minus the
    training loss or the loss.
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step()
        return
    elbo = -cast(float, record["loss"]) if record["elbo"] is None else record["elbo"]
    metric = elbo if scheduler.mode == "max" else -elbo
    if metric < 0 and scheduler.threshold_mode == "rel" and scheduler.threshold > 0:
        warn(
            f'ReduceLROnPlateau with threshold_mode "rel" takes worse values for better where its metric is below 0, '
            f'as {metric:.3g} is: say threshold_mode="abs", and threshold in nats'
        )
    scheduler.step(metric)


def check_groups(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], epoch: int) -> None:
    """Raises `InputError` if an optimiser or a schedule of the caller's has broken the groups of parameters.

    It is called after each epoch: there is no telling before what a step will do.
    """
    rates = [group.get("lr") for group in optimizer.param_groups]
    for rate in rates:
        rule = f"schedule must give a finite learning rate >= 0, and lr is {shown(rate)} after epoch {epoch}"
        require(_is_rate(rate), rule)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    kept = any(id(parameter) in held for parameter in parameters)
    require(kept, f"optimizer must keep its parameters, and has none of them after epoch {epoch}")


def _is_rate(rate: object) -> bool:
    number = rate.item() if isinstance(rate, Tensor) and rate.numel() == 1 else rate
    return isinstance(number, int | float) and math.isfinite(number) and number >= 0


def check_schedule(schedule: object) -> None:
    """Raises `InputError` unless the schedule is a function or a known name."""
    if not callable(schedule):
        require_choice("schedule", schedule, LEARNING_RATE_SCHEDULES)


def _groups_by_side(sides: TrainedSides, parameters: list[Tensor], lr: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns a group for each side that is trained, the model's first."""
    trained = {id(parameter) for parameter in parameters}
    return [
        {"params": sides.of(side), "lr": lr[side]}
        for side in (MODEL, GUIDE)
        if any(id(parameter) in trained for parameter in sides.of(side))
    ]


def _groups_by_name(optimizer: PyroOptim, parameters: list[Tensor], lr: float | None) -> list[dict[str, Any]]:
    """Returns a group for each kind of arguments that a function of names gives."""
    name = getattr(optimizer.pt_optim_constructor, "__name__", type(optimizer).__name__)
    groups: list[tuple[dict, list[Tensor]]] = []
    for parameter in parameters:
        arguments = _call_given(f"the arguments of optimizer {name}", "names", optimizer._get_optim_args, parameter)
        _check_said_once(name, arguments, lr)
        rate = arguments.get("lr", 0.0)  # torch checks only one that holds for all groups
        require(_is_rate(rate), f"optimizer {name} must have finite learning rates >= 0, got lr {shown(rate)}")
        same = [some for known, some in groups if known == arguments]
        if same:
            same[0].append(parameter)
        else:
            groups.append((arguments, [parameter]))
    return [{"params": some, **arguments} for arguments, some in groups]


def _check_said_once(name: str, settings: dict[str, object], lr: object) -> None:
    own = settings.get("lr")
    beside = shown(dict(lr)) if isinstance(lr, Mapping) else lr
    require(own is None or lr is None, f"lr must be said once, got {own} in optimizer {name} and {beside} beside it")


def _call_given(name: str, of: str, function: Callable[..., Made], *args, **kwargs) -> Made:
    try:
        return function(*args, **kwargs)
    except InputError:
        raise
    except _UNUSABLE as error:
        raise InputError(f"{name} must be a function of {of}: {first_line(error)}") from error


def _needs_arguments(function: Callable) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
