"""The state of a training as a checkpoint has it, and how it is put back."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyrovae.common import (
    CapturedState,
    InputError,
    all_generator_states,
    derived_seed,
    require,
    set_all_generator_states,
    warn,
)
from pyrovae.training.checkpoints import check_versions
from pyrovae.training.history import Position

if TYPE_CHECKING:
    from pyrovae.training.loop import Loop


def state_of(loop: "Loop") -> dict[str, object]:
    """All that the steps of a training change, but for the generators, as tensors and plain values."""
    return {
        "settings": loop.settings,
        "state": loop.vae.state_dict() if isinstance(loop.vae, nn.Module) else {},
        "buffers": loop.buffers,
        "parameters": {name: parameter.detach() for name, parameter in loop.parameters.items()},
        "optimizer": loop.optimizer.state_dict(),
        "scheduler": loop.scheduler.state_dict(),
        "history": loop.history.records(),
        "position": asdict(loop.position),
        "best": {"elbo": loop.best.elbo, "waited": loop.best.waited, "values": loop.best.values},
        "identity": loop.identity.state(),
    }


@torch.no_grad()
def restore(loop: "Loop", state: dict) -> None:
    """Puts a training as `state` has it. Raises `InputError`, with nothing changed, where it is another's."""
    where, identity = f"the checkpoint in {loop.checkpoints.folder}", state.get("identity")
    try:
        best, position, generators = state["best"], Position(**state["position"]), state["generators"]
        for name in loop.settings:
            was, now = state["settings"].get(name), loop.settings[name]
            require(was == now, f"{where} was written with {name} {was!r}, and {name} is now {now!r}")
        for ours, theirs in ((loop.parameters, state["parameters"]), (loop.buffers, state["buffers"])):
            check_fits(where, "the model", ours, theirs)
        if identity is not None:  # as checkpoints of older versions have none
            loop.identity.check(where, identity, state["buffers"], loop.checkpoints.repeated)
        _load_optimizer(loop.optimizer, state["optimizer"])
        loop.optimizer._opt_called = True  # before: else torch warns of an epoch that has no step left
        loop.scheduler.load_state_dict(state["scheduler"])
        for record in state["history"]:
            loop.history.append(record)
        with put_back_on_error([*loop.parameters.values(), *loop.buffers.values()]):
            for ours, theirs in ((loop.parameters, state["parameters"]), (loop.buffers, state["buffers"])):
                for name, tensor in ours.items():
                    tensor.copy_(theirs[name])
            if identity is not None:
                found = loop.identity.measured() if loop.workers.is_first else None
                loop.identity.check_model(where, identity, loop.workers.agreed_value(found))
        loop.identity.go_on_as(identity or {"start": None, "buffers": {}})
        loop.position, loop.best.elbo, loop.best.waited = position, best["elbo"], best["waited"]
        if best["values"] is not None:
            pairs = zip(loop.best.tensors, best["values"], strict=True)
            loop.best.values = [value.to(tensor.device) for tensor, value in pairs]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is not one of this training ({type(error).__name__}: {error})") from error
    check_versions(state)
    _restore_generators(loop, generators)


def _restore_generators(loop: "Loop", generators: list) -> None:
    now, start = generators[loop.workers.rank] if len(generators) == loop.workers.size else (None, None)
    here = all_generator_states(loop.generators)
    if now is not None and all(len(now[kind]) == len(here[kind]) for kind in ("torch", "own")):
        set_all_generator_states(now, loop.generators)
        loop.epoch_start = start
        return
    then = f"{len(generators)} processes with {len(generators[0][0]['torch'])} of torch's generators"
    now = f"{loop.workers.size} with {len(here['torch'])}"
    warn(
        f"the checkpoint was written by {then} each, and here are {now}: its epoch is begun again, with other "
        "random numbers"
    )
    torch.manual_seed(derived_seed(loop.position.epoch, f"process {loop.workers.rank} of {loop.workers.size}"))
    loop.position = Position(loop.position.epoch, done=loop.position.done)


def buffers_of(vae: object) -> dict[str, Tensor]:
    """All buffers, also those that a state_dict leaves out, and those of the modules that a plain pair is made from."""
    if isinstance(vae, nn.Module):
        return dict(vae.named_buffers())
    return {f"{i} {name}": place[name] for i, (place, name) in enumerate(CapturedState((vae.model, vae.guide)).buffers)}


def modules_of(vae: object) -> list[nn.Module]:
    """Returns those that the pair is made from."""
    if isinstance(vae, nn.Module):
        return list(vae.modules())
    return [thing for thing in CapturedState((vae.model, vae.guide)).objects if isinstance(thing, nn.Module)]


@contextmanager
def in_mode(training: bool, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block they are in training or in evaluation mode; after it each is in the mode that it was in."""
    before = [(module, module.training) for module in modules]
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


def in_training_mode(vae: object) -> AbstractContextManager[None]:
    """Returns a block in which the pair is as in a step, where a plain pair's modules keep the mode they were given."""
    return in_mode(True, list(vae.modules()) if isinstance(vae, nn.Module) else [])


@contextmanager
def kept_values(tensors: Sequence[Tensor]) -> Iterator[None]:
    """After the block the tensors hold what they held before it."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        put(tensors, before)


@contextmanager
def put_back_on_error(tensors: Sequence[Tensor]) -> Iterator[None]:
    """After a block that failed the tensors hold what they held before it."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        put(tensors, before)
        raise


@torch.no_grad()
def put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def check_fits(where: str, what: str, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Both hold the same names, shapes and dtypes; the first that differs is named."""
    for name in sorted(expected.keys() | found.keys()):
        ours, theirs = (tuple(d[name].shape) if name in d else None for d in (expected, found))
        require(ours == theirs, f"{where} does not fit {what}: {name} must have shape {ours}, got {theirs}")
        ours, theirs = expected[name].dtype, found[name].dtype
        require(ours == theirs, f"{where} does not fit {what}: {name} must be of {ours}, got {theirs}")


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """`load_state_dict` casts an optimiser's numbers to its parameters' dtype; here they have what they had."""
    optimizer.load_state_dict(state)
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved["params"], strict=True):
            for name, value in state["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    ours = optimizer.state[parameter][name]
                    optimizer.state[parameter][name] = ours if ours.dtype == value.dtype else value.to(ours.device)
