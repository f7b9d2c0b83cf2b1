"""The state of a training as a value, which can be written to a checkpoint and restored from it to the bit."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.common import (
    InputError,
    Workers,
    all_generator_states,
    derived_seed,
    require,
    set_all_generator_states,
    warn,
)
from pyrovae.programs import ProgramPair
from pyrovae.training.early_stopping import EarlyStopping
from pyrovae.training.fingerprint import Fingerprint
from pyrovae.training.history import History, Position
from pyrovae.training.longer import check_resumed
from pyrovae.training.optimizers import check_schedule_of
from pyrovae.training.pair_modules import kept_values_on_error
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
            "state": self.vae.state_dict() if isinstance(self.vae, nn.Module) else {},
            "buffers": self.buffers,
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
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
            InputError: if the checkpoint is of another training. Parameters and buffers are then as before.
        """
        assert self.fingerprint is not None  # a training with checkpoints has one
        identity, workers = saved.get("identity"), Workers()  # checkpoints of older versions have no identity
        try:
            best, position, generators = saved["best"], Position(**saved["position"]), saved["generators"]
            check_resumed(where, saved["settings"], self.settings, self.given, position)
            tensors = ((self.parameters, saved["parameters"]), (self.buffers, saved["buffers"]))
            for ours, theirs in tensors:
                check_fits(where, "the model", ours, theirs)
            if identity is not None:
                self.fingerprint.check(where, identity, saved["buffers"], same_start)
            # Else loading the schedule makes torch warn that the optimiser has not stepped, in an epoch's first half.
            self.optimizer._opt_called = True  # type: ignore[attr-defined]
            # Some optimisers of Pyro move their learning rate themselves.
            if callable(self.given.schedule) and not type(self.optimizer).__module__.startswith("pyro."):
                check_schedule_of(where, self.scheduler, self.optimizer, saved["history"], saved["scheduler"])
            _load_optimizer(self.optimizer, saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])
            for record in saved["history"]:
                self.history.append(record)
            with kept_values_on_error([*self.parameters.values(), *self.buffers.values()]):
                for ours, theirs in tensors:
                    for name, tensor in ours.items():
                        tensor.copy_(theirs[name])
                if identity is not None:
                    found = self.fingerprint.loss_and_gradient() if workers.is_first else (math.nan, math.nan)
                    self.fingerprint.check_model(where, identity, workers.agreed_value(found))
                self.early_stopping.restore(best)
                self.position = self._resumed(position, where)
            self.fingerprint.continue_from(identity or {"start": None, "buffers": {}})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where} is not one of this training ({type(error).__name__}: {error})") from error
        check_versions(saved.get("versions"), self.versions())
        self._restore_generators(generators, workers)

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


def check_fits(where: str, what: str, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Raises `InputError` unless both have the same names, shapes and dtypes; it names the first that differs."""
    for name in sorted(expected.keys() | found.keys()):
        shape, other = (tuple(d[name].shape) if name in d else None for d in (expected, found))
        require(shape == other, f"{where} does not fit {what}: {name} must have shape {shape}, got {other}")
        ours, theirs = expected[name].dtype, found[name].dtype
        require(ours == theirs, f"{where} does not fit {what}: {name} must be of {ours}, got {theirs}")


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads the optimiser's state with the dtypes it had; `load_state_dict` casts it to the parameters' dtype."""
    optimizer.load_state_dict(state)
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved["params"], strict=True):
            for name, value in state["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    ours = optimizer.state[parameter][name]
                    optimizer.state[parameter][name] = ours if ours.dtype == value.dtype else value.to(ours.device)
