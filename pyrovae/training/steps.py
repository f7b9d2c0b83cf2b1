"""Steps of the optimiser: a batch's gradients, clipped and applied if they are finite."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyrovae.common import InputError, first_line, is_validation_error, one_line
from pyrovae.data import Batch, scale_hint_of
from pyrovae.programs import not_finite
from pyrovae.training.fused_adam import FusedAdam
from pyrovae.training.pair_modules import copy_values
from pyrovae.training.preparation import Training
from pyrovae.training.saving import Saver
from pyrovae.training.settings import FitSettings

READ_EVERY = 50  # steps on a GPU


class Steps:
    """Takes steps, and adds their losses to the state's position once they are known to be finite.

    `gradients` computes the gradients of a batch, and `guide_gradients` those of the guide alone; the loop sets both to
    those of the epoch's objective.
    """

    def __init__(self, training: Training, settings: FitSettings, saver: Saver) -> None:
        self.training, self.state, self.settings, self.saver = training, training.state, settings, saver
        self.gradients, self.guide_gradients = training.gradients[1], training.guide_gradients.get(1)
        self.optimizer = FusedAdam(training.state.optimizer)
        self._unread: list[tuple[int, Batch, Tensor | list[float]]] = []
        """The number, batch and outcome of the steps whose outcome has not been read from the device."""

    def take(self, index: int, batch: Batch) -> None:
        """Takes step number `index` of the epoch on this batch.

        Of every `guide_steps` steps, each of which moves the guide, the last moves the model, too.
        """
        state, skip = self.state, self.settings.nonfinite == "skip"
        is_last = state.position.guide_only + 1 == self.settings.guide_steps
        gradients = self.gradients if is_last or self.guide_gradients is None else self.guide_gradients
        before = [b.clone() for b in state.buffers.values()] if skip else []
        try:
            loss, norm, count, terms, requests = gradients(batch, self.saver.requests())
        except ValueError as error:
            if isinstance(error, InputError) or not is_validation_error(error):
                raise
            raise FloatingPointError(self._diverged(index, batch, first_line(error), error)) from error
        # Reading a GPU's numbers means waiting for it. A CPU's are read at once, so that a bad step is never taken.
        on_cpu, outcome = norm.device.type == "cpu", (loss, norm, count, *terms, *requests)
        if on_cpu:
            self._unread.append((index, batch, [float(number) for number in outcome]))
        else:
            numbers = [n if isinstance(n, Tensor) else loss.new_tensor(n) for n in outcome]
            self._unread.append((index, batch, torch.stack(numbers)))
        at_once = on_cpu or skip or len(self._unread) == READ_EVERY
        if at_once and not self.add_up():
            copy_values(list(state.buffers.values()), before)
            return
        self._clip(norm)
        self.optimizer.step()
        state.position.guide_only = 0 if is_last else state.position.guide_only + 1
        for parameter in state.parameters.values():  # the next step then writes its gradients where the cache has these
            parameter.grad = None

    def _clip(self, norm: Tensor) -> None:
        """Clips the gradients, whose norm is given: all together, or those of model and guide each by themselves."""
        most, sides = self.settings.max_grad_norm, self.training.sides
        if isinstance(most, Mapping):
            assert sides is not None  # a setting by side needs them
            for side, limit in most.items():
                nn.utils.clip_grad_norm_(sides.of(side), limit)
        elif most is not None:
            nn.utils.clip_grads_with_norm_(list(self.state.parameters.values()), most, norm)

    def add_up(self) -> bool:
        """Reads the outcomes of the steps since the last reading; returns True if the last of them was finite.

        Raises `FloatingPointError` on a step that was not finite, unless such steps are skipped.
        """
        if not self._unread:
            return True
        unread, outcomes = self._unread, [outcome for _, _, outcome in self._unread]
        tensors = [outcome for outcome in outcomes if isinstance(outcome, Tensor)]
        values = torch.stack(tensors).tolist() if tensors else outcomes
        self._unread, finite, position = [], True, self.state.position
        for (step, batch, _), (loss, norm, count, reconstruction, kl, *requests) in zip(unread, values, strict=True):
            finite = math.isfinite(loss) and math.isfinite(norm)
            self.saver.accept(requests)
            if finite:
                position.total += loss
                position.count += round(count)
                position.reconstruction += reconstruction
                position.kl += kl
            elif self.settings.nonfinite == "skip":
                position.skipped += 1
            else:
                model, guide = self.training.vae.model, self.training.vae.guide
                num_particles, reading = self.gradients.num_particles, self.gradients.reading
                site = not_finite(model, guide, *batch, num_particles=num_particles, reading=reading)
                detail = f"loss {loss}, norm of the gradient {norm}; {site}"
                raise FloatingPointError(self._diverged(step, batch, detail))
        return finite

    def _diverged(self, step: int, batch: Batch, detail: str, error: ValueError | None = None) -> str:
        where = f"loss or gradient is not finite at epoch {self.state.position.epoch}, step {step} ({detail})"
        large = scale_hint_of(self.training.vae, self.training.source, batch, error)
        return one_line(f"{large}training diverged: {where}")
