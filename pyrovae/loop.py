"""The training loop: steps and epochs, whose whole state can be written down and gone on from, to the bit."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrovae.batches import VALIDATION_CHUNK, Batch, Batches
from pyrovae.checkpoints import Checkpoints, check_versions
from pyrovae.errors import InputError, first_line, require, warn
from pyrovae.interrupts import Interrupts
from pyrovae.objectives.pair import not_finite, run_pair
from pyrovae.rng import all_states, derived_seed, local_seed, set_all_states
from pyrovae.watch import Watch
from pyrovae.workers import Workers

VALIDATION_SEED = 0
READ_EVERY = 50  # steps on a GPU
NONFINITE = ("stop", "skip")


@dataclass
class History:
    """One entry per epoch; everything in nats per datum.

    `loss` is minus the training objective, averaged over the epoch's data as the parameters moved. `elbo`,
    `reconstruction` (E_q[log p(x|z)]) and `kl` (E_q[log q(z|x) - log p(z)]) are of the validation data after the
    epoch, at beta = 1, with elbo = reconstruction - kl; None where there are no validation data. `skipped` counts the
    steps that were left out because loss or gradient was not finite; None where such a step stops the training.
    """

    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    elbo: list[float | None] = field(default_factory=list)
    reconstruction: list[float | None] = field(default_factory=list)
    kl: list[float | None] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    skipped: list[int | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def append(self, record: dict[str, float | None]) -> None:
        for name in vars(self):
            getattr(self, name).append(record[name])

    def records(self) -> list[dict[str, float | None]]:
        columns = asdict(self)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@dataclass
class _Position:
    """How far the training is: in `epoch`, `step` of its batches are done, with sums over their `count` data."""

    epoch: int = 1
    step: int = 0
    total: float = 0.0
    count: int = 0
    skipped: int = 0
    seconds: float = 0.0
    done: bool = False


class Loop:
    """Epochs of steps over the batches of `train`, in place.

    `gradients(*batch)` sets the parameters' `.grad`, per datum, and gives the loss, summed over the data, and the norm
    of the gradient. `set_beta` takes the share of the training that is done. `generators` are those that the data draw
    from, besides the usual ones. `settings` are plain values that a checkpoint must have been written under. Where
    there are several workers each has its rows of every batch, and the gradients are those of the whole batch.
    """

    def __init__(
        self,
        vae: object,
        parameters: dict[str, Tensor],
        gradients: Callable[..., tuple[Tensor, Tensor]],
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
        num_particles: int,
        checkpoints: Checkpoints | None,
        generators: list[torch.Generator],
        settings: dict[str, object],
    ) -> None:
        self.vae, self.parameters, self.gradients = vae, parameters, gradients
        self.optimizer, self.scheduler, self.train, self.held_out = optimizer, scheduler, train, held_out
        self.epochs, self.set_beta, self.max_grad_norm = epochs, set_beta, max_grad_norm
        self.nonfinite, self.num_particles = nonfinite, num_particles
        self.checkpoints, self.settings, self.workers = checkpoints, settings, Workers()
        self.generators = generators
        self.history, self.position = History(), _Position()
        self.buffers = _buffers_of(vae)
        self.best = _Best([*parameters.values(), *self.buffers.values()], patience)
        self.epoch_start: dict[str, object] | None = None
        """The generators as they were when the epoch that is being trained began."""
        self._interrupts = Interrupts()
        self._unread: list[tuple[int, Batch, Tensor]] = []
        self._save_wanted = self._stop_wanted = False

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
            on_start(self.history)
            bar.update(len(self.history.epoch))
            while not self.position.done:
                before_epoch(self.position.epoch)
                record = self._epoch()
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

    # Epochs and steps -------------------------------------------------------------------------------------------------

    def _epoch(self) -> dict[str, float | None]:
        position, before, started = self.position, self.position.seconds, time.perf_counter()
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
        require(position.count > 0, f"every step of epoch {position.epoch} was skipped: none had a finite gradient")
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
        self.position = _Position(position.epoch + 1, done=enough or position.epoch == self.epochs)
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
            self.epoch_start = all_states(self.generators)
        else:  # an epoch that is gone on with has the same order, and what its batches drew moved the generators
            now = all_states(self.generators)
            set_all_states(self.epoch_start, self.generators)
        if isinstance(self.vae, nn.Module):
            self.vae.train()
        epoch = self.train()
        self.num_batches = epoch.num_batches or math.inf  # of which no share is known
        batches = iter(epoch)
        for _ in range(self.position.step):
            require(next(batches, None) is not None, "the data must be those of the checkpoint, and have fewer batches")
        if now is not None:
            set_all_states(now, self.generators)
        return batches

    def _step(self, index: int, batch: Batch) -> None:
        before = [b.clone() for b in self.buffers.values()] if self.nonfinite == "skip" else []
        try:
            loss, norm, count = self._gradients(batch)
        except InputError:
            raise
        except ValueError as error:  # Pyro's validation: a parameter of a distribution is no longer one
            raise FloatingPointError(self._diverged(index, first_line(error))) from error
        outcome = torch.stack((loss, norm / self.workers.size, count, *loss.new_tensor(self._wishes())))
        self._unread.append((index, batch, self.workers.total(outcome)))
        # To read a GPU's numbers is to wait for it; on a CPU it is not, and a bad step is found before it is taken.
        at_once = norm.device.type == "cpu" or self.nonfinite == "skip" or len(self._unread) == READ_EVERY
        if at_once and not self._read():
            for buffer, value in zip(self.buffers.values(), before, strict=True):
                buffer.copy_(value)
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
        except InputError:
            raise
        except ValueError:
            if self.nonfinite == "stop":
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
                raise FloatingPointError(self._diverged(step, f"loss {loss}, norm of the gradient {norm}; {site}"))
        return finite

    def _diverged(self, step: int, detail: str) -> str:
        return (
            f"training diverged: loss or gradient is not finite at epoch {self.position.epoch}, step {step} ({detail})"
        )

    @torch.no_grad()
    def _validate(self) -> dict[str, float | None]:
        if self.held_out is None:
            return {"elbo": None, "reconstruction": None, "kl": None}
        if isinstance(self.vae, nn.Module):
            self.vae.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        with local_seed(VALIDATION_SEED):  # what the source of the data draws is none of the training's, either
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
        except InputError:
            raise
        except ValueError as error:
            message = f"training diverged in epoch {self.position.epoch} ({first_line(error)})"
            raise FloatingPointError(message) from error
        kl = terms.log_posterior - terms.log_prior
        return torch.tensor([terms.log_likelihood.sum().item(), kl.sum().item(), len(chunk[0])], dtype=torch.float64)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _resume(self) -> bool:
        """Puts everything as the last checkpoint has it, if there is one; whether there was."""
        state = None
        if self.checkpoints is not None:  # of the first process alone: others may see another folder, or a later one
            state = self.workers.agreed_value(self.checkpoints.load() if self.workers.is_first else None)
        if state is not None:
            self._restore(state)
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
        generators = self.workers.gathered((all_states(self.generators), self.epoch_start))
        if self.workers.is_first:
            self.checkpoints.save({**self._state(), "generators": generators})

    def _state(self) -> dict[str, object]:
        return {
            "settings": self.settings,
            "state": self.vae.state_dict() if isinstance(self.vae, nn.Module) else {},
            "buffers": self.buffers,
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history.records(),
            "position": asdict(self.position),
            "best": {"elbo": self.best.elbo, "waited": self.best.waited, "values": self.best.values},
        }

    @torch.no_grad()
    def _restore(self, state: dict) -> None:
        where = f"the checkpoint in {self.checkpoints.folder}"
        try:
            best, position, generators = state["best"], _Position(**state["position"]), state["generators"]
            for name in self.settings:
                was, now = state["settings"].get(name), self.settings[name]
                require(was == now, f"{where} was written with {name} {was!r}, and {name} is now {now!r}")
            for ours, theirs in ((self.parameters, state["parameters"]), (self.buffers, state["buffers"])):
                check_fits(where, "the model", ours, theirs)
            _load_optimizer(self.optimizer, state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            for record in state["history"]:
                self.history.append(record)
            for ours, theirs in ((self.parameters, state["parameters"]), (self.buffers, state["buffers"])):
                for name, tensor in ours.items():
                    tensor.copy_(theirs[name])
            self.position, self.best.elbo, self.best.waited = position, best["elbo"], best["waited"]
            if best["values"] is not None:
                pairs = zip(self.best.tensors, best["values"], strict=True)
                self.best.values = [value.to(tensor.device) for tensor, value in pairs]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where} is not one of this training ({type(error).__name__}: {error})") from error
        check_versions(state)
        self._restore_generators(generators)

    def _restore_generators(self, generators: list) -> None:
        now, start = generators[self.workers.rank] if len(generators) == self.workers.size else (None, None)
        here = all_states(self.generators)
        if now is not None and all(len(now[kind]) == len(here[kind]) for kind in ("torch", "own")):
            set_all_states(now, self.generators)
            self.epoch_start = start
            return
        then = f"{len(generators)} processes with {len(generators[0][0]['torch'])} of torch's generators"
        now = f"{self.workers.size} with {len(here['torch'])}"
        warn(
            f"the checkpoint was written by {then} each, and here are {now}: its epoch is begun again, with other "
            "random numbers"
        )
        torch.manual_seed(derived_seed(self.position.epoch, f"process {self.workers.rank} of {self.workers.size}"))
        self.position = _Position(self.position.epoch, done=self.position.done)

    @property
    def _any_parameter(self) -> Tensor:
        return next(iter(self.parameters.values()))


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """`load_state_dict` casts an optimiser's numbers to its parameters' dtype; here they have what they had."""
    optimizer.load_state_dict(state)
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved["params"], strict=True):
            for name, value in state["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    ours = optimizer.state[parameter][name]
                    optimizer.state[parameter][name] = ours if ours.dtype == value.dtype else value.to(ours.device)


def _buffers_of(vae: object) -> dict[str, Tensor]:
    """All buffers, also those that a state_dict leaves out, and those of the modules that a plain pair is made from."""
    if isinstance(vae, nn.Module):
        return dict(vae.named_buffers())
    return {f"{i} {name}": place[name] for i, (place, name) in enumerate(Watch((vae.model, vae.guide)).buffers)}


def check_fits(where: str, what: str, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Both hold the same names, shapes and dtypes; the first that differs is named."""
    for name in sorted(expected.keys() | found.keys()):
        ours, theirs = (tuple(d[name].shape) if name in d else None for d in (expected, found))
        require(ours == theirs, f"{where} does not fit {what}: {name} must have shape {ours}, got {theirs}")
        ours, theirs = expected[name].dtype, found[name].dtype
        require(ours == theirs, f"{where} does not fit {what}: {name} must be of {ours}, got {theirs}")


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

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, value in zip(self.tensors, self.values or self.tensors, strict=True):
            tensor.copy_(value)
