"""Calls the kernel of PyTorch's fused Adam and AdamW alone, as the Python around it takes longer in a small step."""

from collections.abc import Callable
from operator import is_
from typing import cast

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from pyrovae.common import on_one_thread

MAX_ELEMENTS_OF_ONE_THREAD = 32_768  # of a parameter; torch gives so many to one thread in all its other loops

_KERNELS = getattr(torch, "_fused_adam_", None), getattr(torch, "_fused_adamw_", None)


class FusedAdam:
    """Does what `optimizer.step()` does, to the bit, for any optimiser of `torch.optim` that steps without a closure.

    A fused Adam or AdamW on the CPU is stepped by its kernel alone, as long as nothing hangs on `step`. Settings and
    state are read from the optimiser at every step, so that a schedule, `load_state_dict` or a change by hand counts at
    once. The numbers of steps of a group's parameters become parts of one tensor, which are counted up together.

    Args:
        optimizer: The optimiser.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._is_known = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) and None not in _KERNELS
        self._counts: dict[int, tuple[Tensor, list[Tensor], bool]] = {}

    def step(self) -> None:
        """Takes a step."""
        optimizer = self.optimizer
        if not self._is_known or not _is_plain(optimizer):
            optimizer.step()
            return
        calls = [_arguments(group, optimizer.state) for group in optimizer.param_groups]
        if None in calls:
            optimizer.step()
            return
        with torch.no_grad():
            for place, call in enumerate(calls):
                assert call is not None
                tensors, states, settings = call
                group = optimizer.param_groups[place]
                is_decoupled = group.get("decoupled_weight_decay", type(optimizer) is torch.optim.AdamW)
                kernel = cast(Callable, _KERNELS[is_decoupled])
                counts, is_small = self._count_up(place, states)
                if is_small:
                    on_one_thread(kernel, *tensors, [], counts, **settings)
                else:
                    kernel(*tensors, [], counts, **settings)

    def _count_up(self, place: int, states: list[dict]) -> tuple[list[Tensor], bool]:
        """Adds 1 to the number of steps of each parameter of a group, and returns them and whether all are small."""
        steps = [state["step"] for state in states]
        whole, parts, is_small = self._counts.get(place, (None, [], False))
        if whole is None or len(parts) != len(steps) or not all(map(is_, parts, steps)):
            whole = torch.stack(steps)
            parts = list(whole.unbind())
            is_small = all(state["exp_avg"].numel() <= MAX_ELEMENTS_OF_ONE_THREAD for state in states)
            self._counts[place] = whole, parts, is_small
            for state, part in zip(states, parts, strict=True):
                state["step"] = part
        whole.add_(1)
        return parts, is_small


def _is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether `step` is the class's own and has no hooks; a schedule of the learning rate may watch it."""
    step = vars(optimizer).get("step")
    if step is not None:
        watched = getattr(step, "_wrapped_by_lr_sched", False)
        if not watched or getattr(step, "__wrapped__", None) is not type(optimizer).step:
            return False
        optimizer._opt_called = True  # type: ignore[attr-defined]  # what the schedule watches for
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    of_all = torch_optimizer._global_optimizer_pre_hooks or torch_optimizer._global_optimizer_post_hooks
    return not (own or of_all or hasattr(optimizer, "grad_scale") or hasattr(optimizer, "found_inf"))


def _arguments(group: dict, state: dict) -> tuple[tuple[list[Tensor], ...], list[dict], dict] | None:
    """Returns the kernel's tensors, the parameters' states and the kernel's settings; None if it cannot be called."""
    parameters = group["params"]
    gradients = [parameter.grad for parameter in parameters]
    states = [state.get(parameter) for parameter in parameters]
    learning_rate, betas = group["lr"], group["betas"]
    unusual = not group["fused"] or group["amsgrad"] or group["differentiable"] or group["capturable"]
    if unusual or not all(isinstance(number, float | int) for number in (learning_rate, *betas)):
        return None
    if not parameters or any(g is None or g.is_sparse for g in gradients) or not all(states):
        return None
    if any(p.dtype is not parameters[0].dtype or not p.is_cpu for p in parameters):
        return None
    moments = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]  # type: ignore[index]
    settings = {name: group[name] for name in ("weight_decay", "eps", "maximize", "amsgrad")}
    settings |= {"lr": learning_rate, "beta1": betas[0], "beta2": betas[1], "grad_scale": None, "found_inf": None}
    return (parameters, gradients, *moments), states, settings  # type: ignore[return-value]
