"""The state of a training as a value, which can be written to a checkpoint and restored from it to the bit."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.common import (
    InputError,
    Workers,
    all_generator_states,
    derived_seed,
    first_line,
    require,
    set_all_generator_states,
    warn,
)
from pyrovae.programs import ProgramPair
from pyrovae.training.checkpoint_content import check_content, history_of, position_of
from pyrovae.training.early_stopping import EarlyStopping
from pyrovae.training.fingerprint import Fingerprint
from pyrovae.training.history import History, Position
from pyrovae.training.longer import check_resumed
from pyrovae.training.pair_modules import kept_values_on_error
from pyrovae.training.resumed_optimizer import check_groups, load_optimizer, load_schedule
from pyrovae.training.settings import FitSettings
from pyrovae.training.versions import Versions, check_versions


@dataclass
class TrainingState:
    """Everything that the steps of a training change, and what tells it from another training.

    Attributes:
        vae: the pair.
        parameters: its trained parameters by name.
        buffers: its buffers by name.
        optimizer: torch's optimiser of the parameters.
        scheduler: sets the optimiser's learning rate after each epoch.
        early_stopping: the best validation ELBO, with the parameters and buffers that gave it.
        generators: the generators that the data draw from, besides torch's, Python's and NumPy's own.
        given: the settings of `fit`.
        settings: the same as plain values, which must be those of a checkpoint that is resumed.
        fingerprint: tells this training's data, optimiser and model from others; None without checkpoints.
        versions: returns what decides the last bits of the numbers, besides all this.
        history: the epochs that are done.
        position: the place in the present epoch.
        epoch_start: the states of all generators when the present epoch began, or where an epoch is a number of steps,
            the present pass through the data; None between two of them.
    """

    vae: ProgramPair
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: Any
    early_stopping: EarlyStopping
    generators: list[torch.Generator]
    given: FitSettings
    settings: dict[str, object]
    fingerprint: Fingerprint | None
    versions: Callable[[], Versions]
    history: History = field(default_factory=History)
    position: Position = field(default_factory=Position)
    epoch_start: dict[str, object] | None = None

    def random_states(self) -> list[tuple[dict, dict | None]]:
        """Returns (generators now, generators when the epoch began) of every process, each of which must call this."""
        return Workers().gathered((all_generator_states(self.generators), self.epoch_start))

    def to_dict(self, random_states: list[tuple[dict, dict | None]]) -> dict[str, object]:
        """Returns the state as tensors and plain values, with the generators that `random_states` returned."""
        assert self.fingerprint is not None  # a training with checkpoints has one
        return {
            "versions": self.versions(),
            "settings": self.settings,
            "state": _detached(self.vae.state_dict()) if isinstance(self.vae, nn.Module) else {},
            "buffers": _detached(self.buffers),
            "parameters": _detached(self.parameters),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history.records(),
            "position": asdict(self.position),
            "best": self.early_stopping.to_dict(),
            "identity": self.fingerprint.to_dict(),
            "generators": random_states,
        }

    @torch.no_grad()
    def restore(self, saved: dict, where: str, same_start: bool) -> None:
        """Takes over what `to_dict` returned when a checkpoint was written.

        Args:
            saved: the content of the checkpoint.
            where: the checkpoint's name in messages.
            same_start: whether its training must have had the initial parameters of this one, too.

        Raises:
            InputError: if an entry is not what a training writes, or the checkpoint is of another training. Everything
                is then as before: tensors, optimiser, schedule, history and generators.
        """
        assert self.fingerprint is not None  # a training with checkpoints has one
        check_content(where, saved, generators=self.generators)
        position, identity = position_of(saved), saved.get("identity")  # which older checkpoints do not have
        check_resumed(where, saved["settings"], self.settings, self.given, position)
        tensors = ((self.parameters, saved["parameters"]), (self.buffers, saved["buffers"]))
        for ours, theirs in tensors:
            check_fits(where, "the model", ours, theirs)
        workers = Workers()
        with self._unchanged_on_error(), _named(where):
            if identity is not None:
                self.fingerprint.check(where, identity, saved["buffers"], same_start)
            self.early_stopping.restore(saved["best"])
            self._load_optimizer(where, saved)
            for ours, theirs in tensors:
                for name, tensor in ours.items():
                    is_lost = theirs[name].isnan().any() and not tensor.isnan().any()
                    require(not is_lost, f"{name} must hold numbers, got nan")
                    tensor.copy_(theirs[name])
            if identity is not None:
                found = self.fingerprint.loss_and_gradient() if workers.is_first else (math.nan, math.nan)
                self.fingerprint.check_model(where, identity, workers.agreed_value(found))
            self.history, self.position = history_of(saved), self._resumed(position, where)
            self.fingerprint.continue_from(identity or {"start": None, "buffers": {}})
            check_versions(saved.get("versions"), self.versions())
            self._restore_generators(saved["generators"], workers)

    def _load_optimizer(self, where: str, saved: dict) -> None:
        check_groups(where, self.optimizer, saved["optimizer"])
        is_named, same_length = not callable(self.given.schedule), saved["settings"]["epochs"] == self.given.epochs
        load_schedule(where, self.scheduler, self.optimizer, saved, is_named, same_length)
        load_optimizer(self.optimizer, saved["optimizer"])

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Undoes all that the block has changed, if it fails."""
        changed = (self, self.early_stopping, self.optimizer, self.scheduler, self.fingerprint)
        attributes = [(vars(owner), dict(vars(owner))) for owner in changed if hasattr(owner, "__dict__")]
        groups = [(group, dict(group)) for group in self.optimizer.param_groups]
        schedule, generators = copy.deepcopy(self.scheduler.state_dict()), all_generator_states(self.generators)
        try:
            with kept_values_on_error([*self.parameters.values(), *self.buffers.values()]):
                yield
        except BaseException:
            self.scheduler.load_state_dict(schedule)
            for content, was in (*attributes, *groups):
                content.clear()
                content.update(was)
            set_all_generator_states(generators, self.generators)
            raise

    def _resumed(self, position: Position, where: str) -> Position:
        """Returns the place from which the training goes on; one that had ended goes on if epochs or patience grew."""
        stopping = self.early_stopping
        done = position.epoch > self.given.epochs or stopping.has_run_out
        if position.done and not done:
            known = stopping.best_values is None or stopping.last_values is not None
            require(known, f"{where} has no more than the best parameters, of an older version: take another folder")
            stopping.restore_last()
        return replace(position, done=done)

    def _restore_generators(self, saved: list, workers: Workers) -> None:
        now, start = saved[workers.rank] if len(saved) == workers.size else (None, None)
        here = all_generator_states(self.generators)
        if now is not None and all(len(now[kind]) == len(here[kind]) for kind in ("torch", "own")):
            set_all_generator_states(now, self.generators)
            self.epoch_start = start
            return
        then = f"{len(saved)} processes with {len(saved[0][0]['torch'])} of torch's generators"
        now = f"{workers.size} with {len(here['torch'])}"
        warn(
            f"the checkpoint was written by {then} each, and there are now {now}: its epoch starts again, with other "
            "random numbers"
        )
        torch.manual_seed(derived_seed(self.position.epoch, f"process {workers.rank} of {workers.size}"))
        self.position = Position(self.position.epoch, done=self.position.done)


def _detached(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}


def check_fits(where: str, what: str, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raises `InputError` unless both have the same names, shapes and dtypes; it names the first that differs."""
    for name in sorted(expected.keys() | found.keys()):
        shape, other = (tuple(d[name].shape) if name in d else None for d in (expected, found))
        rule = f"{where} does not fit {what}: {name[:80]} must"
        require(shape == other, f"{rule} have shape {shape}, got {other}")
        ours, theirs = expected[name].dtype, found[name].dtype
        require(ours == theirs, f"{rule} be of {ours}, got {theirs}")


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Says of what a class of the user's own or of torch raises at a state, which checkpoint has it."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where} is not readable: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError) as error:
        cause = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise InputError(f"{where} is not one of this training ({cause})") from error
