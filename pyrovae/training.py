"""Stochastic variational inference over epochs: the steps of `pyro.infer.SVI`, with what a training run needs."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrovae.data import Dataset
from pyrovae.errors import InputError, require, require_choice, require_count, require_finite, require_number
from pyrovae.objectives.choose import check_objective, resolve
from pyrovae.objectives.pair import run_pair
from pyrovae.rng import local_seed

SCHEDULES = ("constant", "cosine")
ADAM = partial(torch.optim.Adam, fused=True)
VALIDATION_SEED = 0
VALIDATION_CHUNK = 1_024


@dataclass
class History:
    """One entry per epoch; everything in nats per datum.

    `loss` is minus the training objective, averaged over the epoch's data as the parameters moved. `elbo`,
    `reconstruction` (E_q[log p(x|z)]) and `kl` (E_q[log q(z|x) - log p(z)]) are of the validation data after the
    epoch, at beta = 1, with elbo = reconstruction - kl; None where there are no validation data.
    """

    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    elbo: list[float | None] = field(default_factory=list)
    reconstruction: list[float | None] = field(default_factory=list)
    kl: list[float | None] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def append(self, record: dict[str, float | None]) -> None:
        for name in vars(self):
            getattr(self, name).append(record[name])

    def records(self) -> list[dict[str, float | None]]:
        columns = asdict(self)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def fit(
    vae: Any,
    data: Dataset | Tensor | Iterable,
    *,
    epochs: int,
    objective: str | ELBO = "elbo",
    num_particles: int | None = None,
    alpha: float | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    schedule: str | Callable[[torch.optim.Optimizer], Any] = "constant",
    max_grad_norm: float | None = None,
    validation: Tensor | Iterable | None = None,
    patience: int | None = None,
    device: str | torch.device = "auto",
    seed: int | None = None,
    progress: bool | None = None,
    on_epoch: Callable[[dict[str, float | None]], None] | None = None,
) -> History:
    """Trains `vae.model` and `vae.guide` by stochastic variational inference, in place.

    - `vae`: anything whose `model` and `guide` keep the contract.
    - `data`: a `Dataset` (trained on `train_x`, validated on `validation_x`), a tensor, or any iterable that can be
      gone through again at each epoch and yields batches `x` or `(x, ...)`, a `DataLoader` for one.
    - `objective`: a name with `num_particles` and `alpha` (see `objectives.from_name`), or a `pyro.infer.ELBO`.
    - `optimizer(parameters, lr=lr)` and, with the optimiser as argument, `schedule` (stepped once an epoch) make
      torch's; `"cosine"` decays to 0 over the epochs.
    - `max_grad_norm`: gradients are clipped to this norm. They are those of the loss *per datum*, so that learning
      rate and clipping mean the same at every batch size.
    - `validation`: a tensor or re-iterable in place of the data set's own. After each epoch its ELBO is taken with the
      same draws, which leave the training's stream of random numbers alone.
    - `patience`: stop after so many epochs without a better validation ELBO, and go back to the best parameters.
    - `device`: `"auto"` is a GPU where there is one; `vae` stays there.
    - `seed` fixes the run and leaves the caller's generators as they were; None goes on with them.
    - `progress=None` shows a bar on a terminal. `on_epoch` is called with each record of the `History`.

    Raises `InputError` on bad input before anything is trained, and `FloatingPointError`, naming epoch and step, when
    the loss or a gradient is no longer finite.
    """
    require_count("epochs", epochs)
    require_count("batch_size", batch_size)
    require_number("lr", lr, above=0)
    if max_grad_norm is not None:
        require_number("max_grad_norm", max_grad_norm, above=0)
    if patience is not None:
        require_count("patience", patience)
    if not callable(schedule):
        require_choice("schedule", schedule, SCHEDULES)
    elbo = resolve(objective, num_particles=num_particles, alpha=alpha)
    device = choose_device(device)
    train, held_out = _sources(vae, data, validation, batch_size, device)
    require(patience is None or held_out is not None, "patience needs validation data, got none")

    with local_seed(seed):
        if isinstance(vae, nn.Module):
            vae.to(device).train()
        parameters = _check_pair(vae, elbo, train)
        torch_optimizer = optimizer(parameters, lr=lr)
        scheduler = _make_schedule(schedule, torch_optimizer, epochs)
        history, best = History(), _Best(parameters, patience)
        disable = None if progress is None else not progress
        with tqdm(range(1, epochs + 1), unit="epoch", disable=disable, leave=False) as bar:
            for epoch in bar:
                started, last_lr = time.perf_counter(), torch_optimizer.param_groups[0]["lr"]
                loss = _train_epoch(vae, elbo, train(), torch_optimizer, parameters, max_grad_norm, epoch)
                scheduler.step()
                terms = (
                    {"elbo": None, "reconstruction": None, "kl": None}
                    if held_out is None
                    else _validate(vae, held_out())
                )
                seconds = time.perf_counter() - started
                history.append(record := {"epoch": epoch, "loss": loss, **terms, "lr": last_lr, "seconds": seconds})
                if on_epoch is not None:
                    on_epoch(record)
                bar.set_postfix({name: f"{record[name]:.2f}" for name in ("loss", "elbo") if record[name] is not None})
                if best.is_enough(record["elbo"]):
                    break
        best.restore()
        if isinstance(vae, nn.Module):
            vae.eval()
    return history


def _train_epoch(vae, elbo, batches, optimizer, parameters, max_grad_norm, epoch: int) -> float:
    total, count = 0.0, 0
    for step, x in enumerate(batches, 1):
        optimizer.zero_grad(set_to_none=True)
        loss = elbo.loss_and_grads(vae.model, vae.guide, x)
        # Pyro's loss is a sum over the plate. The normaliser is applied to the gradients, because inside the loss
        # (as a scale) it would move into the logsumexp of the importance-weighted objectives.
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1 / len(x))
        finite = math.isfinite(loss)
        if finite and max_grad_norm is not None:
            finite = bool(nn.utils.clip_grad_norm_(parameters, max_grad_norm).isfinite())
        if not finite:
            raise FloatingPointError(f"training diverged: loss or gradient is not finite at epoch {epoch}, step {step}")
        optimizer.step()
        total, count = total + loss, count + len(x)
    return total / count


@torch.no_grad()
def _validate(vae, batches: Iterator[Tensor]) -> dict[str, float]:
    reconstruction, kl, count = 0.0, 0.0, 0
    with local_seed(VALIDATION_SEED):
        for batch in batches:
            for x in batch.split(VALIDATION_CHUNK):
                terms = run_pair(vae.model, vae.guide, x).terms()
                reconstruction += terms.log_likelihood.sum().item()
                kl += (terms.log_posterior - terms.log_prior).sum().item()
                count += len(x)
    reconstruction, kl = reconstruction / count, kl / count
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


class _Best:
    """The parameters of the best validation ELBO so far, kept only where early stopping asks for them."""

    def __init__(self, parameters: list[Tensor], patience: int | None) -> None:
        self.parameters, self.patience = parameters, patience
        self.elbo, self.waited, self.values = -math.inf, 0, None

    def is_enough(self, elbo: float | None) -> bool:
        if self.patience is None:
            return False
        if elbo > self.elbo:
            self.elbo, self.waited = elbo, 0
            self.values = [parameter.detach().clone() for parameter in self.parameters]
        else:
            self.waited += 1
        return self.waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, value in zip(self.parameters, self.values or self.parameters, strict=True):
            parameter.copy_(value)


# Before the first step ----------------------------------------------------------------------------------------------


def choose_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device must be auto or one that torch can use here, got {device!r}") from error
    return torch.device(device)


Batches = Callable[[], Iterator[Tensor]]


def _sources(vae, data, validation, batch_size: int, device: torch.device) -> tuple[Batches, Batches | None]:
    """What yields the batches of an epoch, on the device and checked: for training, and for validation or None."""
    if isinstance(data, Dataset):
        for x in (data.train_x, data.validation_x):
            if len(x):
                _check_data(vae, x)
        if validation is None and len(data.validation_x):
            validation = data.validation_x
        data = data.to(device)
        train = lambda: (x for x, _ in data.batches(batch_size))  # noqa: E731
    else:
        train = _batches(vae, "data", data, batch_size, device, shuffle=True)
    held_out = (
        None if validation is None else _batches(vae, "validation", validation, VALIDATION_CHUNK, device, shuffle=False)
    )
    return train, held_out


def _batches(vae, name: str, source: Tensor | Iterable, batch_size: int, device, shuffle: bool) -> Batches:
    if isinstance(source, Tensor):
        _check_data(vae, source)
        source = source.to(device)
        rows = torch.randperm if shuffle else torch.arange
        return lambda: (source[index.to(device)] for index in rows(len(source)).split(batch_size))
    require(
        isinstance(source, Iterable),
        f"{name} must be a Dataset, a tensor or an iterable of batches, got {type(source).__name__}",
    )
    require(iter(source) is not source, f"{name} must be iterable again at every epoch, got a one-time iterator")

    def checked() -> Iterator[Tensor]:
        batch = None
        for batch in source:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            _check_data(vae, x)
            yield x.to(device)
        require(batch is not None, f"{name} must yield at least one batch, got none")

    return checked


def _check_data(vae, x: Tensor) -> None:
    require(
        isinstance(x, Tensor) and x.dim() > 0 and len(x) > 0,
        f"x must be a tensor of at least one datum, got {x!r}"[:200],
    )
    getattr(vae, "check_data", partial(require_finite, "x"))(x)


def _check_pair(vae, elbo: ELBO, train: Batches) -> list[Tensor]:
    """The pair's parameters, once it is clear that `elbo` can be trained through and that it reaches all of them."""
    # A look at the first batch, with a seed of its own, so that it does not move the run's random numbers.
    with local_seed(0), poutine.trace(param_only=True) as capture:
        check_objective(elbo, run_pair(vae.model, vae.guide, next(iter(train()))))
    sites = capture.trace.nodes.values()
    parameters = list(
        {id(p): p for p in (site["value"].unconstrained() for site in sites if site["type"] == "param")}.values()
    )
    require(len(parameters) > 0, "model and guide must register a parameter (pyro.module or pyro.param), found none")
    if isinstance(vae, nn.Module):
        known = {id(parameter) for parameter in parameters}
        for name, parameter in vae.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                raise InputError(
                    f"parameter {name} would never train: neither model nor guide registers it, or Pyro's param store "
                    f"holds another tensor under its name (a name used before, or a parameter that is not contiguous)"
                )
    return parameters


def _make_schedule(schedule, optimizer: torch.optim.Optimizer, epochs: int):
    if callable(schedule):
        return schedule(optimizer)
    if schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
