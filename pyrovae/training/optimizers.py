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

from pyrovae.common import InputError, first_line, require, require_choice, require_number, shown, warn

LEARNING_RATE_SCHEDULES = ("constant", "cosine")
ADAM = partial(torch.optim.Adam, fused=True)
DEFAULT_LR = 1e-3
_UNUSABLE = (TypeError, ValueError, AttributeError, KeyError, AssertionError)
Made = TypeVar("Made")


def check_optimizer(optimizer: object, lr: float | None) -> None:
    """Raises `InputError` if `make_optimizer` could not use them, as far as can be told without parameters."""
    if lr is not None:
        require_number("lr", lr, above=0)
    if isinstance(optimizer, PyroOptim):
        name = getattr(optimizer.pt_optim_constructor, "__name__", type(optimizer).__name__)
        scheduled = isinstance(optimizer, PyroLRScheduler)
        require(not scheduled, f"optimizer must not be one of Pyro's schedulers: say schedule beside optimizer {name}")
        require(type(optimizer) is PyroOptim, f"optimizer must be a plain one of Pyro, got {type(optimizer).__name__}")
        same = isinstance(optimizer.pt_optim_args, dict)
        require(
            same, f"optimizer {name} must have a dict of arguments, the same for all parameters, and has a function"
        )
        rule = f"optimizer {name} must have no clip_args, which clip parameter by parameter: say max_grad_norm"
        require(not optimizer.pt_clip_args, rule)
        _check_said_once(name, cast(dict[str, object], optimizer.pt_optim_args), lr)
        return
    if isinstance(optimizer, partial):
        _check_said_once(getattr(optimizer.func, "__name__", "given"), optimizer.keywords, lr)
    made = isinstance(optimizer, torch.optim.Optimizer)
    rule = "optimizer must be a function of parameters and lr, as torch.optim.Adam is, or one of pyro.optim"
    require(callable(optimizer) and not made, f"{rule}, got {type(optimizer).__name__ if made else shown(optimizer)}")


def make_optimizer(
    optimizer: Callable[..., torch.optim.Optimizer] | PyroOptim, parameters: list[Tensor], lr: float | None
) -> torch.optim.Optimizer:
    """Returns torch's optimiser of all `parameters`.

    Pyro makes an optimiser for each parameter. Here one optimiser of the same kind holds them all, which takes the same
    steps, because the steps of the parameters do not depend on each other.

    Args:
        optimizer: a function of parameters and lr, as `torch.optim.Adam` is, or an optimiser of `pyro.optim`.
        parameters: the tensors to train.
        lr: the learning rate; None is the one that `optimizer` brings, else 0.001.

    Raises:
        InputError: if the result is no optimiser that takes steps by itself.
    """
    check_optimizer(optimizer, lr)
    if isinstance(optimizer, PyroOptim):
        constructor = cast(Callable[..., torch.optim.Optimizer], optimizer.pt_optim_constructor)
        optimizer = partial(constructor, **cast(dict[str, object], optimizer.pt_optim_args))
        rate = {} if lr is None else {"lr": lr}
    elif isinstance(optimizer, partial) and "lr" in optimizer.keywords:
        rate = {}
    else:
        rate = {"lr": DEFAULT_LR if lr is None else lr}
    made = _call_given("optimizer", "parameters and lr", optimizer, parameters, **rate)
    kind = type(made).__name__
    rule = "optimizer must make a torch.optim.Optimizer of parameters and lr"
    require(isinstance(made, torch.optim.Optimizer), f"{rule}, got {shown(made)}")
    require(not _needs_arguments(made.step), f"optimizer must step without a closure, and {kind} does not")
    require(
        all("lr" in group for group in made.param_groups),
        f"optimizer must have a learning rate lr, and {kind} has none",
    )
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
        number = rate.item() if isinstance(rate, Tensor) and rate.numel() == 1 else rate
        fits = isinstance(number, int | float) and math.isfinite(number) and number >= 0
        require(fits, f"schedule must give a finite learning rate >= 0, and lr is {shown(rate)} after epoch {epoch}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    kept = any(id(parameter) in held for parameter in parameters)
    require(kept, f"optimizer must keep its parameters, and has none of them after epoch {epoch}")


def check_schedule(schedule: object) -> None:
    """Raises `InputError` unless the schedule is a function or a known name."""
    if not callable(schedule):
        require_choice("schedule", schedule, LEARNING_RATE_SCHEDULES)


def _check_said_once(name: str, settings: dict[str, object], lr: float | None) -> None:
    own = settings.get("lr")
    require(own is None or lr is None, f"lr must be said once, got {own} in optimizer {name} and {lr} beside it")


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
