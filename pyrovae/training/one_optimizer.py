"""Steps the optimisers that a `PyroOptim` keeps, one for each parameter, in one call: most of a small step's time."""

import copy
from collections import defaultdict
from collections.abc import Sequence

import torch
from pyro.optim import PyroOptim
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from pyrovae.training.fused_adam import FusedAdam

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
# Those that treat each parameter by itself.
_KNOWN = (*_FUSED, torch.optim.RMSprop, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
          ClippedAdam, AdagradRMSProp)  # fmt: skip


class OneOptimizer:
    """Does what `optim(parameters)` does, in one call of one optimiser where all have one class and one setting.

    The optimisers of `optim` stay as they were, with the state of the one: it shares their state and follows their
    settings. Where they differ, as under a scheduler or with a learning rate for each parameter, they are called one by
    one.

    Args:
        optim: The optimiser.
        fused: Whether one kernel may do the step, which rounds differently.
    """

    def __init__(self, optim: PyroOptim, fused: bool) -> None:
        self.optim, self.fused = optim, fused
        self._parameters: Sequence[Tensor] = ()
        self._one: FusedAdam | None = None
        self._settings: tuple = ()
        self._parts: list[tuple[Tensor, torch.optim.Optimizer, dict]] = []

    def step(self, parameters: list[Tensor]) -> None:
        """Takes a step of the parameters."""
        if self._one is None or parameters is not self._parameters or not self._fits():
            self.optim(parameters)
            self._join(parameters)
            return
        for parameter in parameters:
            clip = self.optim.grad_clip[parameter]
            if clip is not None:
                clip(parameter)
        self._one.step()
        settings = _settings_of(self._one.optimizer)
        if settings != self._settings:  # some change their own learning rate
            self._settings = settings
            for _, own, _ in self._parts:
                own.param_groups[0].update(zip(_names_of(own), settings, strict=True))

    def _fits(self) -> bool:
        """Returns True if nobody has changed the parts since the last step."""
        known = self.optim.optim_objs
        return all(
            known.get(parameter) is own
            and own.state.get(parameter) is state
            and _settings_of(own) == self._settings
            and not _has_hooks(own)
            and (parameter.grad is None or not parameter.grad.is_sparse)
            for parameter, own, state in self._parts
        )

    def _join(self, parameters: list[Tensor]) -> None:
        self._one, self._parameters = None, parameters
        if type(self.optim).__call__ is not PyroOptim.__call__:  # a subclass that does something of its own
            return
        owns = [self.optim.optim_objs[parameter] for parameter in parameters]
        if not owns or type(owns[0]) not in _KNOWN or any(type(own) is not type(owns[0]) for own in owns):
            return
        settings = [_settings_of(own) for own in owns]
        differ = settings.count(settings[0]) != len(owns)
        if differ or any(len(own.param_groups) != 1 or _has_hooks(own) for own in owns):
            return
        if not all(value is None or isinstance(value, float | int | str | tuple) for value in settings[0]):
            return
        self._parts = [(parameter, own, own.state[parameter]) for parameter, own in zip(parameters, owns, strict=True)]
        self._settings, one = settings[0], copy.copy(owns[0])
        one.state = defaultdict(dict, {parameter: state for parameter, _, state in self._parts})
        one.param_groups = [{**owns[0].param_groups[0], "params": list(parameters)}]
        group = one.param_groups[0]
        if self.fused and type(owns[0]) in _FUSED and group.get("foreach") is None and group.get("fused") is None:
            group["fused"] = all(map(_may_be_fused, parameters))
        self._one = FusedAdam(one)


def _may_be_fused(parameter: Tensor) -> bool:
    is_sparse = parameter.grad is not None and parameter.grad.is_sparse
    return parameter.device.type == "cpu" and parameter.is_floating_point() and not is_sparse


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def _names_of(optimizer: torch.optim.Optimizer) -> list[str]:
    return [name for name in optimizer.param_groups[0] if name not in ("params", "fused")]


def _settings_of(optimizer: torch.optim.Optimizer) -> tuple:
    return tuple(value for name, value in optimizer.param_groups[0].items() if name not in ("params", "fused"))
