"""Says what each entry of a checkpoint must be, so that a changed file is refused before anything is restored from it.

An archive's checksums find a damaged file. This finds one that somebody, or another version, wrote differently. What
can be told without the training is here; `resumed_optimizer` has the states of optimiser and schedule.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae.common import InputError, generator_states_for, require, rules
from pyrovae.training.data_told import TRAINING
from pyrovae.training.early_stopping import EarlyStopping
from pyrovae.training.history import History, Position


def _dense_if_tensor(name: str, value: object) -> None:
    if isinstance(value, Tensor):
        rules.dense(name, value)


def _buffer(name: str, value: object) -> None:
    """A buffer may require gradients in the module, and does in checkpoints of older versions."""
    rules.dense(name, value.detach() if isinstance(value, Tensor) else value)


_COUNT = rules.nothing_or(rules.whole(1))
_TENSORS = rules.nothing_or(rules.each(rules.dense))
_SETTINGS = rules.fields(
    {"epochs": rules.whole(1), "patience": _COUNT},
    optional={"steps_per_epoch": _COUNT, "number of batches": _COUNT, "guide_steps": rules.whole(1)},
)
_RECORD = rules.fields(
    {
        "epoch": rules.whole(1),
        "loss": rules.number(),
        "elbo": rules.nothing_or(rules.real),  # of validation data to which a model gives no density it is infinite
        "reconstruction": rules.nothing_or(rules.real),
        "kl": rules.nothing_or(rules.real),
        "lr": rules.number(),
        "skipped": rules.nothing_or(rules.whole()),
        "seconds": rules.number(0),
    },
    optional=dict.fromkeys(
        ("train_reconstruction", "train_kl", "guide_lr"), rules.nothing_or(rules.real)
    ),  # older versions had none of them
)
_POSITION = rules.fields(
    {
        "epoch": rules.whole(1),
        "step": rules.whole(),
        "total": rules.number(),
        "count": rules.whole(),
        "skipped": rules.whole(),
        "seconds": rules.number(0),
        "done": rules.flag,
    },
    # Older versions had none of these, nor `last`, nor an identity.
    optional={"in_pass": rules.whole(), "guide_only": rules.whole(), "reconstruction": rules.real, "kl": rules.real},
)
_BEST = rules.fields({"elbo": rules.real, "waited": rules.whole(), "values": _TENSORS}, optional={"last": _TENSORS})
_IDENTITY = rules.fields(
    {
        "told": rules.all_of(rules.fields({TRAINING: rules.anything}), rules.table(rules.nothing_or(rules.text))),
        "start": rules.nothing_or(rules.real),
        "buffers": rules.table(rules.dense),
        "where": rules.text,
        "loss": rules.real,
        "gradient": rules.real,
    }
)
_GROUP = rules.fields({"params": rules.each(rules.whole())})
_CONTENT = rules.fields(
    {
        "settings": rules.all_of(_SETTINGS, rules.table(rules.plain)),
        "state": rules.table(_dense_if_tensor),  # a module of the user's own may keep something else there
        "buffers": rules.table(_buffer),
        "parameters": rules.table(rules.dense),
        "optimizer": rules.fields({"param_groups": rules.each(_GROUP), "state": rules.anything}),
        "scheduler": rules.table(rules.anything),
        "history": rules.each(_RECORD),
        "position": _POSITION,
        "best": _BEST,
    },
    optional={"identity": rules.nothing_or(_IDENTITY)},
)


def check_content(
    where: str, saved: Any, *, also: rules.Rule = rules.anything, generators: Sequence[torch.Generator] = ()
) -> None:
    """Checks what a checkpoint holds, as far as that can be told without the training.

    Args:
        where: The checkpoint's name in messages.
        saved: What was read from it.
        also: A rule for the entries that the caller put in.
        generators: The generators that the data draw from, which must take the states in it.

    Raises:
        InputError: An entry is missing, or something else than what a training writes; the message names it.
    """
    states = generator_states_for(generators)
    of_processes = rules.each(rules.items(states, rules.nothing_or(states)), at_least=1)
    try:
        rules.all_of(_CONTENT, rules.fields({"generators": of_processes}), also)("", saved)
        for index, record in enumerate(saved["history"]):
            rules.exactly(index + 1)(f"history[{index}].epoch", record["epoch"])
        _check_best(saved)
        _check_position(saved)
    except InputError as error:
        raise InputError(f"{where} is not readable: {error}") from None


def position_of(saved: Mapping[str, Any]) -> Position:
    """Returns the position that a checkpoint holds."""
    names = {one.name for one in dataclasses.fields(Position)}
    unknown = dict.fromkeys(("reconstruction", "kl"), math.nan if saved["position"]["step"] else 0.0)
    return Position(**{name: value for name, value in (unknown | saved["position"]).items() if name in names})


def history_of(saved: Mapping[str, Any]) -> History:
    """Returns the history that a checkpoint holds."""
    history = History()
    for record in saved["history"]:
        history.append({"train_reconstruction": None, "train_kl": None, **record})
    return history


def _check_position(saved: Mapping[str, Any]) -> None:
    """Checks the place in the training against its settings and the epochs that are done."""
    settings, position, num_done = saved["settings"], saved["position"], len(saved["history"])
    epochs, patience, per_epoch = settings["epochs"], settings["patience"], settings.get("steps_per_epoch")
    require(num_done <= epochs, f"history must have {epochs} records or less, got {num_done}")
    rules.exactly(num_done + 1)("position.epoch", position["epoch"])
    done = num_done == epochs or (patience is not None and saved["best"]["waited"] >= patience)
    rules.exactly(done)("position.done", position["done"])
    step, num_batches = position["step"], settings.get("number of batches")
    most = 0 if done else per_epoch or num_batches
    if most is not None:
        rules.whole(0, most)("position.step", step)
    rules.whole(0, step)("position.skipped", position["skipped"])
    if step == 0:
        rules.exactly(0)("position.count", position["count"])
        for name in ("total", "reconstruction", "kl"):
            rules.exactly(0.0)(f"position.{name}", position.get(name, 0.0))
    # As many batches are drawn again, which must come to an end.
    used = num_done * per_epoch + step if per_epoch else 0
    rules.whole(0, min(used, num_batches or used))("position.in_pass", position.get("in_pass", 0))
    rules.whole(0, settings.get("guide_steps", 1) - 1)("position.guide_only", position.get("guide_only", 0))
    for rank, (now, start) in enumerate(saved["generators"]):
        name = f"generators[{rank}][1]"
        in_the_middle = step or position.get("in_pass", 0)
        require(not (in_the_middle and start is None), f"{name} must be there in the middle of an epoch, got None")
        for kind in ("torch", "own") if start is not None else ():
            rules.items(*(rules.anything for _ in now[kind]))(f"{name}.{kind}", start[kind])


def _check_best(saved: Mapping[str, Any]) -> None:
    """Checks what early stopping has kept against the ELBOs of the epochs that are done."""
    best, elbos = saved["best"], []
    if saved["settings"]["patience"] is not None:
        elbos = [record["elbo"] for record in saved["history"]]
    for index, elbo in enumerate(elbos):
        rules.real(f"history[{index}].elbo", elbo)
    elbo, waited = EarlyStopping.standing(elbos)
    rules.exactly(elbo)("best.elbo", best["elbo"])
    rules.exactly(waited)("best.waited", best["waited"])
    has_best = elbo > -math.inf
    rule = "must have tensors" if has_best else "must be None, as no epoch has a validation ELBO"
    require((best["values"] is not None) == has_best, f"best.values {rule}")
    require(has_best or best.get("last") is None, f"best.last {rule}")
