"""Checks the states of optimiser and schedule in a checkpoint against those of this training, and loads them.

The schedule is stepped through the epochs that are done. Then the learning rates and the schedule's settings are known,
whatever a checkpoint says; but the rates of a schedule of the caller's own are the checkpoint's. A step of a copy of
the optimiser shows which tensors it keeps.
"""

import copy
import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pyrovae.common import kept_generators, require, rules, shown
from pyrovae.training.optimizers import step_schedule

_OTHER_LENGTH = "where the number of epochs changes, a schedule must keep its rates and settings"


def check_groups(where: str, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Raises `InputError` unless the optimiser whose state was `saved` had the same parameters in the same groups."""
    was, now = ([group["params"] for group in state["param_groups"]] for state in (saved, optimizer.state_dict()))
    numbers = f"{rules.described(list(map(len, was)))}, and it is now {rules.described(list(map(len, now)))}"
    require(was == now, f"{where} is of another optimizer (the number of parameters in each group was {numbers})")


def load_schedule(
    where: str,
    scheduler: Any,
    optimizer: torch.optim.Optimizer,
    content: Mapping[str, Any],
    is_named: bool,
    same_length: bool,
) -> None:
    """Steps a new schedule through the epochs that are done, and loads its state at their end.

    The learning rate in the record of each epoch must be the one that the schedule gives. It is not compared for the
    optimisers of Pyro, some of which move it themselves, nor for one of the user's own beside a schedule that has a
    name. A schedule of the caller's own may read something outside, which is not as it was then: the learning rates are
    those of the checkpoint, unless the number of epochs has changed.

    Args:
        where: The checkpoint's name in messages.
        scheduler: The schedule, which has not been stepped.
        optimizer: Its optimiser.
        content: What the checkpoint holds.
        is_named: Whether the schedule was given by its name.
        same_length: Whether the number of epochs is that of the checkpoint.

    Raises:
        InputError: The schedule gives other learning rates, has other settings, or its state is not such a state.
    """
    saved, advice = content["scheduler"], "take another folder" if same_length else _OTHER_LENGTH
    takes_rates, is_known = same_length and not is_named, _is_of(scheduler, "torch")
    # Else torch warns that the optimiser has not stepped, in an epoch's first half.
    optimizer._opt_called = True  # type: ignore[attr-defined]
    decides = _is_of(optimizer, "torch") or not (is_named or _is_of(optimizer, "pyro"))
    for record in content["history"]:
        was, now = record["lr"], float(optimizer.param_groups[0]["lr"])
        rule = f"{where} had lr {was:g} in epoch {record['epoch']}, and its schedule now gives {now:g}"
        same = takes_rates or not decides or math.isclose(was, now, rel_tol=1e-6, abs_tol=1e-12)
        require(same, f"{rule}: {advice}")
        step_schedule(scheduler, record)
    if takes_rates:
        _take_rates(optimizer, content["optimizer"]["param_groups"], saved.get("_last_lr") if is_known else None)
    now_set = scheduler.state_dict()
    # What torch's own keep under such names follows from the steps, and differs between versions of torch.
    kept = {"_last_lr"} if takes_rates else set()
    saved = {name: value for name, value in saved.items() if name in kept or not (is_known and name.startswith("_"))}
    for name in saved.keys() & now_set.keys():
        same = name.startswith("_") or _is_close(saved[name], now_set[name])
        values = f"{name} {rules.described(saved[name])}, and now {rules.described(now_set[name])}"
        require(same, f"{where} was begun with another schedule ({values}): {advice}")
        _check_alike(f"scheduler.{name}", now_set[name], saved[name], is_known=False)
    scheduler.load_state_dict({name: saved.get(name, value) for name, value in now_set.items()})


def _take_rates(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], given: Any) -> None:
    """Sets the learning rates to those of the groups in a checkpoint, which a schedule of torch has also `given`."""
    for index, (ours, theirs) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        name, rate = f"optimizer.param_groups[{index}].lr", theirs.get("lr")
        _check_alike(name, ours["lr"], rate, is_known=True)
        if given is not None and _is_of(optimizer, "torch"):
            rules.items(*(rules.anything for _ in groups))("scheduler._last_lr", given)
            same = _is_close(given[index], rate)
            require(
                same, f"{name} must be as in scheduler._last_lr, {rules.described(given[index])}; got {shown(rate)}"
            )
        ours["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Loads the state of an optimiser with the same groups, once its schedule has set their learning rates.

    For one of torch or Pyro the state must have the structure that a step gives it, and the groups the settings of this
    optimiser; Pyro's may have moved them. One of the user's own may keep what it likes.

    Raises:
        InputError: The state is not one of this optimiser.
    """
    groups, is_known = optimizer.state_dict()["param_groups"], _is_of(optimizer, "torch", "pyro")
    for index, (ours, theirs) in enumerate(zip(groups, saved["param_groups"], strict=True)):
        name = f"optimizer.param_groups[{index}]"
        for key in sorted(ours.keys() & theirs.keys() - {"params"}):
            _check_alike(f"{name}.{key}", ours[key], theirs[key], is_known)
            if _is_of(optimizer, "torch") and not _is_close(ours[key], theirs[key]):
                rules.refuse(f"{name}.{key}", shown(ours[key]), theirs[key])
    expected = _after_a_step(optimizer) if is_known else None
    if expected is None:
        _check_sound("optimizer.state", saved["state"])
    else:
        _check_state(saved["state"], [index for group in groups for index in group["params"]], expected)
    # Another version of torch may have other settings.
    merged = [ours | theirs for ours, theirs in zip(groups, saved["param_groups"], strict=True)]
    _load(optimizer, {"state": saved["state"], "param_groups": merged})


def _check_state(saved: Any, indices: list[int], expected: dict[int, dict[str, Any]]) -> None:
    """Checks the state of each parameter; a parameter that no step has moved has none."""
    rules.table(rules.anything, int)("optimizer.state", saved)
    for index, state in saved.items():
        name = f"optimizer.state.{index}"
        require(index in indices, f"{name} must be of one of {len(indices)} parameters")
        rules.table(rules.anything)(name, state)
        if not state:
            continue
        ours = expected.get(index, {})
        require(state.keys() == ours.keys(), f"{name} must have {', '.join(ours)}; got {shown(', '.join(state))}")
        for key, value in ours.items():
            _check_alike(f"{name}.{key}", value, state[key], is_known=True)
            if key == "step":  # of which a root of 1 - beta^step is taken
                rules.number(0)(f"{name}.step", float(state[key]))


def _after_a_step(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]] | None:
    """Returns the state that the parameters have after a step, of a copy of the optimiser and its parameters.

    None is for an optimiser that takes no step with gradients of zero: one for sparse gradients alone.
    """
    copied = copy.deepcopy(optimizer)
    for group in copied.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    try:
        with kept_generators(), warnings.catch_warnings(action="ignore"):
            copied.step()
    except RuntimeError:
        return None
    return copied.state_dict()["state"]


def _load(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Loads the optimiser's state with the dtypes it had; `load_state_dict` casts it to the parameters' dtype."""
    optimizer.load_state_dict(saved)
    for group, known in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for parameter, index in zip(group["params"], known["params"], strict=True):
            for name, value in saved["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    ours = optimizer.state[parameter][name]
                    optimizer.state[parameter][name] = ours if ours.dtype == value.dtype else value.to(ours.device)


# Values of a state ----------------------------------------------------------------------------------------------------


def _check_alike(name: str, ours: object, theirs: Any, is_known: bool) -> None:
    """Raises `InputError` unless a value has the structure of ours; what is no number is ours, in a class we know."""
    match ours:
        case Tensor():
            rules.like(ours)(name, theirs)
            require(not theirs.isnan().any(), f"{name} must hold numbers, got nan")
        case dict():
            rules.fields(dict.fromkeys(ours, rules.anything))(name, theirs)
            for key, value in ours.items():
                _check_alike(rules.inner(name, key), value, theirs[key], is_known)
        case list() | tuple():
            rules.items(*(rules.anything for _ in ours))(name, theirs)
            for index, value in enumerate(ours):
                _check_alike(f"{name}[{index}]", value, theirs[index], is_known)
        case bool() | str() | None if is_known:
            rules.exactly(ours)(name, theirs)
        case bool():
            rules.flag(name, theirs)
        case int() | float():
            is_infinite = math.isinf(ours) and isinstance(theirs, float)  # as a plateau's best is before the first
            if not (is_infinite and theirs == ours):
                rules.number()(name, theirs)
        case None:
            _check_sound(name, theirs)
        case _ if type(theirs) is not type(ours):
            rules.refuse(name, f"a {type(ours).__name__}", theirs)


def _check_sound(name: str, value: object, depth: int = 8) -> None:
    """Raises `InputError` if the tensors in dicts and lists are not plain ones, or these lie deeper than `depth`."""
    match value:
        case Tensor():
            rules.dense(name, value)
        case dict() | list() | tuple():
            require(depth > 0, f"{name[:80]} must not hold so many dicts and lists in each other")
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                _check_sound(rules.inner(name, key), item, depth - 1)


def _is_close(a: object, b: object) -> bool:
    """Returns False if two settings are numbers, or hold some, that differ by more than rounding; or other values."""
    if isinstance(a, float | int) and isinstance(b, float | int):
        with suppress(OverflowError):  # a whole number too large for a float
            return a == b or math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
        return False
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_is_close, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_close(value, b[key]) for key, value in a.items())
    return a == b if isinstance(a, str) and isinstance(b, str) else True  # functions cannot be compared


def _is_of(instance: object, *packages: str) -> bool:
    return type(instance).__module__.partition(".")[0] in packages
