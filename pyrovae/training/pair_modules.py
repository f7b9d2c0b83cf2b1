"""The modules and buffers that a pair is made from, and blocks after which their modes and values are as before."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from pyrovae.common import CapturedState, modules_within
from pyrovae.programs import ProgramPair


def buffers_of(vae: ProgramPair) -> dict[str, Tensor]:
    """Returns all buffers by name, including those that a state_dict leaves out.

    For a plain pair they are the buffers of the modules that its model and guide use.
    """
    if isinstance(vae, nn.Module):
        return dict(vae.named_buffers())
    return {f"{i} {name}": place[name] for i, (place, name) in enumerate(CapturedState((vae.model, vae.guide)).buffers)}


def modules_of(vae: ProgramPair) -> list[nn.Module]:
    """Returns the modules that the pair is made from."""
    return list(vae.modules()) if isinstance(vae, nn.Module) else modules_within((vae.model, vae.guide))


@contextmanager
def kept_modes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restores the mode of each module after the block."""
    before = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


@contextmanager
def in_mode(training: bool, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Puts the modules in training or evaluation mode within the block; after it each has its former mode again."""
    with kept_modes(modules):
        for module in modules:
            module.train(training)
        yield


def in_training_mode(vae: object) -> AbstractContextManager[None]:
    """Returns a block in which the pair has the mode of a training step.

    A step puts a module in training mode. The modules of a plain pair keep the mode that their owner gave them.
    """
    return in_mode(True, list(vae.modules()) if isinstance(vae, nn.Module) else [])


@contextmanager
def kept_values(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restores the values of the tensors after the block."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        copy_values(tensors, before)


@contextmanager
def kept_values_on_error(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restores the values of the tensors if the block fails."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        copy_values(tensors, before)
        raise


@torch.no_grad()
def copy_values(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Writes the values into the tensors, in place."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
