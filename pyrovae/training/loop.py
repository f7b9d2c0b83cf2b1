"""The training loop: steps and epochs, whose whole state can be written down and gone on from, to the bit."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrovae.common import (
    InputError,
    Workers,
    all_generator_states,
    first_line,
    fixed_generators,
    is_validation_error,
    kept_generators,
    local_seed,
    require,
    set_all_generator_states,
    warn,
)
from pyrovae.data import VALIDATION_CHUNK, Batch, Batches, generators_of, scale_hint_of
from pyrovae.programs import not_finite, run_pair
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.fingerprint import Identity
from pyrovae.training.history import History, Position
from pyrovae.training.interrupts import Interrupts
from pyrovae.training.state import buffers_of, in_mode, modules_of, put, restore, state_of

VALIDATION_SEED = 0
READ_EVERY = 50  # steps on a GPU
NONFINITE = ("stop", "skip")


class Loop:
    """Epochs of steps over the batches of `train`, in place.

    `set_beta` takes the share of the training that is done. `source` is what `train` takes its batches from. `settings`
    are plain values that a checkpoint must have been written under, and `identity`, where there are checkpoints, says
    what else it must be of. Where there are several workers each has its rows of every batch, and the gradients are
    those of the whole batch.
    """

    def __init__(
        self,
        vae: object,
        parameters: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        scheduler: object,
        train: Batches,
        held_out: Batches | None,
        *,
        epochs: int,
        set_beta: Callable[[float], None],
        max_grad_norm: float | None,
        patience: int | None,
        nonfinite: str,
        checkpoints: Checkpoints | None,
        source: object,
        settings: dict[str, object],
        identity: Identity | None,
    ) -> None:
        self.vae, self.parameters = vae, parameters
        self.optimizer, self.scheduler, self.train, self.held_out = optimizer, scheduler, train, held_out
        self.epochs, self.set_beta, self.max_grad_norm = epochs, set_beta, max_grad_norm
        self.nonfinite = nonfinite
        self.checkpoints, self.settings, self.workers = checkpoints, settings, Workers()
        self.source, self.generators, self.identity = source, generators_of(source), identity
        self.modules = modules_of(vae)
        self.history, self.position = History(), Position()
        self.buffers = buffers_of(vae)
        self.best = _Best([*parameters.values(), *self.buffers.values()], patience)
        self.epoch_start: dict[str, object] | None = None
        """The generators as they were when the epoch that is being trained began."""
        self._interrupts = Interrupts()
        self._unread: list[tuple[int, Batch, Tensor]] = []
        self._save_wanted = self._stop_wanted = False

    def use(self, gradients: Callable[..., tuple[Tensor, Tensor]], num_particles: int) -> None:
        """From now on `gradients(*batch)` sets the parameters' `.grad`, per datum, and gives the loss, summed over the
        data, and the norm of the gradient; of an objective with so many draws of z."""
        self.gradients, self.num_particles = gradients, num_particles

    def run(
        self,
        bar: tqdm,
        on_start: Callable[[History], None],
        on_epoch: Callable[[dict[str, float | None]], None],
        before_epoch: Callable[[int], None],
        at_end: Callable[[], None],
    ) -> None:
        """The epochs that are left; `on_start` is called with the history of those that are done."""
        with ExitStack() as stack:
            if self.checkpoints is not None:
                stack.enter_context(self._interrupts)
                if self.workers.is_first:
                    stack.enter_context(self.checkpoints.held())
            resumed = self._resume()
            finished = self.position.done
            if not resumed:
                self.write_checkpoint()
            elif finished and self.workers.is_first and not self.checkpoints.repeated:
                warn(f"the training in {self.checkpoints.folder} had ended: it was loaded, and nothing was trained")
            with self._aside():
                on_start(self.history)
            bar.update(len(self.history.epoch))
            while not self.position.done:
                before_epoch(self.position.epoch)
                record = self._epoch()
                with self._aside():
                    on_epoch(record)
                bar.set_postfix({k: f"{record[k]:.2f}" for k in ("loss", "elbo") if record[k] is not None})
                bar.update()
                if not self.position.done:
                    self._write_after_epoch()
            self.best.restore()
            at_end()
            if not finished:
                self.write_checkpoint()
        if self._interrupts.caught:  # in the last epoch: there is nothing to stop, but what comes after it
            raise KeyboardInterrupt(self._interrupts.caught)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """A look at the training from outside, in evaluation mode: what it draws, and the modes it sets, are undone."""
        with kept_generators(self.generators), in_mode(False, self.modules):
            yield

    # Epochs and steps -------------------------------------------------------------------------------------------------

    def _epoch(self) -> dict[str, float | None]:
        position, before, started, batch = self.position, self.position.seconds, time.perf_counter(), ()
        for index, batch in enumerate(self._heeding(self._batches()), position.step + 1):
            self.set_beta((position.epoch - 1 + (index - 1) / self.num_batches) / self.epochs)
            self._step(index, batch)
            position.step = index
            if self.workers.size == 1:  # several have agreed on it before the step
                self._heed(self._wishes())
            if self._save_wanted:
                position.seconds = before + time.perf_counter() - started
                self._write()
        self._read()
        if position.count == 0:
            large = scale_hint_of(self.source, batch)
            raise InputError(f"{large}every step of epoch {position.epoch} was skipped: none had a finite gradient")
        lr = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        for buffer in self.buffers.values():  # of the first: what they have seen differs
            self.workers.agreed(buffer)
        terms = self._validate()
        record = {"epoch": position.epoch, "loss": position.total / position.count, **terms, "lr": lr}
        record["skipped"] = position.skipped if self.nonfinite == "skip" else None
        if position.skipped:
            warn(
                f"{position.skipped} of {position.step} steps of epoch {position.epoch} had no finite loss or gradient"
            )
        record["seconds"] = before + time.perf_counter() - started
        self.history.append(record)
        enough = self.best.is_enough(record["elbo"])
        self.position = Position(position.epoch + 1, done=enough or position.epoch == self.epochs)
        self.epoch_start = None
        return record

    def _heeding(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; a signal that also ended a DataLoader's processes is heeded as one between two steps."""
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError:
                if self._interrupts.caught and self.workers.size == 1:
                    self._heed(self._wishes())
                    self._write()
                raise
            yield batch

    def _batches(self) -> Iterator[Batch]:
        """The batches of this epoch that are left."""
        now = None
        if self.epoch_start is None:
            self.epoch_start = all_generator_states(self.generators)
        else:  # an epoch that is gone on with has the same order, and what its batches drew moved the generators
            now = all_generator_states(self.generators)
            set_all_generator_states(self.epoch_start, self.generators)
        if isinstance(self.vae, nn.Module):
            self.vae.train()
        epoch = self.train()
        self.num_batches = epoch.num_batches or math.inf  # of which no share is known
        batches = iter(epoch)
        for _ in range(self.position.step):
            require(next(batches, None) is not None, "the data must be those of the checkpoint, and have fewer batches")
        if now is not None:
            set_all_generator_states(now, self.generators)
        return batches

    def _step(self, index: int, batch: Batch) -> None:
        before = [b.clone() for b in self.buffers.values()] if self.nonfinite == "skip" else []
        try:
            loss, norm, count = self._gradients(batch)
        except ValueError as error:
            if isinstance(error, InputError) or not is_validation_error(error):
                raise
            raise FloatingPointError(self._diverged(index, batch, first_line(error))) from error
        outcome = torch.stack((loss, norm / self.workers.size, count, *loss.new_tensor(self._wishes())))
        self._unread.append((index, batch, self.workers.total(outcome)))
        # To read a GPU's numbers is to wait for it; on a CPU it is not, and a bad step is found before it is taken.
        at_once = norm.device.type == "cpu" or self.nonfinite == "skip" or len(self._unread) == READ_EVERY
        if at_once and not self._read():
            put(list(self.buffers.values()), before)
            return
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(list(self.parameters.values()), self.max_grad_norm, norm)
        self.optimizer.step()

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(loss summed over this worker's data, norm of the gradient per datum of the whole batch, number of data)."""
        count = len(batch[0])
        if self.workers.size == 1:
            loss, norm = self._guarded(batch)
            return loss, norm, loss.new_tensor(count)
        parameters = list(self.parameters.values())
        for parameter in parameters:
            parameter.grad = None
        loss = self._guarded(batch)[0] if count else parameters[0].new_zeros(())
        has = [parameter.grad is not None for parameter in parameters]
        sums = [
            (count * p.grad if given else torch.zeros_like(p)).flatten()
            for p, given in zip(parameters, has, strict=True)
        ]
        flat = torch.cat((*sums, loss.new_tensor([*map(float, has), count])))
        if not bool(loss.isfinite()):
            flat.fill_(math.nan)
        self.workers.total(flat)
        *sums, tail = flat.split([p.numel() for p in parameters] + [len(has) + 1])
        for parameter, total, given in zip(parameters, sums, tail[:-1].tolist(), strict=True):
            if given:
                parameter.grad = torch.empty_like(parameter).copy_((total / tail[-1]).view_as(parameter))
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return loss, norm, loss.new_tensor(count)

    def _guarded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The gradients; where steps that go wrong are skipped, one that Pyro's validation refuses is not finite."""
        try:
            return self.gradients(*batch)
        except ValueError as error:
            if self.nonfinite == "stop" or isinstance(error, InputError) or not is_validation_error(error):
                raise
            nan = self._any_parameter.new_tensor(math.nan)
            return nan, nan

    def _read(self) -> bool:
        """Adds up the steps since the last time, once they are finite; whether the last of them is to be taken."""
        if not self._unread:
            return True
        values, unread = torch.stack([outcome for _, _, outcome in self._unread]).tolist(), self._unread
        self._unread, finite = [], True
        for (step, batch, _), (loss, norm, count, *wishes) in zip(unread, values, strict=True):
            finite = math.isfinite(loss) and math.isfinite(norm)
            self._heed(wishes)
            if finite:
                self.position.total += loss
                self.position.count += round(count)
            elif self.nonfinite == "skip":
                self.position.skipped += 1
            else:
                site = not_finite(self.vae.model, self.vae.guide, *batch, num_particles=self.num_particles)
                detail = f"loss {loss}, norm of the gradient {norm}; {site}"
                raise FloatingPointError(self._diverged(step, batch, detail))
        return finite

    def _diverged(self, step: int, batch: Batch, detail: str) -> str:
        where = f"loss or gradient is not finite at epoch {self.position.epoch}, step {step} ({detail})"
        return f"{scale_hint_of(self.source, batch)}training diverged: {where}"

    @torch.no_grad()
    def _validate(self) -> dict[str, float | None]:
        if self.held_out is None:
            return {"elbo": None, "reconstruction": None, "kl": None}
        sums = torch.zeros(3, dtype=torch.float64)
        # What the source of the data draws is none of the training's, either.
        with in_mode(False, self.modules), fixed_generators(VALIDATION_SEED, self.generators):
            for index, chunk in enumerate(_chunks(self.held_out)):
                if self.workers.owns(index):
                    sums += self._validated(index, chunk)
        reconstruction, kl, count = self.workers.total(sums.to(self._any_parameter.device)).tolist()
        reconstruction, kl = reconstruction / count, kl / count
        return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    def _validated(self, index: int, chunk: Batch) -> Tensor:
        """Sums of reconstruction and KL, and the number of data."""
        try:
            with local_seed(VALIDATION_SEED + index):
                terms = run_pair(self.vae.model, self.vae.guide, *chunk).terms()
        except ValueError as error:
            if isinstance(error, InputError) or not is_validation_error(error):
                raise
            what = f"training diverged in epoch {self.position.epoch} ({first_line(error)})"
            raise FloatingPointError(f"{scale_hint_of(self.source, chunk)}{what}") from error
        kl = terms.log_posterior - terms.log_prior
        return torch.tensor([terms.log_likelihood.sum().item(), kl.sum().item(), len(chunk[0])], dtype=torch.float64)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _resume(self) -> bool:
        """Puts everything as the last checkpoint has it, if there is one; whether there was."""
        state = None
        if self.checkpoints is not None:  # of the first process alone: others may see another folder, or a later one
            state = self.workers.agreed_value(self.checkpoints.load() if self.workers.is_first else None)
        if state is not None:
            restore(self, state)
        else:
            for tensor in (*self.parameters.values(), *self.buffers.values()):
                self.workers.agreed(tensor.detach())
        return state is not None

    def _wishes(self) -> tuple[float, float]:
        """Whether this worker wants a checkpoint, and to stop."""
        stop = self._interrupts.caught > 0
        due = self.checkpoints is not None and self.workers.is_first and self.checkpoints.is_due()
        return float(stop or due), float(stop)

    def _heed(self, wishes: Iterable[float]) -> None:
        """What any worker wants, all do: none writes or stops alone."""
        save, stop = wishes
        self._save_wanted, self._stop_wanted = self._save_wanted or save > 0, self._stop_wanted or stop > 0

    def _write_after_epoch(self) -> None:
        if self.checkpoints is None:
            return
        self._heed(self.workers.total(self._any_parameter.new_tensor(self._wishes())).tolist())
        every = self.checkpoints.epochs
        if self._save_wanted or (every is not None and len(self.history.epoch) % every == 0):
            self._write()

    def _write(self) -> None:
        self._read()  # no step that went wrong is written down
        self._save_wanted = False
        self.write_checkpoint()
        if self._stop_wanted:
            raise KeyboardInterrupt(self._interrupts.caught or signal.SIGTERM)

    def write_checkpoint(self) -> None:
        if self.checkpoints is None:
            return
        generators = self.workers.gathered((all_generator_states(self.generators), self.epoch_start))
        if self.workers.is_first:
            self.checkpoints.save({**state_of(self), "generators": generators})

    @property
    def _any_parameter(self) -> Tensor:
        return next(iter(self.parameters.values()))


def _chunks(batches: Batches) -> Iterable[Batch]:
    for batch in batches():
        yield from zip(*(part.split(VALIDATION_CHUNK) for part in batch), strict=True)


class _Best:
    """The tensors of the best validation ELBO so far, kept only where early stopping asks for them."""

    def __init__(self, tensors: list[Tensor], patience: int | None) -> None:
        self.tensors, self.patience = tensors, patience
        self.elbo, self.waited, self.values = -math.inf, 0, None

    def is_enough(self, elbo: float | None) -> bool:
        if self.patience is None:
            return False
        if elbo > self.elbo:
            self.elbo, self.waited = elbo, 0
            self.values = [tensor.detach().clone() for tensor in self.tensors]
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self) -> None:
        put(self.tensors, self.values or self.tensors)
