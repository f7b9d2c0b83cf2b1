"""Stochastic variational inference over epochs: the steps of `pyro.infer.SVI`, with what a training run needs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from pyrovae.common import (
    InputError,
    Workers,
    check_folder,
    choose_device,
    derived_seed,
    hides_progress,
    is_validation_error,
    kept_generators,
    local_seed,
    require,
    require_choice,
    require_count,
    require_number,
    require_seed,
    shown,
)
from pyrovae.data import Batch, Dataset, batches_of, first_batch, generators_of, scale_hint_of
from pyrovae.objectives import DifferentiableELBO, check_objective, resolve
from pyrovae.training import schedules
from pyrovae.training.checkpoints import Checkpoints
from pyrovae.training.compiled_svi import CompiledLoss
from pyrovae.training.fingerprint import Identity, told_of
from pyrovae.training.history import History
from pyrovae.training.loop import NONFINITE, Loop
from pyrovae.training.optimizers import (
    ADAM,
    check_factor,
    check_factors,
    check_optimizer,
    check_schedule,
    make_optimizer,
    make_schedule,
    unusual_settings,
)
from pyrovae.training.state import buffers_of, in_training_mode, kept_values, modules_of

COMPILE_STEPS = 2_000  # a compilation takes a few seconds and saves a few milliseconds a step


def fit(
    vae: Any,
    data: Dataset | Tensor | Iterable,
    *,
    epochs: int,
    objective: str | ELBO | Mapping[int, str | ELBO] = "elbo",
    num_particles: int | None = None,
    alpha: float | None = None,
    num_batches: int | None = None,
    free_bits: float | None = None,
    batch_size: int = 128,
    lr: float | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | PyroOptim = ADAM,
    schedule: str | Callable[[torch.optim.Optimizer], Any] = "constant",
    beta_schedule: str | Callable[[float], float] = "constant",
    max_grad_norm: float | None = None,
    compile: bool | str = "auto",
    validation: Tensor | Iterable | None = None,
    patience: int | None = None,
    nonfinite: str = "stop",
    device: str | torch.device = "auto",
    seed: int | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool | None = None,
    on_start: Callable[[History], None] | None = None,
    on_epoch: Callable[[dict[str, float | None]], None] | None = None,
) -> History:
    """Trains `vae.model` and `vae.guide` by stochastic variational inference, in place.

    - `vae`: anything whose `model` and `guide` keep the contract; if conditional, with the number of conditions as
      `num_conditions`.
    - `data`: a `Dataset` (trained on its training data, validated on its validation data), a tensor, or any iterable
      that can be gone through again at each epoch and yields batches `x` or `(x, y, ...)`, a `DataLoader` for one.
      A conditional VAE is given as many y as it has conditions, any other none.
    - `objective`: a name with `num_particles`, `alpha`, `num_batches` and `free_bits` (see
      `objectives.from_name`), or a `pyro.infer.ELBO`. Or several, each from an epoch on:
      `{1: "elbo", 51: pv.objectives.IWAE(50)}`; the optimiser and its schedule go on.
    - `optimizer(parameters, lr=lr)` makes torch's, or it is one of `pyro.optim`; `lr` is 0.001 where neither it nor a
      Pyro optimiser says another. `schedule`, stepped once an epoch, is made with the optimiser as argument; `"cosine"`
      decays to 0 over the epochs.
    - `beta_schedule`: from the share of the training that is done to a factor on the VAE's beta, by name (see
      `schedules`) or a function. Afterwards beta is what it was.
    - `max_grad_norm`: gradients are clipped to this norm. They are those of the loss *per datum*, so that learning
      rate and clipping mean the same at every batch size.
    - `compile`: whether steps are traced, compiled and replayed (see `CompiledLoss`), which gives the same numbers to
      rounding. `"auto"` does where it pays for the seconds of compiling: objectives of ours, 2,000 steps or more.
    - `validation`: a tensor or re-iterable in place of the data set's own. After each epoch its ELBO is taken with the
      same draws, which leave the training's stream of random numbers alone.
    - `patience`: stop after so many epochs without a better validation ELBO, and go back to the best parameters.
    - `nonfinite`: `"stop"` at a loss or gradient that is not finite, or `"skip"` that step; `History` counts them.
    - `device`: `"auto"` is a GPU where there is one; `vae` stays there.
    - `seed` fixes the run and leaves the caller's generators as they were; None goes on with them.
    - `checkpoints`: where the training is written down as it goes (see `Checkpoints`). Where it has been before, it
      goes on from there, to the bit: the same parameters and history as of one that was never broken off. A checkpoint
      of other data, or another optimiser or model, is refused.
    - `progress=None` shows a bar on a terminal. `on_epoch` is called with each record of the `History`, `on_start` with
      that of the epochs that are done; in evaluation mode, and what they draw leaves the run as it would have been.

    Of an iterable that is gone on with within an epoch the batches that are done are drawn again, from generators as
    they were when it began: its order must be drawn then, as a `DataLoader`'s is.

    Within `workers.process_group` every process takes its rows of each batch (`data` a `Dataset` or a tensor) and the
    gradients are those of the whole batch; the first writes and shows progress.

    Raises `InputError` on bad input before anything is trained, and `FloatingPointError`, naming epoch, step and site,
    when the loss or a gradient is no longer finite, or a distribution refuses its parameters. Any other error of the
    pair's goes through as it is.
    """
    callables = all(callable(getattr(vae, name, None)) for name in ("model", "guide"))
    require(callables, f"vae must have a model and a guide, got {shown(vae)}")
    require_count("epochs", epochs)
    require_count("batch_size", batch_size)
    if seed is not None:
        require_seed(seed)
    check_optimizer(optimizer, lr)
    known = checkpoints is None or isinstance(checkpoints, Checkpoints)
    require(known, f"checkpoints must be pv.Checkpoints(folder), got {checkpoints!r}")
    if checkpoints is not None:
        check_folder(checkpoints.folder, "folder")
    if max_grad_norm is not None:
        require_number("max_grad_norm", max_grad_norm, above=0)
    if patience is not None:
        require_count("patience", patience)
    check_schedule(schedule)
    require(compile in (True, False, "auto"), f"compile must be true, false or auto, got {compile!r}")
    beta_factor = schedules.resolve(beta_schedule)
    scheduled = beta_factor is not schedules.constant
    require(not scheduled or hasattr(vae, "set_beta"), "beta_schedule needs a model with set_beta, as VAE has")
    check_factors(beta_factor)
    settings = {"num_particles": num_particles, "alpha": alpha, "num_batches": num_batches, "free_bits": free_bits}
    elbos = _by_first_epoch(objective, settings, epochs)
    for elbo in elbos.values():
        name, ours = type(elbo).__name__, isinstance(elbo, DifferentiableELBO)
        rule = "beta_schedule must be constant with RenyiELBO, whose logsumexp takes no beta; use iwae"
        require(not (scheduled and isinstance(elbo, RenyiELBO)), rule)
        require(ours or compile is not True, f"compile needs an objective of pyrovae, got {name}")
        require(
            Workers().size == 1 or getattr(elbo, "free_bits", None) is None,
            "free_bits must be None where several processes train: their floor is that of the whole batch",
        )
    require_choice("nonfinite", nonfinite, NONFINITE)
    device = choose_device(device)
    train, held_out = batches_of(vae, data, validation, batch_size, device)
    require(patience is None or held_out is not None, "patience needs validation data, got none")

    with local_seed(seed):
        if isinstance(vae, nn.Module):
            vae.to(device)
        check_seed = derived_seed(seed, "check") if seed is not None else int(torch.randint(2**62, ()))
        # Looks at data and pair have seeds of their own, so that they do not move the run's random numbers.
        generators = generators_of(data)
        one_epoch, first = first_batch(train, generators)
        with kept_generators(generators), local_seed(check_seed):
            try:
                for elbo in elbos.values():
                    parameters = trained_parameters(vae, elbo, first)
            except InputError as error:
                if is_validation_error(error) and scale_hint_of(data, first):
                    raise InputError(f"{scale_hint_of(data, first)}{error}") from error
                raise
            if one_epoch.smallest_share == 1:
                _check_batch_of_one(vae, elbos[1], first, batch_size)
        if compile == "auto":
            compile = all(compiles(elbo, epochs * (one_epoch.num_batches or 0)) for elbo in elbos.values())
        gradients = {epoch: gradients_of(vae, elbo, parameters, compile) for epoch, elbo in elbos.items()}
        torch_optimizer = make_optimizer(optimizer, list(parameters.values()), lr)
        lr = float(torch_optimizer.param_groups[0]["lr"])
        known, beta = set(pyro.get_param_store().keys()), float(vae.beta) if scheduled else 1.0

        def set_beta(share: float) -> None:
            if scheduled:
                vae.set_beta(beta * check_factor(share, beta_factor(share)))

        def check_registered() -> None:
            new = set(pyro.get_param_store().keys()) - known
            require(not new, f"parameters must all be registered at the first batch; later came {sorted(new)}")

        def before_epoch(epoch: int) -> None:
            check_registered()
            begun = max(start for start in elbos if start <= epoch)
            loop.use(gradients[begun], getattr(elbos[begun], "num_draws", 1))
            if epoch > 1 and isinstance(elbos[begun], RenyiELBO):  # a callback may have changed beta
                with kept_generators(generators), local_seed(check_seed):
                    _check_again(vae, elbos[begun], first)

        @contextmanager
        def at_full_beta() -> Iterator[None]:
            now = float(vae.beta) if scheduled else 1.0
            if scheduled:
                vae.set_beta(beta)
            try:
                yield
            finally:
                if scheduled:
                    vae.set_beta(now)

        identity = None
        if checkpoints is not None:
            told = told_of(data, validation, first, lambda: first_batch(train, generators)[1])
            told |= {"optimizer settings": unusual_settings(torch_optimizer), **checkpoints.told}
            identity = Identity(vae, elbos[1], list(parameters.values()), first, told, generators, at_full_beta)
        loop = Loop(
            vae,
            parameters,
            torch_optimizer,
            make_schedule(schedule, torch_optimizer, epochs),
            train,
            held_out,
            epochs=epochs,
            set_beta=set_beta,
            max_grad_norm=max_grad_norm,
            patience=patience,
            nonfinite=nonfinite,
            checkpoints=checkpoints,
            source=data,
            identity=identity,
            settings={
                "objective": ", then ".join(_shown(epoch, elbo) for epoch, elbo in elbos.items()),
                "epochs": epochs,
                "batch_size": batch_size,
                "number of batches": one_epoch.num_batches,
                "optimizer": type(torch_optimizer).__name__,
                "lr": lr,
                "schedule": schedule if isinstance(schedule, str) else "one of the caller's",
                "beta_schedule": beta_schedule if isinstance(beta_schedule, str) else "one of the caller's",
                "beta": float(vae.beta) if isinstance(getattr(vae, "beta", None), Tensor) else None,
                "max_grad_norm": max_grad_norm,
                "patience": patience,
                "nonfinite": nonfinite,
                "compile": bool(compile),
                "seed": seed,
            },
        )
        if loop.workers.rank > 0:  # noise of its own for every process
            torch.manual_seed(derived_seed(torch.initial_seed(), f"process {loop.workers.rank}"))

        def at_end() -> None:
            if scheduled:
                vae.set_beta(beta)
            check_registered()

        try:
            with tqdm(total=epochs, unit="epoch", disable=hides_progress(progress), leave=False) as bar:
                if compile:
                    bar.set_postfix_str("compiling")
                loop.run(bar, on_start or _ignore, on_epoch or _ignore, before_epoch, at_end)
        finally:
            if scheduled:
                vae.set_beta(beta)
        torch_optimizer.zero_grad(set_to_none=True)  # or a step of SVI that comes next would add to these gradients
        if isinstance(vae, nn.Module):
            vae.eval()
    return loop.history


def _ignore(*args: object) -> None: ...


def compiles(elbo: ELBO, num_steps: int) -> bool:
    """Whether steps of this objective are compiled where that is left to `fit`."""
    return isinstance(elbo, DifferentiableELBO) and num_steps >= COMPILE_STEPS


def gradients_of(vae, elbo: ELBO, parameters: dict[str, Tensor], compile: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """What gives a batch's loss, summed over the data, and the norm of its gradient per datum, and sets that."""
    if compile:
        return CompiledLoss(vae.model, vae.guide, elbo, per_datum=True).loss_and_grads
    return partial(_loss_and_grads, vae, elbo, list(parameters.values()))


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


# Before the first step ----------------------------------------------------------------------------------------------


def _by_first_epoch(objective, settings: dict[str, object], epochs: int) -> dict[int, ELBO]:
    """The objectives by the epoch from which they are trained with, the first from epoch 1."""
    if not isinstance(objective, Mapping):
        return {1: resolve(objective, settings)}
    for epoch in objective:
        require_count("an objective's first epoch", epoch)
        require(epoch <= epochs, f"an objective's first epoch must be <= epochs, {epochs}; got {epoch}")
    require(1 in objective, f"objective must have one from epoch 1 on, got {list(objective)}")
    given = ", ".join(name for name, value in settings.items() if value is not None)
    require(not given, f"{given} must go with the name of the one objective; several are objects with settings")
    return {epoch: resolve(objective[epoch], {}) for epoch in sorted(objective)}


def _shown(epoch: int, elbo: ELBO) -> str:
    text = repr(elbo) if isinstance(elbo, DifferentiableELBO) else type(elbo).__name__
    return text if epoch == 1 else f"{text} from epoch {epoch}"


def trained_parameters(vae, elbo: ELBO, batch: Batch) -> dict[str, Tensor]:
    """The pair's parameters by name, once it is clear that `elbo` trains through the pair and reaches all of them."""
    with poutine.trace(param_only=True) as capture:
        _check_again(vae, elbo, batch)
    sites = {name: site for name, site in capture.trace.nodes.items() if site["type"] == "param"}
    found = {id(p): (name, p) for name, p in ((n, site["value"].unconstrained()) for n, site in sites.items())}
    own = vae.named_parameters() if isinstance(vae, nn.Module) else ()
    names = {id(p): name for name, p in own}  # that of a site differs from one instance to the next
    parameters = {names.get(key, name): p for key, (name, p) in found.items()}
    require(len(parameters) > 0, "model and guide must register a parameter (pyro.module or pyro.param), found none")
    if isinstance(vae, nn.Module):
        known = {id(parameter) for parameter in parameters.values()}
        for name, parameter in vae.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                raise InputError(
                    f"parameter {name} would never train: neither model nor guide registers it, or Pyro's param store "
                    f"holds another tensor under its name (a name used before, or a parameter that is not contiguous)"
                )
    return parameters


def _check_again(vae, elbo: ELBO, batch: Batch) -> None:
    """The contract and the objective's needs, in evaluation mode: batch statistics are not moved by it."""
    check_objective(elbo, vae.model, vae.guide, *batch)


def _check_batch_of_one(vae, elbo: ELBO, batch: Batch, batch_size: int) -> None:
    """Raises `InputError` where the pair has batch normalisation, and that of one datum fails."""
    if not any(isinstance(module, _BatchNorm) for module in modules_of(vae)):
        return
    try:
        with torch.no_grad(), in_training_mode(vae), kept_values(list(buffers_of(vae).values())):
            elbo.loss(vae.model, vae.guide, *(part[:1] for part in batch))
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            rule = "batch_size must leave no batch of one datum, of which BatchNorm has no variance"
            raise InputError(f"{rule}; got {batch_size}") from error
        raise
