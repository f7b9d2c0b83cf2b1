"""The settings of `fit` as a value, and the checks that need neither data nor a run of the pair."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from pyro.infer import ELBO, RenyiELBO
from pyro.optim import PyroOptim
from torch import Tensor

from pyrovae.common import (
    Workers,
    check_folder,
    if_given,
    plain_number,
    require,
    require_choice,
    require_compile,
    require_count,
    require_seed,
    shown,
)
from pyrovae.objectives import DifferentiableELBO, resolve
from pyrovae.programs import is_pair
from pyrovae.training import beta_schedules
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.optimizers import check_optimizer, check_schedule
from pyrovae.training.sides import TRAIN, check_by_side, described, plain_by_side

NONFINITE = ("stop", "skip")
_OF_THE_ELBO = {"ELBO", "AnalyticKLELBO", "EnumeratedELBO", "StickingTheLanding", "ScoreFunction"}
_OF_THE_ELBO |= {"Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO", "TraceGraph_ELBO"}


@dataclass
class FitSettings:
    """The arguments of `fit` that say how to train; `objective_settings` are those that go with an objective's name."""

    epochs: int
    steps_per_epoch: int | None
    objective: str | ELBO | Mapping[int, str | ELBO]
    objective_settings: dict[str, object]
    batch_size: int
    lr: float | Mapping[str, float] | None
    optimizer: Callable[..., torch.optim.Optimizer] | PyroOptim
    schedule: str | Callable[[torch.optim.Optimizer], Any]
    beta_schedule: str | Callable[[float], float]
    max_grad_norm: float | Mapping[str, float] | None
    guide_steps: int
    train: str
    compile: bool | str
    patience: int | None
    nonfinite: str
    seed: int | None

    def __post_init__(self) -> None:
        for field in fields(self):
            setattr(self, field.name, plain_number(getattr(self, field.name)))
        self.lr, self.max_grad_norm = plain_by_side(self.lr), plain_by_side(self.max_grad_norm)

    @property
    def by_side(self) -> str | None:
        """The first of the settings that tell the model from the guide, or None if none of them does."""
        asks = {
            "lr by side": isinstance(self.lr, Mapping),
            "max_grad_norm by side": isinstance(self.max_grad_norm, Mapping),
            "guide_steps": self.guide_steps > 1,
            "train": self.train != "both",
        }
        return next((name for name, does in asks.items() if does), None)

    @cached_property
    def objectives(self) -> dict[int, ELBO]:
        """The objectives by the epoch from which each is used; the first is used from epoch 1."""
        if not isinstance(self.objective, Mapping):
            return {1: resolve(self.objective, self.objective_settings)}
        for epoch in self.objective:
            require_count("an objective's first epoch", epoch)
            require(epoch <= self.epochs, f"an objective's first epoch must be <= epochs, {self.epochs}; got {epoch}")
        require(1 in self.objective, f"objective must have one from epoch 1 on, got {list(self.objective)}")
        given = ", ".join(name for name, value in self.objective_settings.items() if value is not None)
        require(not given, f"{given} must go with the name of the one objective; several are objects with settings")
        return {epoch: resolve(self.objective[epoch], {}) for epoch in sorted(self.objective)}

    @property
    def loss_of(self) -> str | None:
        """The one objective that is trained, as `History.loss_of` names it; None for an ELBO."""
        names = {type(elbo).__name__ for elbo in self.objectives.values()}
        return names.pop() if len(names) == 1 and not names & _OF_THE_ELBO else None

    @cached_property
    def beta_factor(self) -> Callable[[float], float]:
        """The schedule of beta, as a function of the share of the training that is done."""
        return beta_schedules.resolve(self.beta_schedule)

    def check(self, vae: object, checkpoints: Checkpoints | None) -> None:
        """Raises `InputError` on the first setting that cannot be used, for this pair and these checkpoints."""
        is_loose = isinstance(vae, tuple) or (callable(vae) and not isinstance(vae, type))
        hint = "; SimpleNamespace(model=model, guide=guide) has both" if is_loose else ""
        require(is_pair(vae), f"vae must have a model and a guide as attributes, got {shown(vae)}{hint}")
        require_count("epochs", self.epochs)
        if_given(require_count, "steps_per_epoch", self.steps_per_epoch)
        require_count("batch_size", self.batch_size)
        if self.seed is not None:
            require_seed(self.seed)
        check_optimizer(self.optimizer, self.lr)
        known = checkpoints is None or isinstance(checkpoints, Checkpoints)
        require(known, f"checkpoints must be pv.Checkpoints(folder), got {shown(checkpoints)}")
        if checkpoints is not None:
            check_folder(checkpoints.folder, "folder")
        if_given(check_by_side, "max_grad_norm", self.max_grad_norm, False)
        require_choice("train", self.train, TRAIN)
        require_count("guide_steps", self.guide_steps)
        clipped = self.max_grad_norm if isinstance(self.max_grad_norm, Mapping) else (self.train,)
        rule = f"max_grad_norm must have the {self.train}, which alone is trained, got {shown(list(clipped))}"
        require(self.train == "both" or self.train in clipped, rule)
        alone = self.train != "both" and self.guide_steps > 1
        require(not alone, f"guide_steps must be 1 where the {self.train} alone is trained, got {self.guide_steps}")
        if_given(require_count, "patience", self.patience)
        check_schedule(self.schedule)
        require_compile(self.compile)
        scheduled = self.beta_factor is not beta_schedules.constant
        require(not scheduled or hasattr(vae, "set_beta"), "beta_schedule needs a model with set_beta, as VAE has")
        beta_schedules.check_factors(self.beta_factor)
        for elbo in self.objectives.values():
            self._check_objective(elbo, scheduled)
        require_choice("nonfinite", self.nonfinite, NONFINITE)

    def _check_objective(self, elbo: ELBO, scheduled: bool) -> None:
        require(
            not (scheduled and isinstance(elbo, RenyiELBO)),
            "beta_schedule must be constant with RenyiELBO, whose logsumexp takes no beta; use iwae",
        )
        require(
            Workers().size == 1 or getattr(elbo, "free_bits", None) is None,
            "free_bits must be None where several processes train: their floor is that of the whole batch",
        )

    def described(self, epochs: int) -> str:
        """Returns the objectives of the first so many epochs in words."""
        return ", then ".join(_described(epoch, elbo) for epoch, elbo in self.objectives.items() if epoch <= epochs)

    def to_dict(
        self, vae: object, optimizer: torch.optim.Optimizer, num_batches: int | None, compile: bool
    ) -> dict[str, object]:
        """Returns the settings as plain values, which a checkpoint must have been written under to be resumed."""
        named = {
            name: value if isinstance(value, str) else "one of the caller's"
            for name, value in (("schedule", self.schedule), ("beta_schedule", self.beta_schedule))
        }
        beta = getattr(vae, "beta", None)
        return {
            "objective": self.described(self.epochs),
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "batch_size": self.batch_size,
            "number of batches": num_batches,
            "optimizer": type(optimizer).__name__,
            "lr": described(self.lr) if isinstance(self.lr, Mapping) else float(optimizer.param_groups[0]["lr"]),
            **named,
            "beta": float(beta) if isinstance(beta, Tensor) else None,
            "max_grad_norm": described(self.max_grad_norm),
            "guide_steps": self.guide_steps,
            "train": self.train,
            "patience": self.patience,
            "nonfinite": self.nonfinite,
            "compile": compile,
            "seed": self.seed,
        }


def _described(epoch: int, elbo: ELBO) -> str:
    text = repr(elbo) if isinstance(elbo, DifferentiableELBO) else type(elbo).__name__
    return text if epoch == 1 else f"{text} from epoch {epoch}"
