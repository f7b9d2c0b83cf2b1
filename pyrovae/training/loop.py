"""The training loop: epochs of steps, between any two of which the training can be written down and resumed."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pyro.infer import RenyiELBO
from torch import nn
from tqdm.auto import tqdm

from pyrovae.common import (
    InputError,
    Workers,
    all_generator_states,
    kept_generators,
    require,
    set_all_generator_states,
    warn,
)
from pyrovae.data import Batch, Epoch, scale_hint_of
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.history import History, Position
from pyrovae.training.optimizers import check_groups, step_schedule
from pyrovae.training.pair_modules import in_mode, kept_modes, modules_of
from pyrovae.training.preparation import Training
from pyrovae.training.saving import Saver
from pyrovae.training.settings import FitSettings
from pyrovae.training.steps import Steps


class Loop:
    """Trains a pair, in place, through the epochs that are left.

    Where there are several processes, each has its rows of every batch, and the gradients are those of the whole batch.
    """

    def __init__(self, training: Training, settings: FitSettings, checkpoints: Checkpoints | None) -> None:
        self.training, self.state = training, training.state
        self.settings, self.modules, self.workers = settings, modules_of(training.vae), Workers()
        self.saver = Saver(self.state, checkpoints)
        self.steps = Steps(training, settings, self.saver)
        self.num_batches = math.inf
        self._present: Iterator[Batch] | None = None
        """The batches left of the present pass, where an epoch is a number of steps."""

    def run(
        self, bar: tqdm, on_start: Callable[[History], None], on_epoch: Callable[[dict[str, float | None]], None]
    ) -> None:
        """Trains through the epochs that are left, after calling `on_start` with the history of those that are done."""
        state = self.state
        with self.saver.session(), kept_modes(self.training.fixed):
            had_ended = self.saver.start()
            state.history.loss_of = self.settings.loss_of
            with self._callback():
                on_start(state.history)
            bar.update(len(state.history.epoch))
            while not state.position.done:
                self._choose_objective()
                record = self._epoch()
                with self._callback():
                    on_epoch(record)
                terms = {k: f"{record[k]:.2f}" for k in ("loss", "elbo") if record[k] is not None}
                bar.set_postfix(terms, refresh=False)  # `update` shows it, beside the number of its epoch
                bar.update()
                if not state.position.done and self.saver.is_due_after_epoch():
                    self._save()
            state.early_stopping.restore_best()
            self.training.beta.restore()
            self.training.checks.check_registered()
            if not had_ended:
                self.saver.write()

    @contextmanager
    def _callback(self) -> Iterator[None]:
        """Undoes what a callback draws and which modes it sets; within it the pair is in evaluation mode."""
        with kept_generators(self.state.generators), in_mode(False, self.modules):
            yield

    def _choose_objective(self) -> None:
        """Switches to the objective of this epoch, once it is clear that no parameter is new."""
        training, epoch = self.training, self.state.position.epoch
        training.checks.check_registered()
        start = max(first for first in training.objectives if first <= epoch)
        self.steps.gradients, self.steps.guide_gradients = (
            training.gradients[start],
            training.guide_gradients.get(start),
        )
        if epoch > 1 and isinstance(training.objectives[start], RenyiELBO):  # a callback may have changed beta
            training.checks.check_again(training.objectives[start])

    def _save(self) -> None:
        self.steps.add_up()  # raises if a step went wrong, before it is written down
        self.saver.write_and_stop_if_requested()

    # Epochs -----------------------------------------------------------------------------------------------------------

    def _epoch(self) -> dict[str, float | None]:
        state, position = self.state, self.state.position
        batch: Batch = ()
        before, started = position.seconds, time.perf_counter()
        for index, batch in enumerate(self._until_a_signal(self._batches()), position.step + 1):
            self.training.beta.set((position.epoch - 1 + (index - 1) / self.num_batches) / self.settings.epochs)
            self.steps.take(index, batch)
            position.step = index
            if self.workers.size == 1:  # several processes have agreed on it before the step
                self.saver.accept(self.saver.requests())
            if self.saver.save_requested:
                position.seconds = before + time.perf_counter() - started
                self._save()
        self.steps.add_up()
        if position.count == 0:
            large = scale_hint_of(self.training.vae, self.training.source, batch)
            raise InputError(f"{large}every step of epoch {position.epoch} was skipped: none had a finite gradient")
        for buffer in state.buffers.values():  # the processes have seen different data, and take those of the first
            self.workers.agreed(buffer)
        terms = self.training.validation.terms(position.epoch)
        check_groups(state.optimizer, state.parameters.values(), position.epoch)
        rates = [float(group["lr"]) for group in state.optimizer.param_groups]
        by_side = isinstance(self.settings.lr, Mapping) and self.settings.train == "both"
        record = {
            "epoch": position.epoch,
            "loss": position.total / position.count,
            "train_reconstruction": position.mean_of(position.reconstruction),
            "train_kl": position.mean_of(position.kl),
            **terms,
            "lr": rates[0],
            "guide_lr": rates[1] if by_side else None,
        }
        step_schedule(state.scheduler, record)
        check_groups(state.optimizer, state.parameters.values(), position.epoch)
        record["skipped"] = position.skipped if self.settings.nonfinite == "skip" else None
        if position.skipped:
            warn(
                f"{position.skipped} of {position.step} steps of epoch {position.epoch} had no finite loss or gradient"
            )
        record["seconds"] = before + time.perf_counter() - started
        state.history.append(record)
        enough = state.early_stopping.should_stop(record["elbo"])
        done = enough or position.epoch == self.settings.epochs
        state.position = Position(
            position.epoch + 1, done=done, in_pass=position.in_pass, guide_only=position.guide_only
        )
        if self.settings.steps_per_epoch is None:
            state.epoch_start = None
        return record

    def _until_a_signal(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields the batches; if a signal has ended a DataLoader's processes, too, the training stops before a step."""
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError:
                if self.saver.interrupts.caught and self.workers.size == 1:
                    self.saver.accept(self.saver.requests())
                    self._save()
                raise
            yield batch

    def _batches(self) -> Iterator[Batch]:
        """Returns the batches of this epoch that are left."""
        if isinstance(self.training.vae, nn.Module):
            self.training.vae.train()
        for module in self.training.fixed:
            module.training = False
        if self.settings.steps_per_epoch is not None:
            self.num_batches = self.settings.steps_per_epoch
            return self._steps(self.settings.steps_per_epoch)
        epoch = self._pass(self.state.position.step)
        self.num_batches = epoch.num_batches or math.inf  # if it is not known, beta moves by whole epochs
        return epoch.batches

    def _steps(self, steps_per_epoch: int) -> Iterator[Batch]:
        """Yields the batches of this epoch that are left, from passes that go on from epoch to epoch."""
        state, position = self.state, self.state.position
        if self._present is None:
            self._present = self._pass(position.in_pass).batches
        for _ in range(position.step, steps_per_epoch):
            batch = next(self._present, None)
            if batch is None:
                state.epoch_start, position.in_pass = None, 0
                self._present = self._pass(0).batches
                batch = next(self._present)
            position.in_pass += 1
            yield batch

    def _pass(self, num_used: int) -> Epoch:
        """Begins a pass through the data, or resumes it: the batches already used are drawn again and skipped."""
        state, now = self.state, None
        if state.epoch_start is None:
            state.epoch_start = all_generator_states(state.generators)
        else:  # the order is drawn as when the epoch began; drawing it must not move the generators of the next step
            now = all_generator_states(state.generators)
            set_all_generator_states(state.epoch_start, state.generators)
        epoch = self.training.batches()
        for _ in range(num_used):
            skipped = next(epoch.batches, None)
            require(skipped is not None, "the data must be those of the checkpoint, and have fewer batches")
        if now is not None:
            set_all_generator_states(now, state.generators)
        return epoch
