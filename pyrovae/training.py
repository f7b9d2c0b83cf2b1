"""Stochastic variational inference over epochs: the steps of `pyro.infer.SVI`, with what a training run needs."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrovae import schedules
from pyrovae.batches import VALIDATION_CHUNK, Batch, Batches, batches_of
from pyrovae.compiled import CompiledLoss
from pyrovae.data import Dataset
from pyrovae.errors import InputError, first_line, require, require_choice, require_count, require_number
from pyrovae.objectives.base import DifferentiableELBO
from pyrovae.objectives.choose import check_objective, resolve
from pyrovae.objectives.pair import check_pair, not_finite, run_pair
from pyrovae.rng import derived_seed, local_seed

LR_SCHEDULES = ("constant", "cosine")
ADAM = partial(torch.optim.Adam, fused=True)
VALIDATION_SEED = 0
READ_EVERY = 50  # steps on a GPU
COMPILE_STEPS = 2_000  # a compilation takes a few seconds and saves a few milliseconds a step


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
    num_batches: int | None = None,
    free_bits: float | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    schedule: str | Callable[[torch.optim.Optimizer], Any] = "constant",
    beta_schedule: str | Callable[[float], float] = "constant",
    max_grad_norm: float | None = None,
    compile: bool | str = "auto",
    validation: Tensor | Iterable | None = None,
    patience: int | None = None,
    device: str | torch.device = "auto",
    seed: int | None = None,
    progress: bool | None = None,
    on_epoch: Callable[[dict[str, float | None]], None] | None = None,
) -> History:
    """Trains `vae.model` and `vae.guide` by stochastic variational inference, in place.

    - `vae`: anything whose `model` and `guide` keep the contract; if conditional, with the number of conditions as
      `num_conditions`.
    - `data`: a `Dataset` (trained on its training data, validated on its validation data), a tensor, or any iterable
      that can be gone through again at each epoch and yields batches `x` or `(x, y, ...)`, a `DataLoader` for one.
      A conditional VAE is given as many y as it has conditions, any other none.
    - `objective`: a name with `num_particles`, `alpha`, `num_batches` and `free_bits` (see
      `objectives.from_name`), or a `pyro.infer.ELBO`.
    - `optimizer(parameters, lr=lr)` and, with the optimiser as argument, `schedule` (stepped once an epoch) make
      torch's; `"cosine"` decays to 0 over the epochs.
    - `beta_schedule`: from the share of the training that is done to a factor on the VAE's beta, by name (see
      `schedules`) or a function. Afterwards beta is what it was.
    - `max_grad_norm`: gradients are clipped to this norm. They are those of the loss *per datum*, so that learning
      rate and clipping mean the same at every batch size.
    - `compile`: whether steps are traced, compiled and replayed (see `CompiledLoss`), which gives the same numbers to
      rounding. `"auto"` does where it pays for the seconds of compiling: objectives of ours, 2,000 steps or more.
    - `validation`: a tensor or re-iterable in place of the data set's own. After each epoch its ELBO is taken with the
      same draws, which leave the training's stream of random numbers alone.
    - `patience`: stop after so many epochs without a better validation ELBO, and go back to the best parameters.
    - `device`: `"auto"` is a GPU where there is one; `vae` stays there.
    - `seed` fixes the run and leaves the caller's generators as they were; None goes on with them.
    - `progress=None` shows a bar on a terminal. `on_epoch` is called with each record of the `History`.

    Raises `InputError` on bad input before anything is trained, and `FloatingPointError`, naming epoch, step and site,
    when the loss or a gradient is no longer finite.
    """
    require_count("epochs", epochs)
    require_count("batch_size", batch_size)
    require_number("lr", lr, above=0)
    if max_grad_norm is not None:
        require_number("max_grad_norm", max_grad_norm, above=0)
    if patience is not None:
        require_count("patience", patience)
    if not callable(schedule):
        require_choice("schedule", schedule, LR_SCHEDULES)
    require(compile in (True, False, "auto"), f"compile must be true, false or auto, got {compile!r}")
    beta_factor = schedules.resolve(beta_schedule)
    scheduled = beta_factor is not schedules.constant
    require(not scheduled or hasattr(vae, "set_beta"), "beta_schedule needs a model with set_beta, as VAE has")
    settings = {"num_particles": num_particles, "alpha": alpha, "num_batches": num_batches, "free_bits": free_bits}
    elbo = resolve(objective, settings)
    if isinstance(elbo, RenyiELBO):
        require(not scheduled, "beta_schedule must be constant with RenyiELBO, whose logsumexp takes no beta; use iwae")
    ours = isinstance(elbo, DifferentiableELBO)
    require(ours or compile is not True, f"compile needs an objective of pyrovae, got {type(elbo).__name__}")
    device = choose_device(device)
    train, held_out = batches_of(vae, data, validation, batch_size, device)
    require(patience is None or held_out is not None, "patience needs validation data, got none")

    with local_seed(seed):
        if isinstance(vae, nn.Module):
            vae.to(device)
        check_seed = derived_seed(seed, "check") if seed is not None else int(torch.randint(2**62, ()))
        with local_seed(check_seed):  # of its own, so that it does not move the run's random numbers
            one_epoch = train()
            first = next(iter(one_epoch))
            parameters = _check_pair(vae, elbo, first)
        if compile == "auto":
            compile = ours and epochs * (one_epoch.num_batches or 0) >= COMPILE_STEPS
        gradients = CompiledLoss(vae.model, vae.guide, elbo, per_datum=True).loss_and_grads if compile else None
        gradients = gradients or partial(_loss_and_grads, vae, elbo, parameters)
        torch_optimizer = optimizer(parameters, lr=lr)
        scheduler = _make_schedule(schedule, torch_optimizer, epochs)
        known, beta = set(pyro.get_param_store().keys()), float(vae.beta) if scheduled else 1.0
        history, best = History(), _Best(vae, parameters, patience)
        try:
            with tqdm(range(1, epochs + 1), unit="epoch", disable=_disable(progress), leave=False) as bar:
                for epoch in bar:
                    started, last_lr = time.perf_counter(), torch_optimizer.param_groups[0]["lr"]
                    if scheduled:
                        vae.set_beta(beta * beta_factor((epoch - 1) / epochs))
                    if epoch > 1 and isinstance(elbo, RenyiELBO):  # a callback may have changed beta
                        with local_seed(check_seed):
                            _check_again(vae, elbo, first)

                    def set_beta(share: float, epoch: int = epoch) -> None:
                        if scheduled:
                            vae.set_beta(beta * beta_factor((epoch - 1 + share) / epochs))

                    if compile and epoch == 1:
                        bar.set_postfix_str("compiling")
                    loss = _train_epoch(
                        vae, elbo, gradients, train(), torch_optimizer, parameters, max_grad_norm, epoch, set_beta
                    )
                    new = set(pyro.get_param_store().keys()) - known
                    require(not new, f"parameters must all be registered at the first batch; later came {sorted(new)}")
                    scheduler.step()
                    terms = _validate(vae, held_out, epoch)
                    seconds = time.perf_counter() - started
                    history.append(record := {"epoch": epoch, "loss": loss, **terms, "lr": last_lr, "seconds": seconds})
                    if on_epoch is not None:
                        on_epoch(record)
                    bar.set_postfix(
                        {name: f"{record[name]:.2f}" for name in ("loss", "elbo") if record[name] is not None}
                    )
                    if best.is_enough(record["elbo"]):
                        break
            best.restore()
        finally:
            if scheduled:
                vae.set_beta(beta)
        torch_optimizer.zero_grad(set_to_none=True)  # or a step of SVI that comes next would add to these gradients
        if isinstance(vae, nn.Module):
            vae.eval()
    return history


def _train_epoch(vae, elbo, gradients, batches, optimizer, parameters, max_grad_norm, epoch: int, set_beta) -> float:
    if isinstance(vae, nn.Module):
        vae.train()
    total, count, num_batches = 0.0, 0, getattr(batches, "num_batches", None)
    unread: list[tuple[int, Batch, Tensor]] = []

    def read() -> float:
        """The losses of the steps since the last time, once they and the norms of their gradients are finite."""
        values = torch.stack([outcome for _, _, outcome in unread]).tolist()
        for (step, batch, _), (loss, norm) in zip(unread, values, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                site = not_finite(vae.model, vae.guide, *batch, num_particles=getattr(elbo, "num_draws", 1))
                raise FloatingPointError(_diverged(epoch, step, f"loss {loss}, norm of the gradient {norm}; {site}"))
        unread.clear()
        return sum(loss for loss, _ in values)

    for step, batch in enumerate(batches, 1):
        if num_batches:
            set_beta((step - 1) / num_batches)
        try:
            loss, norm = gradients(*batch)
        except InputError:
            raise
        except ValueError as error:  # Pyro's validation: a parameter of a distribution is no longer one
            raise FloatingPointError(_diverged(epoch, step, first_line(error))) from error
        unread.append((step, batch, torch.stack((loss, norm))))
        # To read a GPU's numbers is to wait for it; on a CPU it is not, and a bad step is found before it is taken.
        if norm.device.type == "cpu" or len(unread) == READ_EVERY:
            total += read()
        if max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        optimizer.step()
        count += len(batch[0])
    if unread:
        total += read()
    return total / count


def _loss_and_grads(vae, elbo: ELBO, parameters: list[Tensor], *batch: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, summed over the data as Pyro's are, and the norm of its gradient per datum, which the parameters get.

    The normaliser is applied to the gradients, because inside the loss (as a scale) it would move into the logsumexp of
    the importance-weighted objectives.
    """
    for parameter in parameters:
        parameter.grad = None
    loss = elbo.loss_and_grads(vae.model, vae.guide, *batch)
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    require(len(found) > 0, "the objective must give some parameter a gradient, and gives none")
    torch._foreach_mul_(found, 1 / len(batch[0]))
    norm = nn.utils.get_total_norm(found)
    return norm.new_tensor(loss), norm


def _diverged(epoch: int, step: int, detail: str) -> str:
    return f"training diverged: loss or gradient is not finite at epoch {epoch}, step {step} ({detail})"


@torch.no_grad()
def _validate(vae, held_out: Batches | None, epoch: int) -> dict[str, float | None]:
    if held_out is None:
        return {"elbo": None, "reconstruction": None, "kl": None}
    if isinstance(vae, nn.Module):
        vae.eval()
    reconstruction, kl, count = 0.0, 0.0, 0
    with local_seed(VALIDATION_SEED):
        for batch in held_out():
            for chunk in zip(*(part.split(VALIDATION_CHUNK) for part in batch), strict=True):
                try:
                    terms = run_pair(vae.model, vae.guide, *chunk).terms()
                except InputError:
                    raise
                except ValueError as error:
                    raise FloatingPointError(f"training diverged in epoch {epoch} ({first_line(error)})") from error
                reconstruction += terms.log_likelihood.sum().item()
                kl += (terms.log_posterior - terms.log_prior).sum().item()
                count += len(chunk[0])
    reconstruction, kl = reconstruction / count, kl / count
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


class _Best:
    """The parameters of the best validation ELBO so far, kept only where early stopping asks for them."""

    def __init__(self, vae, parameters: list[Tensor], patience: int | None) -> None:
        buffers = list(vae.buffers()) if isinstance(vae, nn.Module) else []
        self.tensors, self.patience = [*parameters, *buffers], patience
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


# Before the first step ----------------------------------------------------------------------------------------------


def choose_device(device: str | torch.device) -> torch.device:
    """The device by name; `"auto"` is a GPU where there is one. Raises `InputError` on one that is not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device must be auto or one that torch can use here, got {device!r}") from error
    return torch.device(device)


def _disable(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


def _check_pair(vae, elbo: ELBO, batch: Batch) -> list[Tensor]:
    """The pair's parameters, once it is clear that `elbo` can be trained through and that it reaches all of them."""
    with poutine.trace(param_only=True) as capture:
        _check_again(vae, elbo, batch)
    sites = (site for site in capture.trace.nodes.values() if site["type"] == "param")
    parameters = list({id(p): p for p in (site["value"].unconstrained() for site in sites)}.values())
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


def _check_again(vae, elbo: ELBO, batch: Batch) -> None:
    """The contract and the objective's needs, in evaluation mode: batch statistics are not moved by it."""
    if isinstance(vae, nn.Module):
        vae.eval()
    check_objective(elbo, check_pair(vae.model, vae.guide, *batch))


def _make_schedule(schedule, optimizer: torch.optim.Optimizer, epochs: int):
    if callable(schedule):
        made = schedule(optimizer)
        plateau = isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau)
        require(not plateau, "schedule must be stepped without a metric, and ReduceLROnPlateau is not")
        return made
    if schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
